// The vector operations of the kernels on the compiler's portable vectors: what this CPU's baseline
// instruction set has (SSE2, NEON). Same names and meaning as simd_avx2-inl.h, but Fma rounds
// twice.

#define QUERN_INLINE inline __attribute__((always_inline))

// Whether packed_matmul-inl.h unpacks codes once for many tokens.
constexpr bool kUsesPanels = false;

typedef float F32x8 __attribute__((vector_size(32)));
typedef int32_t I32x8 __attribute__((vector_size(32)));
typedef uint32_t U32x8 __attribute__((vector_size(32)));
typedef int16_t I16x16 __attribute__((vector_size(32)));
typedef uint16_t U16x16 __attribute__((vector_size(32)));
typedef uint16_t U16x8 __attribute__((vector_size(16)));
typedef uint8_t U8x8 __attribute__((vector_size(8)));
typedef uint8_t U8x32 __attribute__((vector_size(32)));

// --- float -------------------------------------------------------------------------------------

QUERN_INLINE F32x8 Set(float v) { return F32x8{v, v, v, v, v, v, v, v}; }
QUERN_INLINE F32x8 Zero() { return F32x8{}; }
QUERN_INLINE F32x8 Load(const float* p) {
  F32x8 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
QUERN_INLINE void Store(F32x8 v, float* p) { __builtin_memcpy(p, &v, sizeof(v)); }
QUERN_INLINE F32x8 Add(F32x8 a, F32x8 b) { return a + b; }
QUERN_INLINE F32x8 Sub(F32x8 a, F32x8 b) { return a - b; }
QUERN_INLINE F32x8 Mul(F32x8 a, F32x8 b) { return a * b; }
QUERN_INLINE F32x8 Div(F32x8 a, F32x8 b) { return a / b; }
// a * b + c
QUERN_INLINE F32x8 Fma(F32x8 a, F32x8 b, F32x8 c) { return a * b + c; }
// c - a * b
QUERN_INLINE F32x8 NegFma(F32x8 a, F32x8 b, F32x8 c) { return c - a * b; }
// b where either is NaN.
QUERN_INLINE F32x8 Max(F32x8 a, F32x8 b) { return a > b ? a : b; }
QUERN_INLINE F32x8 Min(F32x8 a, F32x8 b) { return a < b ? a : b; }
QUERN_INLINE F32x8 Abs(F32x8 a) { return (F32x8)((U32x8)a & 0x7fffffffu); }

QUERN_INLINE float SumLanes(F32x8 v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
QUERN_INLINE float MaxLane(F32x8 v) {
  float max = v[0];
  for (int i = 1; i < 8; ++i) max = max > v[i] ? max : v[i];
  return max;
}

QUERN_INLINE float FirstLane(F32x8 v) { return v[0]; }
// Lane j of row i becomes lane i of row j.
QUERN_INLINE void Transpose(F32x8 (&rows)[8]) {
  F32x8 columns[8];
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) columns[j][i] = rows[i][j];
  }
  for (int i = 0; i < 8; ++i) rows[i] = columns[i];
}

// --- float and integers ------------------------------------------------------------------------

// To the nearest, ties to even; |v| < 2^22.
QUERN_INLINE I32x8 RoundToInt(F32x8 v) { return (I32x8)(v + Set(12582912.0f)) - 0x4b400000; }
QUERN_INLINE F32x8 ToFloat(I32x8 v) { return __builtin_convertvector(v, F32x8); }
// 2^n, n in [-126, 127].
QUERN_INLINE F32x8 PowerOfTwo(I32x8 n) { return (F32x8)((n + 127) << 23); }

