// usdot on vectors of four rows.
QUERN_INLINE RowInts DotBytes(RowBytes codes, RowBytes activations, RowInts sum) {
  return vusdotq_s32(sum, codes, vreinterpretq_s8_u8(activations));
}
