// What the matrix kernels share: tails and blocks of tokens.

// Tokens a block of either kind of matrix takes at most.
constexpr int kMaxBlockTokens = 12;

// The first `n` < 8 floats at p, then zeros.
QUERN_INLINE F32x8 LoadPart(const float* p, int n) {
  float part[8] = {};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  return Load(part);
}

QUERN_INLINE void StorePart(F32x8 v, int n, float* p) {
  float part[8];
  Store(v, part);
  for (int i = 0; i < n; ++i) p[i] = part[i];
}

// Tokens of the next block when `left` remain: blocks as equal as they can be, none above `most`.
QUERN_INLINE int NextTokens(int left, int most) {
  return static_cast<int>(CeilDiv(left, CeilDiv(left, most)));
}

// Calls body(y, y_stride) with room for 32 whole rows: y itself, or when the block holds fewer, a
// copy of them.
template <typename Body>
QUERN_INLINE void WithWholeBlock(int num_tokens, int rows, float* y, int64_t y_stride,
                                 const Body& body) {
  if (rows == kRowBlock) return body(y, y_stride);
  float whole[kMaxBlockTokens * kRowBlock] = {};
  for (int t = 0; t < num_tokens; ++t) {
    for (int r = 0; r < rows; ++r) whole[t * kRowBlock + r] = y[t * y_stride + r];
  }
  body(whole, int64_t{kRowBlock});
  for (int t = 0; t < num_tokens; ++t) {
    for (int r = 0; r < rows; ++r) y[t * y_stride + r] = whole[t * kRowBlock + r];
  }
}