QUERN_INLINE F32x8 LoadHalf(const uint16_t* p) {
  U16x8 h;
  __builtin_memcpy(&h, p, sizeof(h));
  const U32x8 bits = __builtin_convertvector(h, U32x8);
  // The exponent is rebased by a product, which also makes subnormals right.
  const F32x8 magnitude = (F32x8)((bits & 0x7fffu) << 13) * Set(0x1p112f);
  const U32x8 special = (U32x8)((bits & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (F32x8)((U32x8)magnitude | special | (bits & 0x8000u) << 16);
}
QUERN_INLINE F32x8 LoadBFloat(const uint16_t* p) {
  U16x8 h;
  __builtin_memcpy(&h, p, sizeof(h));
  return (F32x8)(__builtin_convertvector(h, U32x8) << 16);
}
QUERN_INLINE uint16_t ToHalf(float v) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (bits >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and beyond
  if (bits < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 0.5f;
    __builtin_memcpy(&bits, &magnitude, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  const uint32_t rounded = bits + 0xfffu + (bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}
QUERN_INLINE void StoreHalf(F32x8 v, uint16_t* p) {
  for (int i = 0; i < 8; ++i) p[i] = ToHalf(v[i]);
}
// The low byte of each lane.
QUERN_INLINE void StoreInt8(I32x8 v, int8_t* p) {
  for (int i = 0; i < 8; ++i) p[i] = static_cast<int8_t>(v[i]);
}

// --- integers ----------------------------------------------------------------------------------

QUERN_INLINE I32x8 ZeroInt() { return I32x8{}; }
QUERN_INLINE I32x8 SetInt(int32_t v) { return I32x8{v, v, v, v, v, v, v, v}; }
QUERN_INLINE I32x8 AddInt(I32x8 a, I32x8 b) { return a + b; }
QUERN_INLINE I32x8 MulInt(I32x8 a, I32x8 b) { return a * b; }
// Floor of v / 2^kBits.
template <int kBits>
QUERN_INLINE I32x8 ShiftRightInt(I32x8 v) {
  return v >> kBits;
}
QUERN_INLINE int32_t SumLanesInt(I32x8 v) {
  int32_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += v[i];
  return sum;
}
// Eight bytes as eight integers.
QUERN_INLINE I32x8 LoadBytesAsInt(const uint8_t* p) {
  U8x8 bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
  return __builtin_convertvector(bytes, I32x8);
}
// (v >> kShift) & kMask of each lane, which is not negative.
template <int kShift, int kMask>
QUERN_INLINE I32x8 FieldInt(I32x8 v) {
  return (v >> kShift) & kMask;
}
QUERN_INLINE U8x32 LoadBytes(const uint8_t* p) {
  U8x32 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
QUERN_INLINE void StoreBytes(U8x32 v, uint8_t* p) { __builtin_memcpy(p, &v, sizeof(v)); }
// The four bytes at p in each 32-bit lane.
QUERN_INLINE U8x32 Broadcast4(const int8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, sizeof(v));
  return (U8x32)SetInt(v);
}
QUERN_INLINE U8x32 Or(U8x32 a, U8x32 b) { return a | b; }
// (byte >> kShift) & kMask of each byte; kMask < 2^(8 - kShift).
template <int kShift, int kMask>
QUERN_INLINE U8x32 Field(U8x32 v) {
  return (U8x32)((U16x16)v >> kShift) & static_cast<uint8_t>(kMask);
}
QUERN_INLINE I16x16 ZeroInt16() { return I16x16{}; }
QUERN_INLINE I16x16 AddInt16(I16x16 a, I16x16 b) { return a + b; }
// Products of unsigned bytes a and signed bytes b, added in pairs; the caller keeps within int16.
QUERN_INLINE I16x16 MulBytes(U8x32 a, U8x32 b) {
  const I16x16 even = (I16x16)((U16x16)a & 0xffu) * ((I16x16)((U16x16)b << 8) >> 8);
  return even + (I16x16)((U16x16)a >> 8) * ((I16x16)b >> 8);
}
// sum + kFactor * (pairs of v added).
template <int kFactor>
QUERN_INLINE I32x8 AddPairs(I16x16 v, I32x8 sum) {
  const I32x8 wide = (I32x8)v;
  return sum + (((I32x8)((U32x8)wide << 16) >> 16) + (wide >> 16)) * kFactor;
}
QUERN_INLINE void Prefetch(const void* p, size_t near_bytes, size_t far_bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  __builtin_prefetch(reinterpret_cast<const void*>(address + far_bytes), 0, 2);
  __builtin_prefetch(reinterpret_cast<const void*>(address + near_bytes), 0, 3);
}
