// Products of bytes where the CPU adds pairs of them to int16 (vpmaddubsw) and no further.

// 8-bit codes are multiplied as two halves of four bits, since a pair of products with a whole byte
// does not fit int16.
template <int kBits>
constexpr int kPlanes = kBits == 8 ? 2 : 1;

// Chunks whose products an int16 lane can hold: a step adds at most 2 * (2^bits - 1) * 127, that is
// 762, 1778 or 3810, eight times a chunk.
template <int kBits>
constexpr int kChunksPerJoin = kBits == 2   ? 4
                               : kBits == 3 ? 2
                                            : 1;

// Whether GCC 12 keeps the totals in registers through several chunks of two planes of activations
// and spills the sums that every step needs. (Made to keep the totals in memory, 2-bit codes times
// int16 are 1.4 times as fast; other products lose by it.)
template <int kBits>
constexpr bool kSpillsPartials = kChunksPerJoin<kBits> > 1;

// code * activation summed over up to kChunksPerJoin chunks, for one vector of rows and one token.
// kFewSums: there are registers for more of them. Up: codes of a step are to come times 2^Up.
template <int kBits, bool kFewSums>
struct DotSum {
  static constexpr int Up(int /*step*/) { return 0; }

  QUERN_INLINE void Clear() {
    for (RowPairs& sum : plane) sum = ZeroInt16();
  }
  template <int kStep, int kPlane>
  QUERN_INLINE void Add(RowBytes codes, RowBytes four, RowInts& /*total*/) {
    plane[kPlane] = AddInt16(plane[kPlane], MulBytes(codes, four));
  }
  QUERN_INLINE void Join(RowInts& total) {
    total = AddPairs<1>(plane[0], total);
    if constexpr (kPlanes<kBits> == 2) total = AddPairs<16>(plane[1], total);
  }

  RowPairs plane[kPlanes<kBits>];
};
