// Activations as the low-bit kernels read them.
//
// One record a token: planes of [padded cols] int8, where each group fills whole chunks with zeros,
// then [groups] scales (float), then of each plane [groups] times minus the sum of its integers
// (int32). int8 has one plane. int16 has two, value = 256 * first + second: the first in [-127,
// 127], the second in [-128, 127]. Records have an odd number of 64-byte lines, so that those of
// several tokens do not meet in the same cache sets.

struct ActivationLayout {
  explicit ActivationLayout(const ActivationFormat& format)
      : groups(format.cols, format.group_size),
        planes(format.precision == ActivationPrecision::kInt16 ? 2 : 1) {
    plane_bytes = groups.total_chunks() * kChunk;
    const int64_t lines =
        CeilDiv(planes * plane_bytes + int64_t{groups.count} * (4 + 4 * planes), 64);
    record_bytes = (lines | 1) * 64;
  }
  int64_t scales_offset() const { return planes * plane_bytes; }
  int64_t sums_offset(int plane) const {
    return scales_offset() + int64_t{groups.count} * 4 * (1 + plane);
  }

  Groups groups;
  int planes;
  int64_t plane_bytes;
  int64_t record_bytes;
};

size_t ActivationBytes(const ActivationFormat& format, int num_tokens) {
  return static_cast<size_t>(num_tokens * ActivationLayout(format).record_bytes);
}

// A group of one token: its floats and where they go.
struct GroupRecord {
  int8_t* plane[2];
  float* scale;
  int32_t* negated_sum[2];
};

// One group of `n` floats into `chunks` whole chunks of kPlanes planes.
template <int kActivationPlanes>
QUERN_INLINE void QuantizeGroup(const float* x, int n, int chunks, const GroupRecord& out) {
  constexpr float kLargest = kActivationPlanes == 2 ? 127.0f * 256.0f : 127.0f;
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
  const float scale = zero ? 0.0f : largest / kLargest;
  const F32x8 divisor = Set(zero ? 1.0f : scale);
  I32x8 sum[kActivationPlanes];
  for (I32x8& s : sum) s = ZeroInt();
  for (int i = 0; i < chunks * kChunk; i += 8) {
    F32x8 v = i + 8 <= n ? Load(x + i) : LoadPart(x + i, i < n ? n - i : 0);
    v = Div(v, divisor);
    I32x8 q[2];
    q[0] = RoundToInt(Min(Max(v, Set(-kLargest)), Set(kLargest)));
    if constexpr (kActivationPlanes == 2) {
      const I32x8 high = ShiftRightInt<8>(AddInt(q[0], SetInt(128)));
      q[1] = AddInt(q[0], MulInt(high, SetInt(-256)));
      q[0] = high;
    }
    for (int p = 0; p < kActivationPlanes; ++p) {
      sum[p] = AddInt(sum[p], q[p]);
      StoreInt8(q[p], out.plane[p] + i);
    }
  }
  *out.scale = scale + SumLanes(poison);
  for (int p = 0; p < kActivationPlanes; ++p) *out.negated_sum[p] = -SumLanesInt(sum[p]);
}

void QuantizeActivations(const ActivationFormat& format, const float* x, int64_t x_stride,
                         int token_begin, int token_end, uint8_t* out) {
  const ActivationLayout layout(format);
  for (int token = token_begin; token < token_end; ++token) {
    uint8_t* record = out + token * layout.record_bytes;
    const float* from = x + token * x_stride;
    int64_t value = 0;
    for (int group = 0; group < layout.groups.count; ++group) {
      const int begin = group * format.group_size;
      const int n = MinInt(format.group_size, format.cols - begin);
      const int chunks = layout.groups.chunks(group);
      GroupRecord to;
      to.scale = reinterpret_cast<float*>(record + layout.scales_offset()) + group;
      for (int p = 0; p < layout.planes; ++p) {
        to.plane[p] = reinterpret_cast<int8_t*>(record + p * layout.plane_bytes + value);
        to.negated_sum[p] = reinterpret_cast<int32_t*>(record + layout.sums_offset(p)) + group;
      }
      if (layout.planes == 1) {
        QuantizeGroup<1>(from + begin, n, chunks, to);
      } else {
        QuantizeGroup<2>(from + begin, n, chunks, to);
      }
      value += int64_t{chunks} * kChunk;
    }
    // The filling up to the end is never read but by copies.
    uint8_t* end = record + layout.sums_offset(layout.planes);
    __builtin_memset(end, 0, static_cast<size_t>(record + layout.record_bytes - end));
  }
}
