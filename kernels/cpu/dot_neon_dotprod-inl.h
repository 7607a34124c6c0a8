// sdot on vectors of four rows. It multiplies signed bytes, so 8-bit codes are multiplied as two
// halves of four bits, the upper with a sum of its own.

template <int kBits>
constexpr int kPlanes = kBits == 8 ? 2 : 1;
template <int /*kBits*/>
constexpr int kChunksPerJoin = 1 << 30;  // the sums of a whole group fit (kMaxGroupSize)

QUERN_INLINE RowInts DotBytes(RowBytes codes, RowBytes activations, RowInts sum) {
  return vdotq_s32(sum, vreinterpretq_s8_u8(codes), vreinterpretq_s8_u8(activations));
}

template <int /*kBits*/>
constexpr bool kSpillsPartials = false;

// As in dot_int16-inl.h; the first sum is the total itself.
template <int kBits, bool kFewSums>
struct DotSum {
  static constexpr int Up(int /*step*/) { return 0; }

  QUERN_INLINE void Clear() {
    if constexpr (kPlanes<kBits> == 2) upper = SetRowInts(0);
  }
  template <int kStep, int kPlane>
  QUERN_INLINE void Add(RowBytes codes, RowBytes four, RowInts& total) {
    RowInts& sum = kPlane == 1 ? upper : total;
    sum = DotBytes(codes, four, sum);
  }
  QUERN_INLINE void Join(RowInts& total) {
    if constexpr (kPlanes<kBits> == 2) total = AddInt(total, MulInt(upper, SetRowInts(16)));
  }

  RowInts upper;
};
