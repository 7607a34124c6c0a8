// Attention over pages of keys and values, by online softmax (Milakov and Gimelshein 2018; Dao et
// al. 2022, algorithm 1 without its outer loop): blocks of positions in ascending order, each
// widened to floats once for all queries and heads that share it.
//
// Blocks begin at multiples of kAttentionBlock and every sum is a chain of one query's own, so a
// query's numbers do not depend on the queries beside it.

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
  const int dim = shape.head_dim;
  const int64_t page = kv.page_table[position / kv.page_tokens] * kv.page_stride;
  for (int head = 0; head < shape.num_kv_heads; ++head, key += dim, value += dim) {
    const int64_t run = page + (int64_t{head} * kv.page_tokens + position % kv.page_tokens) * dim;
    StoreHalves(key, dim, kv.keys + run);
    StoreHalves(value, dim, kv.values + run);
  }
}

// Positions of a block: its keys and values as floats fit L1 for heads of up to 128 channels.
constexpr int kAttentionBlock = 32;
// Queries that share keys in registers, and vectors of positions.
constexpr int kAttentionRows = 4;
constexpr int kAttentionVectors = 2;
// Channels that a pass over the values keeps in registers.
constexpr int kValueVectors = 64 / kRowsPerVector;
// Rows whose sums one pass over the positions keeps. A row is one head of one token.
constexpr int kMaxAttentionRows = 64;

static_assert(kAttentionBlock % (kRowsPerVector * kAttentionVectors) == 0);

QUERN_INLINE int PaddedChannels(int head_dim) {
  constexpr int kLanes = kRowsPerVector < 8 ? 8 : kRowsPerVector;
  return static_cast<int>(CeilDiv(head_dim, kLanes)) * kLanes;
}

// The scratch of one call.
struct AttentionScratch {
  AttentionScratch(float* memory, int head_dim) : channels(PaddedChannels(head_dim)) {
    keys = memory;
    values = keys + channels * kAttentionBlock;
    scores = values + channels * kAttentionBlock;
    max = scores + kAttentionRows * kAttentionBlock;
    sum = max + kMaxAttentionRows;
    out = sum + kMaxAttentionRows;
  }
  static size_t Floats(int head_dim) {
    return size_t(PaddedChannels(head_dim)) * (2 * kAttentionBlock + kMaxAttentionRows) +
           kAttentionRows * kAttentionBlock + 2 * kMaxAttentionRows;
  }

  int channels;
  float* keys;    // [channels][kAttentionBlock]
  float* values;  // [kAttentionBlock][channels]
  float* scores;  // [kAttentionRows][kAttentionBlock]
  float* max;     // [rows], of the scores so far
  float* sum;     // [rows], of exp(score - max) so far
  float* out;     // [rows][channels], weighted by exp(score - max), so far
};

size_t AttentionScratchFloats(const AttentionShape& shape) {
  return AttentionScratch::Floats(shape.head_dim);
}

// Walks the keys or values of one head, position by position, and fetches a page ahead: the
// processor does not see where the next one lies.
class HeadRuns {
 public:
  HeadRuns(const PagedKv& kv, const uint16_t* elements, int kv_head, int head_dim,
           int num_positions)
      : kv_(kv),
        base_(elements + int64_t{kv_head} * kv.page_tokens * head_dim),
        head_dim_(head_dim),
        num_pages_(static_cast<int>(CeilDiv(num_positions, kv.page_tokens))),
        slot_(kv.page_tokens),
        next_page_(At(0)) {}

  // The run of the next position.
  QUERN_INLINE const uint16_t* Next() {
    if (slot_ == kv_.page_tokens) {
      slot_ = 0;
      run_ = next_page_;
      next_page_ = At(MinInt(++page_, num_pages_ - 1));
    }
    const uint16_t* run = run_ + slot_ * head_dim_;
    for (int i = 0; i < head_dim_; i += 32) {
      __builtin_prefetch(next_page_ + slot_ * head_dim_ + i);
    }
    ++slot_;
    return run;
  }

 private:
  const uint16_t* At(int page) const { return base_ + kv_.page_table[page] * kv_.page_stride; }

  const PagedKv& kv_;
  const uint16_t* base_;
  int head_dim_;
  int num_pages_;
  int page_ = 0;
  int slot_;
  const uint16_t* run_ = nullptr;
  const uint16_t* next_page_;
};

// The next `count` positions into scratch, zeros up to a multiple of the vectors.
QUERN_INLINE void WidenKeys(HeadRuns& keys, int head_dim, int count, float* out) {
  constexpr int kPositions = kRowsPerVector * kAttentionVectors;
  for (int p = 0; p < CeilDiv(count, kPositions) * kPositions; p += 8) {
    static constexpr uint16_t kZeros[kMaxHeadDim] = {};
    const uint16_t* run[8];
    for (int i = 0; i < 8; ++i) run[i] = p + i < count ? keys.Next() : kZeros;
    ForEachRun(head_dim, [&](int channel, int n) {
      F32x8 block[8];
      for (int i = 0; i < 8; ++i) block[i] = LoadHalfRun(run[i] + channel, n);
      Transpose(block);
      for (int i = 0; i < n; ++i) Store(block[i], out + (channel + i) * kAttentionBlock + p);
    });
  }
}

