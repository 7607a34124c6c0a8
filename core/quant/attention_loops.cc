#include "core/quant/attention_loops.h"

#include <algorithm>
#include <cmath>

#include "core/quant/vectors-inl.h"

namespace quern {
namespace {

// c[kRows, kVectors * kLanes] (+)= a b over `depth`; a[i][j] lies at a[i * lda + j], transposed at
// a[j * lda + i].
template <typename I, int kRows, int kVectors, bool kTransposed, bool kAdd>
QUERN_INLINE void MultiplyTile(int64_t depth, const float* a, int64_t lda, const float* b,
                               int64_t ldb, float* c, int64_t ldc) {
  typename I::Vec sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kAdd) {
        Load<I>(c + i * ldc + v * I::kLanes, sums[i][v]);
      } else {
        sums[i][v] = typename I::Vec{};
      }
    }
  }
  for (int64_t j = 0; j < depth; ++j) {
    typename I::Vec row[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) Load<I>(b + j * ldb + v * I::kLanes, row[v]);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const float factor = kTransposed ? a[j * lda + i] : a[i * lda + j];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] += factor * row[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) Store<I>(sums[i][v], c + i * ldc + v * I::kLanes);
  }
}

// Of `rows` rows, at most kRows.
template <typename I, int kRows, int kVectors, bool kTransposed, bool kAdd>
QUERN_INLINE void MultiplyRest(int64_t rows, int64_t depth, const float* a, int64_t lda,
                               const float* b, int64_t ldb, float* c, int64_t ldc) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      MultiplyTile<I, kRows, kVectors, kTransposed, kAdd>(depth, a, lda, b, ldb, c, ldc);
    } else {
      MultiplyRest<I, kRows - 1, kVectors, kTransposed, kAdd>(rows, depth, a, lda, b, ldb, c, ldc);
    }
  }
}

template <typename I, int kVectors, bool kTransposed, bool kAdd>
QUERN_INLINE void MultiplyColumns(int64_t rows, int64_t depth, const float* a, int64_t lda,
                                  const float* b, int64_t ldb, float* c, int64_t ldc) {
  int64_t i = 0;
  for (; i + I::kRows <= rows; i += I::kRows) {
    MultiplyTile<I, I::kRows, kVectors, kTransposed, kAdd>(depth, a + (kTransposed ? i : i * lda),
                                                           lda, b, ldb, c + i * ldc, ldc);
  }
  MultiplyRest<I, I::kRows - 1, kVectors, kTransposed, kAdd>(
      rows - i, depth, a + (kTransposed ? i : i * lda), lda, b, ldb, c + i * ldc, ldc);
}

// c[rows, cols] (+)= a b over `depth`; cols is a multiple of kAttentionPadding.
template <typename I, bool kTransposed, bool kAdd>
QUERN_INLINE void Multiply(int64_t rows, int64_t cols, int64_t depth, const float* a, int64_t lda,
                           const float* b, int64_t ldb, float* c, int64_t ldc) {
  static_assert(kAttentionPadding % I::kLanes == 0);
  constexpr int64_t kWide = I::kVectors * I::kLanes;
  int64_t j = 0;
  for (; j + kWide <= cols; j += kWide) {
    MultiplyColumns<I, I::kVectors, kTransposed, kAdd>(rows, depth, a, lda, b + j, ldb, c + j, ldc);
  }
  for (; j < cols; j += I::kLanes) {
    MultiplyColumns<I, 1, kTransposed, kAdd>(rows, depth, a, lda, b + j, ldb, c + j, ldc);
  }
}

// Scores of rows [begin, begin + rows) with all keys up to `cols`.
template <typename I>
QUERN_INLINE void Scores(const AttentionHead& head, int64_t begin, int64_t rows, int64_t cols,
                         float* scores) {
  Multiply<I, false, false>(rows, cols, head.dim, head.queries + begin * head.dim, head.dim,
                            head.transposed_keys, PadForAttention(head.num_tokens), scores, cols);
}

// Scores of one row become e^(scale * score - subtrahend), those after `valid` become 0. Returns
// the sum.
template <typename I>
QUERN_INLINE float Exponentials(float scale, float subtrahend, int64_t valid, int64_t cols,
                                float* row) {
  typename I::Vec sums{};
  for (int64_t j = 0; j < cols; j += I::kLanes) {
    typename I::Vec x;
    Load<I>(row + j, x);
    // Of keys behind the query, whatever lies there.
    x = x * scale - subtrahend;
    Exp<I>(x);
    Store<I>(x, row + j);
  }
  std::fill(row + valid, row + cols, 0.0f);
  for (int64_t j = 0; j < cols; j += I::kLanes) {
    typename I::Vec x;
    Load<I>(row + j, x);
    sums += x;
  }
  float sum = 0;
  for (int i = 0; i < I::kLanes; ++i) sum += sums[i];
  return sum;
}

