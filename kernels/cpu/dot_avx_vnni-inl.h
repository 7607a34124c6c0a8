// vpdpbusd on vectors of eight rows.
QUERN_INLINE RowInts DotBytes(RowBytes codes, RowBytes activations, RowInts sum) {
  return _mm256_dpbusd_avx_epi32(sum, codes, activations);
}
