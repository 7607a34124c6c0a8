// Vectors over rows, sixteen of them, in AVX-512 F, BW, DQ and VNNI; with GFNI where the file that
// includes this is compiled for it. Meaning: simd_generic-inl.h and rows_8-inl.h.

constexpr int kRowsPerVector = 16;

using RowFloats = __m512;
using RowInts = __m512i;
using RowBytes = __m512i;

QUERN_INLINE RowFloats ZeroRows() { return _mm512_setzero_ps(); }
QUERN_INLINE RowFloats SetRows(float v) { return _mm512_set1_ps(v); }
QUERN_INLINE RowFloats LoadRows(const float* p) { return _mm512_loadu_ps(p); }
QUERN_INLINE RowFloats LoadRowHalves(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
QUERN_INLINE RowFloats LoadRowBFloats(const uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
QUERN_INLINE RowInts SetRowInts(int32_t v) { return _mm512_set1_epi32(v); }
QUERN_INLINE RowInts LoadRowBytesAsInt(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
QUERN_INLINE RowBytes LoadRowBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
QUERN_INLINE RowBytes BroadcastToRows(const int8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, sizeof(v));
  return _mm512_set1_epi32(v);
}

QUERN_INLINE void Store(RowFloats v, float* p) { _mm512_storeu_ps(p, v); }
QUERN_INLINE void StoreBytes(RowBytes v, uint8_t* p) { _mm512_storeu_si512(p, v); }
QUERN_INLINE RowFloats Mul(RowFloats a, RowFloats b) { return _mm512_mul_ps(a, b); }
QUERN_INLINE RowFloats Fma(RowFloats a, RowFloats b, RowFloats c) {
  return _mm512_fmadd_ps(a, b, c);
}
QUERN_INLINE RowFloats ToFloat(RowInts v) { return _mm512_cvtepi32_ps(v); }
QUERN_INLINE RowInts AddInt(RowInts a, RowInts b) { return _mm512_add_epi32(a, b); }
template <int kBits>
QUERN_INLINE RowInts ShiftRightInt(RowInts v) {
  return _mm512_srai_epi32(v, kBits);
}
QUERN_INLINE RowInts MulInt(RowInts a, RowInts b) { return _mm512_mullo_epi32(a, b); }
QUERN_INLINE RowBytes Or(RowBytes a, RowBytes b) { return _mm512_or_si512(a, b); }

#ifdef __GFNI__
// The bit matrix for which an affine transformation of a byte is (byte >> shift) & mask: row 7 - i
// selects bit i of the result (Intel SDM, GF2P8AFFINEQB).
constexpr uint64_t FieldMatrix(int shift, int mask) {
  uint64_t matrix = 0;
  for (int i = 0; i < 8; ++i) {
    if ((mask >> i & 1) != 0) matrix |= uint64_t{1} << (i + shift) << (8 * (7 - i));
  }
  return matrix;
}
#endif

template <int kShift, int kMask>
QUERN_INLINE RowBytes Field(RowBytes v) {
  if constexpr (kShift == 0) return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(kMask)));
#ifdef __GFNI__
  constexpr auto kMatrix = static_cast<int64_t>(FieldMatrix(kShift, kMask));
  return _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(kMatrix), 0);
#else
  return _mm512_and_si512(_mm512_srli_epi16(v, kShift), _mm512_set1_epi8(static_cast<char>(kMask)));
#endif
}

QUERN_INLINE RowInts DotBytes(RowBytes codes, RowBytes activations, RowInts sum) {
  return _mm512_dpbusd_epi32(sum, codes, activations);
}