template <typename I>
QUERN_INLINE void Attend(const AttentionHead& head, int64_t begin, int64_t end, float* scores,
                         float* out, float* log_sums) {
  for (; begin < end; begin += kAttentionRows) {
    const int64_t rows = std::min(kAttentionRows, end - begin);
    const int64_t num_keys = begin + rows;
    const int64_t cols = PadForAttention(num_keys);
    Scores<I>(head, begin, rows, cols, scores);
    float* block = out + begin * head.out_stride;
    float factors[kAttentionRows];
    for (int64_t i = 0; i < rows; ++i) {
      float* row = scores + i * cols;
      const int64_t valid = begin + i + 1;
      // Keys behind the query must not raise it.
      float most = row[0];
#pragma omp simd reduction(max : most)
      for (int64_t j = 1; j < valid; ++j) most = most < row[j] ? row[j] : most;
      std::fill(row + valid, row + cols, most);
      const float sum = Exponentials<I>(head.scale, head.scale * most, valid, cols, row);
      factors[i] = 1 / sum;
      log_sums[begin + i] = head.scale * most + std::log(sum);
    }
    Multiply<I, false, false>(rows, head.dim, num_keys, scores, cols, head.values, head.dim, block,
                              head.out_stride);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t d = 0; d < head.dim; ++d) block[i * head.out_stride + d] *= factors[i];
    }
  }
}

template <typename I>
QUERN_INLINE void Backpropagate(const AttentionHead& head, const AttentionGrads& grads,
                                int64_t begin, int64_t end, float* scratch) {
  const int64_t stride = PadForAttention(head.num_tokens);
  float* probabilities = scratch;
  float* grad_scores = scratch + kAttentionRows * stride;
  for (; begin < end; begin += kAttentionRows) {
    const int64_t rows = std::min(kAttentionRows, end - begin);
    const int64_t num_keys = begin + rows;
    const int64_t cols = PadForAttention(num_keys);
    const float* queries = head.queries + begin * head.dim;
    const float* grad_out = grads.grad_out + begin * head.out_stride;
    const float* out = grads.out + begin * head.out_stride;
    Scores<I>(head, begin, rows, cols, probabilities);
    Multiply<I, false, false>(rows, cols, head.dim, grad_out, head.out_stride,
                              grads.transposed_values, stride, grad_scores, cols);
    for (int64_t i = 0; i < rows; ++i) {
      float* p = probabilities + i * cols;
      const int64_t valid = begin + i + 1;
      std::fill(p + valid, p + cols, p[0]);
      Exponentials<I>(head.scale, grads.log_sums[begin + i], valid, cols, p);
      float mean = 0;
#pragma omp simd reduction(+ : mean)
      for (int64_t d = 0; d < head.dim; ++d) {
        mean += grad_out[i * head.out_stride + d] * out[i * head.out_stride + d];
      }
      float* g = grad_scores + i * cols;
      for (int64_t j = 0; j < cols; j += I::kLanes) {
        typename I::Vec x;
        typename I::Vec y;
        Load<I>(g + j, x);
        Load<I>(p + j, y);
        x = y * (x - mean) * head.scale;
        Store<I>(x, g + j);
      }
    }
    Multiply<I, false, false>(rows, head.dim, num_keys, grad_scores, cols, grads.keys, head.dim,
                              grads.grad_queries + begin * head.dim, head.dim);
    Multiply<I, true, true>(num_keys, head.dim, rows, grad_scores, cols, queries, head.dim,
                            grads.grad_keys, head.dim);
    Multiply<I, true, true>(num_keys, head.dim, rows, probabilities, cols, grad_out,
                            head.out_stride, grads.grad_values, head.dim);
  }
}

#if defined(__x86_64__)

QUERN_AVX512 void AttendAvx512(const AttentionHead& head, int64_t begin, int64_t end,
                               float* scratch, float* out, float* log_sums) {
  Attend<Avx512>(head, begin, end, scratch, out, log_sums);
}

QUERN_AVX2 void AttendAvx2(const AttentionHead& head, int64_t begin, int64_t end, float* scratch,
                           float* out, float* log_sums) {
  Attend<Avx2>(head, begin, end, scratch, out, log_sums);
}

QUERN_AVX512 void BackpropagateAvx512(const AttentionHead& head, const AttentionGrads& grads,
                                      int64_t begin, int64_t end, float* scratch) {
  Backpropagate<Avx512>(head, grads, begin, end, scratch);
}

QUERN_AVX2 void BackpropagateAvx2(const AttentionHead& head, const AttentionGrads& grads,
                                  int64_t begin, int64_t end, float* scratch) {
  Backpropagate<Avx2>(head, grads, begin, end, scratch);
}

#endif

void AttendBaseline(const AttentionHead& head, int64_t begin, int64_t end, float* scratch,
                    float* out, float* log_sums) {
  Attend<Baseline>(head, begin, end, scratch, out, log_sums);
}

void BackpropagateBaseline(const AttentionHead& head, const AttentionGrads& grads, int64_t begin,
                           int64_t end, float* scratch) {
  Backpropagate<Baseline>(head, grads, begin, end, scratch);
}

}  // namespace

const std::vector<AttentionLoops>& SupportedAttentionLoops() {
  static const auto* const supported = [] {
    auto* loops = new std::vector<AttentionLoops>;
#if defined(__x86_64__)
    if (HasAvx512()) loops->push_back({"avx512", AttendAvx512, BackpropagateAvx512});
    if (HasAvx2()) loops->push_back({"avx2", AttendAvx2, BackpropagateAvx2});
#endif
    loops->push_back({"baseline", AttendBaseline, BackpropagateBaseline});
    return loops;
  }();
  return *supported;
}

}  // namespace quern
