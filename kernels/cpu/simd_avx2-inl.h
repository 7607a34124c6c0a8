// The vector operations of the kernels in AVX2, FMA and F16C. Meaning: simd_generic-inl.h.

#define QUERN_INLINE inline __attribute__((always_inline))

// Whether packed_matmul-inl.h unpacks codes once for many tokens.
constexpr bool kUsesPanels = true;

using F32x8 = __m256;
using I32x8 = __m256i;
using I16x16 = __m256i;
using U8x32 = __m256i;

// --- float -------------------------------------------------------------------------------------

QUERN_INLINE F32x8 Set(float v) { return _mm256_set1_ps(v); }
QUERN_INLINE F32x8 Zero() { return _mm256_setzero_ps(); }
QUERN_INLINE F32x8 Load(const float* p) { return _mm256_loadu_ps(p); }
QUERN_INLINE void Store(F32x8 v, float* p) { _mm256_storeu_ps(p, v); }
QUERN_INLINE F32x8 Add(F32x8 a, F32x8 b) { return _mm256_add_ps(a, b); }
QUERN_INLINE F32x8 Sub(F32x8 a, F32x8 b) { return _mm256_sub_ps(a, b); }
QUERN_INLINE F32x8 Mul(F32x8 a, F32x8 b) { return _mm256_mul_ps(a, b); }
QUERN_INLINE F32x8 Div(F32x8 a, F32x8 b) { return _mm256_div_ps(a, b); }
QUERN_INLINE F32x8 Fma(F32x8 a, F32x8 b, F32x8 c) { return _mm256_fmadd_ps(a, b, c); }
QUERN_INLINE F32x8 NegFma(F32x8 a, F32x8 b, F32x8 c) { return _mm256_fnmadd_ps(a, b, c); }
QUERN_INLINE F32x8 Max(F32x8 a, F32x8 b) { return _mm256_max_ps(a, b); }
QUERN_INLINE F32x8 Min(F32x8 a, F32x8 b) { return _mm256_min_ps(a, b); }
QUERN_INLINE F32x8 Abs(F32x8 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }

QUERN_INLINE float SumLanes(F32x8 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
QUERN_INLINE float MaxLane(F32x8 v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

QUERN_INLINE float FirstLane(F32x8 v) { return _mm256_cvtss_f32(v); }
// Lane j of row i becomes lane i of row j.
QUERN_INLINE void Transpose(F32x8 (&rows)[8]) {
  __m256 pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

// --- float and integers ------------------------------------------------------------------------

QUERN_INLINE I32x8 RoundToInt(F32x8 v) { return _mm256_cvtps_epi32(v); }
QUERN_INLINE F32x8 ToFloat(I32x8 v) { return _mm256_cvtepi32_ps(v); }
QUERN_INLINE F32x8 PowerOfTwo(I32x8 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
QUERN_INLINE F32x8 LoadHalf(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
QUERN_INLINE F32x8 LoadBFloat(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
QUERN_INLINE void StoreHalf(F32x8 v, uint16_t* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
QUERN_INLINE void StoreInt8(I32x8 v, int8_t* p) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

// --- integers ----------------------------------------------------------------------------------

QUERN_INLINE I32x8 ZeroInt() { return _mm256_setzero_si256(); }
QUERN_INLINE I32x8 SetInt(int32_t v) { return _mm256_set1_epi32(v); }
QUERN_INLINE I32x8 AddInt(I32x8 a, I32x8 b) { return _mm256_add_epi32(a, b); }
template <int kBits>
QUERN_INLINE I32x8 ShiftRightInt(I32x8 v) {
  return _mm256_srai_epi32(v, kBits);
}
QUERN_INLINE I32x8 MulInt(I32x8 a, I32x8 b) { return _mm256_mullo_epi32(a, b); }
QUERN_INLINE int32_t SumLanesInt(I32x8 v) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
QUERN_INLINE I32x8 LoadBytesAsInt(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
template <int kShift, int kMask>
QUERN_INLINE I32x8 FieldInt(I32x8 v) {
  return _mm256_and_si256(_mm256_srli_epi32(v, kShift), _mm256_set1_epi32(kMask));
}
QUERN_INLINE U8x32 LoadBytes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
QUERN_INLINE void StoreBytes(U8x32 v, uint8_t* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
QUERN_INLINE U8x32 Broadcast4(const int8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, sizeof(v));
  return _mm256_set1_epi32(v);
}
QUERN_INLINE U8x32 Or(U8x32 a, U8x32 b) { return _mm256_or_si256(a, b); }
template <int kShift, int kMask>
QUERN_INLINE U8x32 Field(U8x32 v) {
  if constexpr (kShift != 0) v = _mm256_srli_epi16(v, kShift);
  return _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>(kMask)));
}
QUERN_INLINE I16x16 ZeroInt16() { return _mm256_setzero_si256(); }
QUERN_INLINE I16x16 AddInt16(I16x16 a, I16x16 b) { return _mm256_add_epi16(a, b); }
QUERN_INLINE I16x16 MulBytes(U8x32 a, U8x32 b) { return _mm256_maddubs_epi16(a, b); }
template <int kFactor>
QUERN_INLINE I32x8 AddPairs(I16x16 v, I32x8 sum) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(v, _mm256_set1_epi16(kFactor)));
}
QUERN_INLINE void Prefetch(const void* p, size_t near_bytes, size_t far_bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  _mm_prefetch(reinterpret_cast<const char*>(address + far_bytes), _MM_HINT_T1);
  _mm_prefetch(reinterpret_cast<const char*>(address + near_bytes), _MM_HINT_T0);
}
