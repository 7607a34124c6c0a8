#include "core/quant/elementwise_loops.h"

#include <algorithm>
#include <cmath>

#include "core/quant/vectors-inl.h"

// One body per loop, compiled for AVX-512, AVX2 and the baseline and chosen at load time.
#define QUERN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
// Everything below a clone is inlined into it: a function left outside is baseline code.
#define QUERN_LAMBDA_INLINE __attribute__((always_inline))

namespace quern {
namespace {

// 1 / (1 + e^-x), within 4e-7 of it relatively. NaN stays.
QUERN_INLINE float Sigmoid(float x) {
  float power = x > 0 ? -x : x;  // what is below the least normal number is nothing beside 1
  ExpOf<float, int32_t>(power);
  return (x > 0 ? 1.0f : power) / (1.0f + power);
}

template <typename T>
QUERN_INLINE void SiluForward(const T* gate, const T* up, int64_t count, T* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = ToFloat(gate[i]);
    StoreFloat(g * Sigmoid(g) * ToFloat(up[i]), out + i);
  }
}

template <typename T>
QUERN_INLINE void SiluBackward(const T* gate, const T* up, const T* grad, int64_t count,
                               T* grad_gate, T* grad_up) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = ToFloat(gate[i]);
    const float d = ToFloat(grad[i]);
    const float sigmoid = Sigmoid(g);
    const float silu = g * sigmoid;
    StoreFloat(d * silu, grad_up + i);
    StoreFloat(d * ToFloat(up[i]) * (sigmoid + silu * (1.0f - sigmoid)), grad_gate + i);
  }
}

// Sum of term(i): partial sums of some hundred terms, so that the last ones still count.
template <typename Term>
QUERN_INLINE double Sum(int64_t count, Term term) {
  constexpr int64_t kTerms = 1024;
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += kTerms) {
    const int64_t end = std::min(begin + kTerms, count);
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += term(i);
    sum += part;
  }
  return sum;
}

// Element i of a head and its partner, turned by the angle, or back by it.
template <bool kBack, typename From, typename To>
QUERN_INLINE void Turn(const HeadLayout& layout, int64_t token, const From* from, To* to) {
  const int64_t half = layout.head_dim / 2;
  if (layout.cosines == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < layout.head_dim; ++i) StoreFloat(ToFloat(from[i]), to + i);
    return;
  }
  const float* cosines = layout.cosines + token * half;
  const float* sines = layout.sines + token * half;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float first = ToFloat(from[i]);
    const float second = ToFloat(from[half + i]);
    const float sine = kBack ? -sines[i] : sines[i];
    StoreFloat(first * cosines[i] - second * sine, to + i);
    StoreFloat(second * cosines[i] + first * sine, to + half + i);
  }
}

template <typename T>
QUERN_INLINE void Split(const HeadLayout& layout, const T* states, int64_t token_begin,
                        int64_t token_end, float* heads) {
  for (int64_t token = token_begin; token < token_end; ++token) {
    for (int64_t head = 0; head < layout.num_heads; ++head) {
      Turn<false>(layout, token, states + (token * layout.num_heads + head) * layout.head_dim,
                  heads + (head * layout.num_tokens + token) * layout.head_dim);
    }
  }
}

template <typename T>
QUERN_INLINE void SplitBackward(const HeadLayout& layout, const float* grad_heads,
                                int64_t token_begin, int64_t token_end, T* grad_states) {
  for (int64_t token = token_begin; token < token_end; ++token) {
    for (int64_t head = 0; head < layout.num_heads; ++head) {
      Turn<true>(layout, token, grad_heads + (head * layout.num_tokens + token) * layout.head_dim,
                 grad_states + (token * layout.num_heads + head) * layout.head_dim);
    }
  }
}

}  // namespace

QUERN_CLONES void GatedSiluForward(const float* gate, const float* up, int64_t count, float* out) {
  SiluForward(gate, up, count, out);
}

QUERN_CLONES void GatedSiluForward(const Bfloat16Bits* gate, const Bfloat16Bits* up, int64_t count,
                                   Bfloat16Bits* out) {
  SiluForward(gate, up, count, out);
}