QUERN_INLINE void WidenValues(HeadRuns& values, int head_dim, int count, int channels, float* out) {
  for (int p = 0; p < count; ++p, out += channels) {
    const uint16_t* run = values.Next();
    ForEachRun(head_dim,
               [&](int channel, int n) { Store(LoadHalfRun(run + channel, n), out + channel); });
    for (int c = static_cast<int>(CeilDiv(head_dim, 8)) * 8; c < channels; c += 8) {
      Store(Zero(), out + c);
    }
  }
}

// Scores of kRows queries with the first `count` positions, rounded up to whole vectors.
template <int kRows>
QUERN_INLINE void ScoreRows(const float* const* queries, const float* keys, int head_dim, int count,
                            float scale, float* scores) {
  for (int p = 0; p < count; p += kRowsPerVector * kAttentionVectors) {
    RowFloats sum[kRows][kAttentionVectors];
    for (auto& row : sum) {
      for (RowFloats& s : row) s = ZeroRows();
    }
    const float* key = keys + p;
    for (int channel = 0; channel < head_dim; ++channel, key += kAttentionBlock) {
      RowFloats k[kAttentionVectors];
      for (int v = 0; v < kAttentionVectors; ++v) k[v] = LoadRows(key + kRowsPerVector * v);
      for (int r = 0; r < kRows; ++r) {
        const RowFloats q = SetRows(queries[r][channel]);
        for (int v = 0; v < kAttentionVectors; ++v) sum[r][v] = Fma(q, k[v], sum[r][v]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kAttentionVectors; ++v) {
        Store(Mul(sum[r][v], SetRows(scale)),
              scores + r * kAttentionBlock + p + kRowsPerVector * v);
      }
    }
  }
}

// The largest of n scores; NaN when one is.
QUERN_INLINE float LargestScore(const float* scores, int n) {
  F32x8 max = Set(scores[0]);
  ForEachRun(n, [&](int i, int count) {
    if (count == 8) {
      max = Max(Load(scores + i), max);
    } else {
      for (int j = i; j < i + count; ++j) max = Max(Set(scores[j]), max);
    }
  });
  return MaxLane(max);
}

// exp(score - max) in place; returns their sum. Lanes are added first, then each other.
QUERN_INLINE float SoftmaxNumerators(float* scores, int n, float largest) {
  const F32x8 max = Set(largest);
  F32x8 sum = Zero();
  ForEachRun(n, [&](int i, int count) {
    StoreRun(Exp(Sub(LoadRun(scores + i, count), max)), count, scores + i);
    sum = Add(sum, LoadRun(scores + i, count));
  });
  return SumLanes(sum);
}

// out = out * factor + weights * values, kVectors vectors of channels.
template <int kVectors>
QUERN_INLINE void AddValues(const float* weights, const float* values, int count, int channels,
                            float factor, float* out) {
  RowFloats sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    sum[v] = Mul(LoadRows(out + kRowsPerVector * v), SetRows(factor));
  }
  for (int p = 0; p < count; ++p, values += channels) {
    const RowFloats weight = SetRows(weights[p]);
    for (int v = 0; v < kVectors; ++v) {
      sum[v] = Fma(weight, LoadRows(values + kRowsPerVector * v), sum[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) Store(sum[v], out + kRowsPerVector * v);
}

// Takes `count` scores, and the values they belong to, into the sums of `row`.
QUERN_INLINE void AddBlock(const AttentionScratch& scratch, int row, float* scores, int count) {
  const float before = scratch.max[row];
  const float max = FirstLane(Max(Set(before), Set(LargestScore(scores, count))));
  const float factor = FirstLane(Exp(Set(before - max)));
  const F32x8 sum = Set(SoftmaxNumerators(scores, count, max));
  scratch.max[row] = max;
  scratch.sum[row] = FirstLane(Fma(Set(scratch.sum[row]), Set(factor), sum));
  float* out = scratch.out + row * scratch.channels;
  int channel = 0;
  constexpr int kWide = kRowsPerVector * kValueVectors;
  for (; channel + kWide <= scratch.channels; channel += kWide) {
    AddValues<kValueVectors>(scores, scratch.values + channel, count, scratch.channels, factor,
                             out + channel);
  }
  for (; channel < scratch.channels; channel += kRowsPerVector) {
    AddValues<1>(scores, scratch.values + channel, count, scratch.channels, factor, out + channel);
  }
}

// Rows of one key/value head: row r is head first_head + r % num_heads of token r / num_heads.
struct AttentionRows {
  int position(int row) const { return query.first_position + row / num_heads; }
  const float* in(int row) const {
    return query.queries + row / num_heads * query.query_stride + offset(row);
  }
  float* out(int row) const { return query.out + row / num_heads * query.out_stride + offset(row); }
  int64_t offset(int row) const { return int64_t{first_head + row % num_heads} * head_dim; }

  const AttentionQuery& query;
  int head_dim;
  int first_head;
  int num_heads;
};

// Rows [begin, end) against the block of positions in scratch.
QUERN_INLINE void AttendBlock(const AttentionRows& rows, int pass_begin, int begin, int end,
                              int first_position, const AttentionScratch& scratch) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(rows.head_dim));
  for (int row = begin; row < end; row += kAttentionRows) {
    const int num_rows = MinInt(kAttentionRows, end - row);
    const float* in[kAttentionRows];
    for (int r = 0; r < num_rows; ++r) in[r] = rows.in(row + r);
    const auto count = [&](int r) {
      return MinInt(kAttentionBlock, rows.position(r) + 1 - first_position);
    };
    const int most = count(row + num_rows - 1);
    switch (num_rows) {
#define QUERN_CASE(n)                                                           \
  case n:                                                                       \
    ScoreRows<n>(in, scratch.keys, rows.head_dim, most, scale, scratch.scores); \
    break;
      QUERN_CASE(1)
      QUERN_CASE(2)
      QUERN_CASE(3)
      QUERN_CASE(4)
#undef QUERN_CASE
    }
    for (int r = 0; r < num_rows; ++r) {
      AddBlock(scratch, row + r - pass_begin, scratch.scores + r * kAttentionBlock, count(row + r));
    }
  }
}

// The keys and values of one head as half floats, widened block by block in ascending order. Other
// kinds of memory have a class like it.
class HalfPositions {
 public:
  HalfPositions(const PagedKv& kv, int kv_head, int head_dim, int num_positions)
      : head_dim_(head_dim),
        keys_(kv, kv.keys, kv_head, head_dim, num_positions),
        values_(kv, kv.values, kv_head, head_dim, num_positions) {}

  // The next `count` positions, the first of which is `first`.
  QUERN_INLINE void Widen(int /*first*/, int count, const AttentionScratch& scratch) {
    WidenKeys(keys_, head_dim_, count, scratch.keys);
    WidenValues(values_, head_dim_, count, scratch.channels, scratch.values);
  }

 private:
  int head_dim_;
  HeadRuns keys_;
  HeadRuns values_;
};

template <typename Positions>
void AttendRows(const AttentionRows& rows, int begin, int end, Positions positions,
                const AttentionScratch& scratch) {
  for (int row = begin; row < end; ++row) {
    scratch.max[row - begin] = -__builtin_inff();
    scratch.sum[row - begin] = 0;
  }
  const size_t out_bytes = size_t(end - begin) * scratch.channels * sizeof(float);
  __builtin_memset(scratch.out, 0, out_bytes);
  const int last = rows.position(end - 1);
  int row = begin;  // the first that sees the block
  for (int first = 0; first <= last; first += kAttentionBlock) {
    const int count = MinInt(kAttentionBlock, last + 1 - first);
    positions.Widen(first, count, scratch);
    while (rows.position(row) < first) ++row;
    AttendBlock(rows, begin, row, end, first, scratch);
  }
  for (int r = begin; r < end; ++r) {
    const F32x8 divisor = Set(scratch.sum[r - begin]);
    const float* sums = scratch.out + (r - begin) * scratch.channels;
    float* out = rows.out(r);
    ForEachRun(rows.head_dim,
               [&](int i, int n) { StoreRun(Div(Load(sums + i), divisor), n, out + i); });
  }
}

// `positions_of(kv_head, num_positions)` makes the Positions of a head.
template <typename PositionsOf>
QUERN_INLINE void AttendHeads(const AttentionShape& shape, const AttentionQuery& query,
                              float* scratch_memory, const PositionsOf& positions_of) {
  const int head_dim = shape.head_dim;
  const int heads_per_kv = shape.num_heads / shape.num_kv_heads;
  const AttentionScratch scratch(scratch_memory, head_dim);
  const int num_positions = query.first_position + query.num_tokens;
  for (int head = query.head_begin; head < query.head_end;) {
    const int kv_head = head / heads_per_kv;
    const int head_end = MinInt(query.head_end, (kv_head + 1) * heads_per_kv);
    const AttentionRows rows{query, head_dim, head, head_end - head};
    const int num_rows = query.num_tokens * rows.num_heads;
    for (int row = 0; row < num_rows; row += kMaxAttentionRows) {
      AttendRows(rows, row, MinInt(row + kMaxAttentionRows, num_rows),
                 positions_of(kv_head, num_positions), scratch);
    }
    head = head_end;
  }
}

void Attention(const PagedKv& kv, const AttentionShape& shape, const AttentionQuery& query,
               float* scratch) {
  AttendHeads(shape, query, scratch, [&](int kv_head, int num_positions) {
    return HalfPositions(kv, kv_head, shape.head_dim, num_positions);
  });
}
