// Products of bytes where the CPU adds four of them to an int32 (vpdpbusd): DotBytes.

template <int /*kBits*/>
constexpr int kPlanes = 1;
template <int /*kBits*/>
constexpr int kChunksPerJoin = 1 << 30;  // the sums of a whole group fit (kMaxGroupSize)

template <int /*kBits*/>
constexpr bool kSpillsPartials = false;

// As in dot_int16-inl.h. The sum is the total itself. Few sums would not keep the multipliers busy,
// so the odd steps get one of their own; their codes are multiplied where they lie, kUp bits above
// those of the steps before them, and the sum, no greater than one of 8-bit codes, is divided at
// the end, without a rest.
template <int kBits, bool kFewSums>
struct DotSum {
  static constexpr int kUp = kBits == 8 ? 0 : kBits;
  static constexpr bool IsOdd(int step) {
    // Steps 6 and 7 of three bits are put together of several places.
    return kFewSums && step % 2 == 1 && !(kBits == 3 && step == 7);
  }
  static constexpr int Up(int step) { return IsOdd(step) ? kUp : 0; }

  QUERN_INLINE void Clear() {
    if constexpr (kFewSums) odd = SetRowInts(0);
  }
  template <int kStep, int kPlane>
  QUERN_INLINE void Add(RowBytes codes, RowBytes four, RowInts& total) {
    RowInts& sum = IsOdd(kStep) ? odd : total;
    sum = DotBytes(codes, four, sum);
  }
  QUERN_INLINE void Join(RowInts& total) {
    if constexpr (kFewSums) total = AddInt(ShiftRightInt<kUp>(odd), total);
  }

  RowInts odd;
};
