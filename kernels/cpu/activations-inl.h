// Activations as the low-bit kernels read them.
//
// One record a token: [padded cols] int8, where each group fills whole chunks with zeros, then per
// group its scale (float) and minus the sum of its integers (int32). Records have an odd number of
// 64-byte lines, so that those of several tokens do not meet in the same cache sets.

struct ActivationLayout {
  ActivationLayout(int cols, int group_size) : groups(cols, group_size) {
    values_bytes = groups.total_chunks() * kChunk;
    const int64_t lines = CeilDiv(values_bytes + int64_t{groups.count} * 8, 64);
    record_bytes = (lines | 1) * 64;
  }
  int64_t scales_offset() const { return values_bytes; }
  int64_t sums_offset() const { return values_bytes + int64_t{groups.count} * 4; }

  Groups groups;
  int64_t values_bytes;
  int64_t record_bytes;
};

size_t ActivationBytes(int num_tokens, int cols, int group_size) {
  return static_cast<size_t>(num_tokens * ActivationLayout(cols, group_size).record_bytes);
}

// One group of `n` floats into `chunks` whole chunks.
QUERN_INLINE void QuantizeGroup(const float* x, int n, int chunks, int8_t* values, float* scale_out,
                                int32_t* negated_sum) {
  F32x8 max = Zero();
  // 0 * x summed: 0, or NaN as soon as a NaN or an infinity is among them.
  F32x8 poison = Zero();
  for (int i = 0; i < n; i += 8) {
    const F32x8 v = n - i >= 8 ? Load(x + i) : LoadPart(x + i, n - i);
    max = Max(max, Abs(v));
    poison = Fma(v, Zero(), poison);
  }
  const float largest = MaxLane(max);
  // A scale so small that it is subnormal would lose its precision; such a group is zero.
  const bool zero = !(largest >= 0x1p-100f);
  const float scale = zero ? 0.0f : largest / 127.0f;
  const F32x8 divisor = Set(zero ? 1.0f : scale);
  I32x8 sum = ZeroInt();
  for (int i = 0; i < chunks * kChunk; i += 8) {
    F32x8 v = i + 8 <= n ? Load(x + i) : LoadPart(x + i, i < n ? n - i : 0);
    v = Div(v, divisor);
    const I32x8 q = RoundToInt(Min(Max(v, Set(-127.0f)), Set(127.0f)));
    sum = AddInt(sum, q);
    StoreInt8(q, values + i);
  }
  *scale_out = scale + SumLanes(poison);
  *negated_sum = -SumLanesInt(sum);
}

void QuantizeActivations(const float* x, int64_t x_stride, int token_begin, int token_end,
                         int /*num_tokens*/, int cols, int group_size, uint8_t* out) {
  const ActivationLayout layout(cols, group_size);
  for (int token = token_begin; token < token_end; ++token) {
    uint8_t* record = out + token * layout.record_bytes;
    const float* from = x + token * x_stride;
    int8_t* values = reinterpret_cast<int8_t*>(record);
    float* scales = reinterpret_cast<float*>(record + layout.scales_offset());
    int32_t* sums = reinterpret_cast<int32_t*>(record + layout.sums_offset());
    for (int group = 0; group < layout.groups.count; ++group) {
      const int begin = group * group_size;
      const int chunks = layout.groups.chunks(group);
      QuantizeGroup(from + begin, MinInt(group_size, cols - begin), chunks, values, scales + group,
                    sums + group);
      values += chunks * kChunk;
    }
    // The filling up to the end is never read but by copies.
    uint8_t* end = record + layout.sums_offset() + int64_t{layout.groups.count} * 4;
    __builtin_memset(end, 0, static_cast<size_t>(record + layout.record_bytes - end));
  }
}
