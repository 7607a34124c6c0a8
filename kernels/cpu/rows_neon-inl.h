// Vectors over rows, four of them, in NEON. (Eight as two registers, the compiler keeps in memory.)
// Meaning: simd_generic-inl.h and rows_8-inl.h.

constexpr int kRowsPerVector = 4;

using RowFloats = float32x4_t;
using RowInts = int32x4_t;
using RowPairs = int16x8_t;
using RowBytes = uint8x16_t;

QUERN_INLINE RowFloats ZeroRows() { return vdupq_n_f32(0); }
QUERN_INLINE RowFloats SetRows(float v) { return vdupq_n_f32(v); }
QUERN_INLINE RowFloats LoadRows(const float* p) { return vld1q_f32(p); }
QUERN_INLINE RowFloats LoadRowHalves(const uint16_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
QUERN_INLINE RowFloats LoadRowBFloats(const uint16_t* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
QUERN_INLINE RowInts SetRowInts(int32_t v) { return vdupq_n_s32(v); }
QUERN_INLINE RowInts LoadRowBytesAsInt(const uint8_t* p) {
  uint32_t v;
  __builtin_memcpy(&v, p, sizeof(v));
  const uint16x8_t words = vmovl_u8(vcreate_u8(v));
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words)));
}
QUERN_INLINE RowBytes LoadRowBytes(const uint8_t* p) { return vld1q_u8(p); }
QUERN_INLINE RowBytes BroadcastToRows(const int8_t* p) {
  uint32_t v;
  __builtin_memcpy(&v, p, sizeof(v));
  return vreinterpretq_u8_u32(vdupq_n_u32(v));
}

QUERN_INLINE void Store(RowFloats v, float* p) { vst1q_f32(p, v); }
QUERN_INLINE void StoreBytes(RowBytes v, uint8_t* p) { vst1q_u8(p, v); }
QUERN_INLINE RowFloats Mul(RowFloats a, RowFloats b) { return vmulq_f32(a, b); }
QUERN_INLINE RowFloats Fma(RowFloats a, RowFloats b, RowFloats c) { return vfmaq_f32(c, a, b); }
QUERN_INLINE RowFloats ToFloat(RowInts v) { return vcvtq_f32_s32(v); }
QUERN_INLINE RowInts AddInt(RowInts a, RowInts b) { return vaddq_s32(a, b); }
template <int kBits>
QUERN_INLINE RowInts ShiftRightInt(RowInts v) {
  if constexpr (kBits == 0)
    return v;
  else
    return vshrq_n_s32(v, kBits);
}
QUERN_INLINE RowInts MulInt(RowInts a, RowInts b) { return vmulq_s32(a, b); }
QUERN_INLINE RowBytes Or(RowBytes a, RowBytes b) { return vorrq_u8(a, b); }
template <int kShift, int kMask>
QUERN_INLINE RowBytes Field(RowBytes v) {
  if constexpr (kShift != 0) v = vshrq_n_u8(v, kShift);
  // A shift of whole bytes has filled with zeros already.
  if constexpr (kMask == 0xff >> kShift) return v;
  return vandq_u8(v, vdupq_n_u8(kMask));
}

QUERN_INLINE RowPairs ZeroInt16() { return vdupq_n_s16(0); }
QUERN_INLINE RowPairs AddInt16(RowPairs a, RowPairs b) { return vaddq_s16(a, b); }
// `codes` below 128, as those of up to four bits are.
QUERN_INLINE RowPairs MulBytes(RowBytes codes, RowBytes activations) {
  const int8x16_t a = vreinterpretq_s8_u8(codes);
  const int8x16_t b = vreinterpretq_s8_u8(activations);
  return vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
}
template <int kFactor>
QUERN_INLINE RowInts AddPairs(RowPairs v, RowInts sum) {
  if constexpr (kFactor == 1) return vpadalq_s16(sum, v);
  return vmlaq_n_s32(sum, vpaddlq_s16(v), kFactor);
}
