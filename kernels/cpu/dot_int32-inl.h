// Products of bytes where the CPU adds four of them to an int32 (vpdpbusd): DotBytes.

template <int /*kBits*/>
constexpr int kPlanes = 1;
template <int /*kBits*/>
constexpr int kChunksPerJoin = 1 << 30;  // the sums of a whole group fit (kMaxGroupSize)

template <int /*kBits*/>
constexpr bool kSpillsPartials = false;

// As in dot_int16-inl.h. The sum is the total itself; a token alone has too few of them to keep
// the multipliers busy, so its odd steps get a sum of their own.
template <int kBits, bool kAlone>
struct DotSum {
  QUERN_INLINE void Clear() {
    if constexpr (kAlone) odd = SetRowInts(0);
  }
  template <int kStep, int kPlane>
  QUERN_INLINE void Add(RowBytes codes, RowBytes four, RowInts& total) {
    RowInts& sum = kAlone && kStep % 2 == 1 ? odd : total;
    sum = DotBytes(codes, four, sum);
  }
  QUERN_INLINE void Join(RowInts& total) {
    if constexpr (kAlone) total = AddInt(odd, total);
  }

  RowInts odd;
};