QUERN_CLONES void GatedSiluBackward(const float* gate, const float* up, const float* grad,
                                    int64_t count, float* grad_gate, float* grad_up) {
  SiluBackward(gate, up, grad, count, grad_gate, grad_up);
}

QUERN_CLONES void GatedSiluBackward(const Bfloat16Bits* gate, const Bfloat16Bits* up,
                                    const Bfloat16Bits* grad, int64_t count,
                                    Bfloat16Bits* grad_gate, Bfloat16Bits* grad_up) {
  SiluBackward(gate, up, grad, count, grad_gate, grad_up);
}

QUERN_CLONES void RmsNormForward(const float* x, const float* weight, float epsilon, int64_t cols,
                                 int64_t row_begin, int64_t row_end, float* inverse_rms,
                                 float* out) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* in = x + row * cols;
    float* to = out + row * cols;
    const double squares = Sum(cols, [&](int64_t i) QUERN_LAMBDA_INLINE { return in[i] * in[i]; });
    const auto inverse =
        static_cast<float>(1 / std::sqrt(squares / static_cast<double>(cols) + epsilon));
    inverse_rms[row] = inverse;
#pragma omp simd
    for (int64_t i = 0; i < cols; ++i) to[i] = in[i] * inverse * weight[i];
  }
}

QUERN_CLONES void RmsNormBackward(const float* x, const float* weight, const float* inverse_rms,
                                  const float* grad, int64_t cols, int64_t row_begin,
                                  int64_t row_end, float* grad_x, float* grad_weight) {
  std::fill(grad_weight, grad_weight + cols, 0.0f);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* in = x + row * cols;
    const float* g = grad + row * cols;
    float* to = grad_x + row * cols;
    const float inverse = inverse_rms[row];
    const double along =
        Sum(cols, [&](int64_t i) QUERN_LAMBDA_INLINE { return g[i] * weight[i] * in[i]; });
    const auto back = static_cast<float>(along / static_cast<double>(cols) * inverse * inverse);
#pragma omp simd
    for (int64_t i = 0; i < cols; ++i) {
      to[i] = inverse * (g[i] * weight[i] - in[i] * back);
      grad_weight[i] += g[i] * in[i] * inverse;
    }
  }
}

QUERN_CLONES void SquareErrors(const float* output, const float* target, int64_t cols,
                               int64_t row_begin, int64_t row_end, double* errors, double* sizes) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* out = output + row * cols;
    const float* wanted = target + row * cols;
    errors[row] = Sum(cols, [&](int64_t i) QUERN_LAMBDA_INLINE {
      return (out[i] - wanted[i]) * (out[i] - wanted[i]);
    });
    sizes[row] = Sum(cols, [&](int64_t i) QUERN_LAMBDA_INLINE { return wanted[i] * wanted[i]; });
  }
}

QUERN_CLONES void SquareErrorsBackward(const float* output, const float* target,
                                       const float* factors, int64_t cols, int64_t row_begin,
                                       int64_t row_end, float* grad) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* out = output + row * cols;
    const float* wanted = target + row * cols;
    float* to = grad + row * cols;
    const float factor = factors[row];
#pragma omp simd
    for (int64_t i = 0; i < cols; ++i) to[i] = factor * (out[i] - wanted[i]);
  }
}

QUERN_CLONES void SplitHeads(const HeadLayout& layout, const float* states, int64_t token_begin,
                             int64_t token_end, float* heads) {
  Split(layout, states, token_begin, token_end, heads);
}

QUERN_CLONES void SplitHeads(const HeadLayout& layout, const Bfloat16Bits* states,
                             int64_t token_begin, int64_t token_end, float* heads) {
  Split(layout, states, token_begin, token_end, heads);
}

QUERN_CLONES void SplitHeadsBackward(const HeadLayout& layout, const float* grad_heads,
                                     int64_t token_begin, int64_t token_end, float* grad_states) {
  SplitBackward(layout, grad_heads, token_begin, token_end, grad_states);
}

QUERN_CLONES void SplitHeadsBackward(const HeadLayout& layout, const float* grad_heads,
                                     int64_t token_begin, int64_t token_end,
                                     Bfloat16Bits* grad_states) {
  SplitBackward(layout, grad_heads, token_begin, token_end, grad_states);
}

}  // namespace quern
