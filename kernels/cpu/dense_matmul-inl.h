// Dense matrices times float activations: one chain of multiply-adds per output, ascending in the
// input. A chain broken between blocks of columns goes on from y, which holds it exactly.

// Columns of a panel and tokens that a pass keeps in cache: 512 columns of a panel in L1, with the
// same columns of 96 tokens in L2.
constexpr int kDenseCols = 512;
constexpr int kDenseTokens = 96;
constexpr int kDenseMaxTokens = kRowsPerVector == 16 ? 12 : 6;

struct F32Element {
  static constexpr int kBytes = 4;
  QUERN_INLINE static RowFloats Load(const uint8_t* p) {
    return LoadRows(reinterpret_cast<const float*>(p));
  }
};
struct F16Element {
  static constexpr int kBytes = 2;
  QUERN_INLINE static RowFloats Load(const uint8_t* p) {
    return LoadRowHalves(reinterpret_cast<const uint16_t*>(p));
  }
};
struct BF16Element {
  static constexpr int kBytes = 2;
  QUERN_INLINE static RowFloats Load(const uint8_t* p) {
    return LoadRowBFloats(reinterpret_cast<const uint16_t*>(p));
  }
};

// kPanels panels, `panel_bytes` apart, times kTokens tokens.
template <typename Element, int kTokens, int kPanels>
void MultiplyPanels(const uint8_t* panel, int64_t panel_bytes, int cols, const float* x,
                    int64_t x_stride, bool accumulate, float* y, int64_t y_stride) {
  constexpr int kPanelVectors = kPanelRows / kRowsPerVector;
  constexpr int kVectors = kPanelVectors * kPanels;
  constexpr int kColumnBytes = kPanelRows * Element::kBytes;
  RowFloats out[kTokens][kVectors];
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectors; ++v) {
      out[t][v] = accumulate ? LoadRows(y + t * y_stride + kRowsPerVector * v) : ZeroRows();
    }
  }
  for (int k = 0; k < cols; ++k, panel += kColumnBytes) {
    RowFloats weights[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const uint8_t* column = panel + v / kPanelVectors * panel_bytes;
      if (v % kPanelVectors == 0 && k % (64 / kColumnBytes) == 0) {
        Prefetch(column, kNearPrefetch, kFarPrefetch);
      }
      weights[v] = Element::Load(column + v % kPanelVectors * kRowsPerVector * Element::kBytes);
    }
    for (int t = 0; t < kTokens; ++t) {
      const RowFloats value = SetRows(x[t * x_stride + k]);
      for (int v = 0; v < kVectors; ++v) out[t][v] = Fma(value, weights[v], out[t][v]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectors; ++v) Store(out[t][v], y + t * y_stride + kRowsPerVector * v);
  }
}

// The 32 rows of a block from `panel` on, kTokens tokens.
template <typename Element, int kTokens>
QUERN_INLINE void MultiplyDenseBlock(const uint8_t* panel, int64_t panel_bytes, int cols,
                                     const float* x, int64_t x_stride, bool accumulate, float* y,
                                     int64_t y_stride) {
  // As many accumulators as registers hold.
  constexpr int kPanels = kRowsPerVector == 16 || kTokens <= 3 ? 2 : 1;
  for (int p = 0; p < 2; p += kPanels) {
    MultiplyPanels<Element, kTokens, kPanels>(panel + p * panel_bytes, panel_bytes, cols, x,
                                              x_stride, accumulate, y + p * kPanelRows, y_stride);
  }
}

template <typename Element>
void MultiplyDenseTokens(int num_tokens, const uint8_t* panel, int64_t panel_bytes, int cols,
                         const float* x, int64_t x_stride, bool accumulate, float* y,
                         int64_t y_stride) {
  switch (num_tokens) {
#define QUERN_CASE(tokens)                                                              \
  case tokens:                                                                          \
    if constexpr (tokens <= kDenseMaxTokens) {                                          \
      return MultiplyDenseBlock<Element, tokens>(panel, panel_bytes, cols, x, x_stride, \
                                                 accumulate, y, y_stride);              \
    }                                                                                   \
    break;
    QUERN_CASE(1)
    QUERN_CASE(2)
    QUERN_CASE(3)
    QUERN_CASE(4)
    QUERN_CASE(5)
    QUERN_CASE(6)
    QUERN_CASE(7)
    QUERN_CASE(8)
    QUERN_CASE(9)
    QUERN_CASE(10)
    QUERN_CASE(11)
    QUERN_CASE(12)
#undef QUERN_CASE
  }
  __builtin_unreachable();
}

template <typename Element>
void DenseMatmul(const PrepackedMatrix& w, const float* x, int64_t x_stride, int num_tokens,
                 int row_begin, int row_end, bool accumulate, float* y, int64_t y_stride) {
  constexpr int64_t kColumnBytes = kPanelRows * Element::kBytes;
  const int64_t panel_bytes = w.cols * kColumnBytes;
  // With few tokens every weight is read once, and whole panels keep that one linear stream.
  const int most_cols = num_tokens <= kDenseMaxTokens ? w.cols : kDenseCols;
  for (int pass = 0; pass < num_tokens; pass += kDenseTokens) {
    const int pass_end = MinInt(pass + kDenseTokens, num_tokens);
    for (int col = 0; col < w.cols; col += most_cols) {
      const int cols = MinInt(most_cols, w.cols - col);
      for (int row = row_begin; row < row_end; row += kRowBlock) {
        const uint8_t* panel = w.data + row / kPanelRows * panel_bytes + col * kColumnBytes;
        const int rows = MinInt(kRowBlock, row_end - row);
        for (int token = pass; token < pass_end;) {
          const int tokens = NextTokens(pass_end - token, kDenseMaxTokens);
          WithWholeBlock(tokens, rows, y + token * y_stride + row, y_stride,
                         [&](float* out, int64_t stride) {
                           MultiplyDenseTokens<Element>(tokens, panel, panel_bytes, cols,
                                                        x + token * x_stride + col, x_stride,
                                                        accumulate || col > 0, out, stride);
                         });
          token += tokens;
        }
      }
    }
  }
}

void MatmulDense(const PrepackedMatrix& w, const float* x, int64_t x_stride, int num_tokens,
                 int row_begin, int row_end, bool accumulate, float* y, int64_t y_stride) {
  switch (w.dense_type) {
    case DenseMatrix::Type::kF32:
      return DenseMatmul<F32Element>(w, x, x_stride, num_tokens, row_begin, row_end, accumulate, y,
                                     y_stride);
    case DenseMatrix::Type::kF16:
      return DenseMatmul<F16Element>(w, x, x_stride, num_tokens, row_begin, row_end, accumulate, y,
                                     y_stride);
    case DenseMatrix::Type::kBF16:
      return DenseMatmul<BF16Element>(w, x, x_stride, num_tokens, row_begin, row_end, accumulate, y,
                                      y_stride);
  }
  __builtin_unreachable();
}
