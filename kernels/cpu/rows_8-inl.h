// Vectors over rows, eight of them: see packed_matmul-inl.h.

constexpr int kRowsPerVector = 8;

using RowFloats = F32x8;
using RowInts = I32x8;
using RowPairs = I16x16;  // two sums of a pair of products of each row
using RowBytes = U8x32;   // four codes, or four activations, of each row

QUERN_INLINE RowFloats ZeroRows() { return Zero(); }
QUERN_INLINE RowFloats SetRows(float v) { return Set(v); }
QUERN_INLINE RowFloats LoadRows(const float* p) { return Load(p); }
QUERN_INLINE RowFloats LoadRowHalves(const uint16_t* p) { return LoadHalf(p); }
QUERN_INLINE RowFloats LoadRowBFloats(const uint16_t* p) { return LoadBFloat(p); }
QUERN_INLINE RowInts SetRowInts(int32_t v) { return SetInt(v); }
QUERN_INLINE RowInts LoadRowBytesAsInt(const uint8_t* p) { return LoadBytesAsInt(p); }
QUERN_INLINE RowBytes LoadRowBytes(const uint8_t* p) { return LoadBytes(p); }
QUERN_INLINE RowBytes BroadcastToRows(const int8_t* p) { return Broadcast4(p); }
