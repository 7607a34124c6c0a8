// Attention of one query over pages of half floats.

QUERN_INLINE F32x8 LoadHalfRun(const uint16_t* p, int n) {
  if (n == 8) return LoadHalf(p);
  uint16_t part[8] = {};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  return LoadHalf(part);
}

void StoreHalves(const float* from, int n, uint16_t* to) {
  ForEachRun(n, [&](int i, int count) {
    uint16_t half[8];
    StoreHalf(LoadRun(from + i, count), half);
    __builtin_memcpy(to + i, half, static_cast<size_t>(count) * sizeof(half[0]));
  });
}

void StoreKv(const PagedKv& kv, const AttentionShape& shape, int position, const float* key,
             const float* value) {
  const int n = shape.num_kv_heads * shape.head_dim;
  const int64_t offset = kv.page_table[position / kv.page_tokens] * kv.page_stride +
                         int64_t{position % kv.page_tokens} * n;
  StoreHalves(key, n, kv.keys + offset);
  StoreHalves(value, n, kv.values + offset);
}

// Calls body(position, run) for each position up to `last`, ascending; run is that position's
// head in `base`.
template <typename Body>
QUERN_INLINE void ForEachPosition(const PagedKv& kv, const AttentionShape& shape,
                                  const uint16_t* base, int kv_head, int last, const Body& body) {
  const int64_t stride = int64_t{shape.num_kv_heads} * shape.head_dim;
  for (int first = 0, page = 0; first <= last; first += kv.page_tokens, ++page) {
    const uint16_t* run =
        base + kv.page_table[page] * kv.page_stride + int64_t{kv_head} * shape.head_dim;
    const int end = MinInt(first + kv.page_tokens, last + 1);
    for (int position = first; position < end; ++position, run += stride) body(position, run);
  }
}

// exp(score - max) in place; returns their sum. Lanes are added first, then each other.
QUERN_INLINE float SoftmaxNumerators(float* scores, int n) {
  F32x8 max = Set(scores[0]);
  ForEachRun(n, [&](int i, int count) {
    if (count == 8) {
      max = Max(Load(scores + i), max);
    } else {
      for (int j = i; j < i + count; ++j) max = Max(Set(scores[j]), max);
    }
  });
  const F32x8 largest = Set(MaxLane(max));
  F32x8 sum = Zero();
  ForEachRun(n, [&](int i, int count) {
    StoreRun(Exp(Sub(LoadRun(scores + i, count), largest)), count, scores + i);
    sum = Add(sum, LoadRun(scores + i, count));
  });
  return SumLanes(sum);
}

// kRuns * 8 channels of the weighted sum of values, positions ascending.
template <int kRuns>
QUERN_INLINE void SumValues(const PagedKv& kv, const AttentionShape& shape, int kv_head, int last,
                            const float* weights, float divisor, int channel, int count,
                            float* out) {
  F32x8 sum[kRuns];
  for (F32x8& s : sum) s = Zero();
  ForEachPosition(kv, shape, kv.values + channel, kv_head, last,
                  [&](int position, const uint16_t* run) {
                    const F32x8 weight = Set(weights[position]);
                    for (int r = 0; r < kRuns; ++r) {
                      const F32x8 value = LoadHalfRun(run + 8 * r, kRuns > 1 ? 8 : count);
                      sum[r] = Fma(weight, value, sum[r]);
                    }
                  });
  for (int r = 0; r < kRuns; ++r) {
    StoreRun(Div(sum[r], Set(divisor)), kRuns > 1 ? 8 : count, out + channel + 8 * r);
  }
}

void Attention(const PagedKv& kv, const AttentionShape& shape, int position, const float* query,
               int head_begin, int head_end, float* scratch, float* out) {
  const int head_dim = shape.head_dim;
  const int heads_per_kv = shape.num_heads / shape.num_kv_heads;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_dim));
  for (int head = head_begin; head < head_end; ++head) {
    const int kv_head = head / heads_per_kv;
    const float* q = query + int64_t{head} * head_dim;
    ForEachPosition(kv, shape, kv.keys, kv_head, position, [&](int p, const uint16_t* key) {
      // Two chains: even and odd runs.
      F32x8 sum[2] = {Zero(), Zero()};
      int i = 0;
      for (; i + 16 <= head_dim; i += 16) {
        sum[0] = Fma(Load(q + i), LoadHalf(key + i), sum[0]);
        sum[1] = Fma(Load(q + i + 8), LoadHalf(key + i + 8), sum[1]);
      }
      for (; i < head_dim; i += 8) {
        const int count = MinInt(8, head_dim - i);
        sum[0] = Fma(LoadRun(q + i, count), LoadHalfRun(key + i, count), sum[0]);
      }
      scratch[p] = SumLanes(Add(sum[0], sum[1])) * scale;
    });
    const float divisor = SoftmaxNumerators(scratch, position + 1);
    float* to = out + int64_t{head} * head_dim;
    int channel = 0;
    for (; channel + 64 <= head_dim; channel += 64) {
      SumValues<8>(kv, shape, kv_head, position, scratch, divisor, channel, 8, to);
    }
    for (; channel < head_dim; channel += 8) {
      SumValues<1>(kv, shape, kv_head, position, scratch, divisor, channel,
                   MinInt(8, head_dim - channel), to);
    }
  }
}
