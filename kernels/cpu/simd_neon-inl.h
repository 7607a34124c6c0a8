// The vector operations of the kernels in NEON, eight lanes as two registers. Meaning:
// simd_generic-inl.h.

#define QUERN_INLINE inline __attribute__((always_inline))

// Whether packed_matmul-inl.h unpacks codes once for many tokens.
constexpr bool kUsesPanels = true;

struct F32x8 {
  float32x4_t lo, hi;
};
struct I32x8 {
  int32x4_t lo, hi;
};

// --- float -------------------------------------------------------------------------------------

QUERN_INLINE F32x8 Set(float v) { return {vdupq_n_f32(v), vdupq_n_f32(v)}; }
QUERN_INLINE F32x8 Zero() { return Set(0); }
QUERN_INLINE F32x8 Load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
QUERN_INLINE void Store(F32x8 v, float* p) {
  vst1q_f32(p, v.lo);
  vst1q_f32(p + 4, v.hi);
}
QUERN_INLINE F32x8 Add(F32x8 a, F32x8 b) { return {vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)}; }
QUERN_INLINE F32x8 Sub(F32x8 a, F32x8 b) { return {vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)}; }
QUERN_INLINE F32x8 Mul(F32x8 a, F32x8 b) { return {vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)}; }
QUERN_INLINE F32x8 Div(F32x8 a, F32x8 b) { return {vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)}; }
QUERN_INLINE F32x8 Fma(F32x8 a, F32x8 b, F32x8 c) {
  return {vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)};
}
QUERN_INLINE F32x8 NegFma(F32x8 a, F32x8 b, F32x8 c) {
  return {vfmsq_f32(c.lo, a.lo, b.lo), vfmsq_f32(c.hi, a.hi, b.hi)};
}
QUERN_INLINE F32x8 Max(F32x8 a, F32x8 b) {
  return {vbslq_f32(vcgtq_f32(a.lo, b.lo), a.lo, b.lo),
          vbslq_f32(vcgtq_f32(a.hi, b.hi), a.hi, b.hi)};
}
QUERN_INLINE F32x8 Min(F32x8 a, F32x8 b) {
  return {vbslq_f32(vcltq_f32(a.lo, b.lo), a.lo, b.lo),
          vbslq_f32(vcltq_f32(a.hi, b.hi), a.hi, b.hi)};
}
QUERN_INLINE F32x8 Abs(F32x8 a) { return {vabsq_f32(a.lo), vabsq_f32(a.hi)}; }

QUERN_INLINE float SumLanes(F32x8 v) {
  const float32x4_t four = vaddq_f32(v.lo, v.hi);
  return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
}
QUERN_INLINE float MaxLane(F32x8 v) {
  float lane[8];
  Store(v, lane);
  float max = lane[0];
  for (int i = 1; i < 8; ++i) max = max > lane[i] ? max : lane[i];
  return max;
}

QUERN_INLINE float FirstLane(F32x8 v) { return vgetq_lane_f32(v.lo, 0); }

QUERN_INLINE void TransposeFour(float32x4_t& a, float32x4_t& b, float32x4_t& c, float32x4_t& d) {
  const float32x4x2_t ab = vtrnq_f32(a, b);
  const float32x4x2_t cd = vtrnq_f32(c, d);
  a = vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0]));
  b = vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1]));
  c = vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0]));
  d = vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1]));
}
// Lane j of row i becomes lane i of row j.
QUERN_INLINE void Transpose(F32x8 (&rows)[8]) {
  TransposeFour(rows[0].lo, rows[1].lo, rows[2].lo, rows[3].lo);
  TransposeFour(rows[0].hi, rows[1].hi, rows[2].hi, rows[3].hi);
  TransposeFour(rows[4].lo, rows[5].lo, rows[6].lo, rows[7].lo);
  TransposeFour(rows[4].hi, rows[5].hi, rows[6].hi, rows[7].hi);
  for (int i = 0; i < 4; ++i) {
    const float32x4_t upper_right = rows[i].hi;
    rows[i].hi = rows[i + 4].lo;
    rows[i + 4].lo = upper_right;
  }
}

// --- float and integers ------------------------------------------------------------------------

QUERN_INLINE I32x8 RoundToInt(F32x8 v) { return {vcvtnq_s32_f32(v.lo), vcvtnq_s32_f32(v.hi)}; }
QUERN_INLINE F32x8 ToFloat(I32x8 v) { return {vcvtq_f32_s32(v.lo), vcvtq_f32_s32(v.hi)}; }
QUERN_INLINE F32x8 PowerOfTwo(I32x8 n) {
  const int32x4_t bias = vdupq_n_s32(127);
  return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.lo, bias), 23)),
          vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.hi, bias), 23))};
}
QUERN_INLINE F32x8 LoadHalf(const uint16_t* p) {
  const float16x8_t half = vreinterpretq_f16_u16(vld1q_u16(p));
  return {vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)};
}
QUERN_INLINE F32x8 LoadBFloat(const uint16_t* p) {
  const uint16x8_t half = vld1q_u16(p);
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(half), 16)),
          vreinterpretq_f32_u32(vshll_high_n_u16(half, 16))};
}
QUERN_INLINE void StoreHalf(F32x8 v, uint16_t* p) {
  vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(v.lo), v.hi)));
}
QUERN_INLINE void StoreInt8(I32x8 v, int8_t* p) {
  vst1_s8(p, vmovn_s16(vcombine_s16(vmovn_s32(v.lo), vmovn_s32(v.hi))));
}

// --- integers ----------------------------------------------------------------------------------

QUERN_INLINE I32x8 SetInt(int32_t v) { return {vdupq_n_s32(v), vdupq_n_s32(v)}; }
QUERN_INLINE I32x8 ZeroInt() { return SetInt(0); }
QUERN_INLINE I32x8 AddInt(I32x8 a, I32x8 b) {
  return {vaddq_s32(a.lo, b.lo), vaddq_s32(a.hi, b.hi)};
}
QUERN_INLINE I32x8 MulInt(I32x8 a, I32x8 b) {
  return {vmulq_s32(a.lo, b.lo), vmulq_s32(a.hi, b.hi)};
}
template <int kBits>
QUERN_INLINE I32x8 ShiftRightInt(I32x8 v) {
  return {vshrq_n_s32(v.lo, kBits), vshrq_n_s32(v.hi, kBits)};
}
QUERN_INLINE int32_t SumLanesInt(I32x8 v) { return vaddvq_s32(vaddq_s32(v.lo, v.hi)); }
QUERN_INLINE I32x8 LoadBytesAsInt(const uint8_t* p) {
  const uint16x8_t words = vmovl_u8(vld1_u8(p));
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words))),
          vreinterpretq_s32_u32(vmovl_high_u16(words))};
}
template <int kShift, int kMask>
QUERN_INLINE I32x8 FieldInt(I32x8 v) {
  // A shift by 0 is no NEON shift.
  if constexpr (kShift != 0) v = {vshrq_n_s32(v.lo, kShift), vshrq_n_s32(v.hi, kShift)};
  const int32x4_t mask = vdupq_n_s32(kMask);
  return {vandq_s32(v.lo, mask), vandq_s32(v.hi, mask)};
}
QUERN_INLINE void Prefetch(const void* p, size_t near_bytes, size_t far_bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  __builtin_prefetch(reinterpret_cast<const void*>(address + far_bytes), 0, 2);
  __builtin_prefetch(reinterpret_cast<const void*>(address + near_bytes), 0, 3);
}
