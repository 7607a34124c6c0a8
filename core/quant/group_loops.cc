#include "core/quant/group_loops.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/half.h"

// One body per loop, compiled for AVX2 and for the baseline and chosen at load time. Neither
// contracts into fused multiply-adds ("avx2" does not imply FMA), so both give the same bits.
#define QUERN_CLONES __attribute__((target_clones("avx2", "default")))
// Everything below a clone is inlined into it: a function left outside is baseline code.
#define QUERN_LAMBDA_INLINE __attribute__((always_inline))
#define QUERN_INLINE inline QUERN_LAMBDA_INLINE

namespace quern {
namespace {

template <typename T>
QUERN_INLINE T Round(T value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return __builtin_rintf(value);
  } else {
    return __builtin_rint(value);
  }
}

template <typename T>
QUERN_INLINE T Clamp(T value, T low, T high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

// Calls body(group index in [rows * groups], first element, length) for each group of the rows.
template <typename Body>
QUERN_INLINE void ForEachGroup(const GroupShape& shape, int64_t row_begin, int64_t row_end,
                               Body body) {
  const int64_t num_groups = (shape.cols + shape.group_size - 1) / shape.group_size;
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t begin = group * shape.group_size;
      const int64_t rest = shape.cols - begin;
      body(row * num_groups + group, row * shape.cols + begin,
           rest < shape.group_size ? rest : shape.group_size);
    }
  }
}

template <typename T>
QUERN_INLINE void Forward(const GroupShape& shape, const T* weights, const GroupGrid<T>& grid,
                          int64_t row_begin, int64_t row_end, T* fake, uint8_t* codes) {
  const T max_code = static_cast<T>((1 << shape.bits) - 1);
  ForEachGroup(shape, row_begin, row_end,
               [&](int64_t group, int64_t first, int64_t length) QUERN_LAMBDA_INLINE {
                 const T scale = grid.scales[group];
                 const T zero_point = grid.zero_points[group];
                 const T* w = weights + first;
                 if (fake != nullptr) {
                   T* out = fake + first;
#pragma omp simd
                   for (int64_t k = 0; k < length; ++k) {
                     const T code = Clamp(Round(w[k] / scale) + zero_point, T{0}, max_code);
                     out[k] = (code - zero_point) * scale;
                   }
                 }
                 if (codes != nullptr) {
                   for (int64_t k = 0; k < length; ++k) {
                     codes[first + k] = static_cast<uint8_t>(
                         Clamp(Round(w[k] / scale) + zero_point, T{0}, max_code));
                   }
                 }
               });
}

template <typename T>
QUERN_INLINE void Backward(const GroupShape& shape, const T* weights, const GroupGrid<T>& grid,
                           const T* grad_fake, int64_t row_begin, int64_t row_end, T* grad_weights,
                           T* grad_scales, T* grad_zero_points) {
  const T max_code = static_cast<T>((1 << shape.bits) - 1);
  ForEachGroup(shape, row_begin, row_end,
               [&](int64_t group, int64_t first, int64_t length) QUERN_LAMBDA_INLINE {
                 const T scale = grid.scales[group];
                 const T zero_point = grid.zero_points[group];
                 const T* w = weights + first;
                 const T* g = grad_fake + first;
                 T scale_sum = 0;
                 T outside_sum = 0;
                 if (grad_weights != nullptr) {
                   T* out = grad_weights + first;
#pragma omp simd reduction(+ : scale_sum, outside_sum)
                   for (int64_t k = 0; k < length; ++k) {
                     const T ratio = w[k] / scale;
                     const T u = Round(ratio) + zero_point;
                     const T code = Clamp(u, T{0}, max_code);
                     const bool inside = u == code;
                     scale_sum += g[k] * (code - zero_point - (inside ? ratio : T{0}));
                     outside_sum += inside ? T{0} : g[k];
                     out[k] = inside ? g[k] : T{0};
                   }
                 } else {
#pragma omp simd reduction(+ : scale_sum, outside_sum)
                   for (int64_t k = 0; k < length; ++k) {
                     const T ratio = w[k] / scale;
                     const T u = Round(ratio) + zero_point;
                     const T code = Clamp(u, T{0}, max_code);
                     const bool inside = u == code;
                     scale_sum += g[k] * (code - zero_point - (inside ? ratio : T{0}));
                     outside_sum += inside ? T{0} : g[k];
                   }
                 }
                 if (grad_scales != nullptr) grad_scales[group] = scale_sum;
                 if (grad_zero_points != nullptr) grad_zero_points[group] = -scale * outside_sum;
               });
}

// sum of importance * (w - fake)^2 over one group.
QUERN_INLINE float GroupError(const float* w, const float* importance, int64_t length, float scale,
                              float zero_point, float max_code) {
  const float inverse = 1 / scale;
  float error = 0;
#pragma omp simd reduction(+ : error)
  for (int64_t k = 0; k < length; ++k) {
    const float code = Clamp(Round(w[k] * inverse) + zero_point, 0.0f, max_code);
    const float difference = w[k] - (code - zero_point) * scale;
    error += importance[k] * difference * difference;
  }
  return error;
}

// The least-squares scale for the codes that `scale` gives; `scale` itself when all are zero.
QUERN_INLINE float LeastSquaresScale(const float* w, const float* importance, int64_t length,
                                     float scale, float zero_point, float max_code) {
  const float inverse = 1 / scale;
  float dot = 0;
  float norm = 0;
#pragma omp simd reduction(+ : dot, norm)
  for (int64_t k = 0; k < length; ++k) {
    const float code = Clamp(Round(w[k] * inverse) + zero_point, 0.0f, max_code) - zero_point;
    dot += importance[k] * code * w[k];
    norm += importance[k] * code * code;
  }
  return norm > 0 ? dot / norm : scale;
}

constexpr float kSmallestScale = 0x1p-20f;

QUERN_INLINE float ToStoredScale(float scale) {
  const float magnitude = HalfToFloat(FloatToHalf(scale < 0 ? -scale : scale));
  // Not "max": a scale that is not a number stays one and is found by the loss.
  const float stored = magnitude < kSmallestScale ? kSmallestScale : magnitude;
  return scale < 0 ? -stored : stored;
}

// The best grid seen so far for a group.
struct BestGrid {
  float scale;
  float zero_point;
  float error;
};

struct GroupSearch {
  const float* w;
  const float* importance;
  int64_t length;
  float max_code;
  BestGrid best{kSmallestScale, 0, __builtin_inff()};

  QUERN_INLINE void Try(float scale, float zero_point) {
    scale = ToStoredScale(scale);
    const float error = GroupError(w, importance, length, scale, zero_point, max_code);
    if (error < best.error) best = {scale, zero_point, error};
  }

  QUERN_INLINE void Refine() {
    for (int round = 0; round < 2; ++round) {
      Try(LeastSquaresScale(w, importance, length, best.scale, best.zero_point, max_code),
          best.zero_point);
    }
  }
};

QUERN_INLINE void SearchAsymmetric(GroupSearch& search, float min, float max) {
  const float full = (max - min) / search.max_code;
  const float inverse = full > 0 ? 1 / full : 0;
  const float centre = Clamp(Round(-min * inverse), 0.0f, search.max_code);
  for (float shift = -1; shift <= 1; ++shift) {
    const float zero_point = centre + shift;
    if (zero_point < 0 || zero_point > search.max_code) continue;
    for (float clip = 1.0f; clip > 0.34f; clip -= 0.05f) search.Try(full * clip, zero_point);
  }
}

QUERN_INLINE void SearchSymmetric(GroupSearch& search, float min, float max) {
  const float middle = (search.max_code + 1) / 2;
  const float full = (-min > max ? -min : max) / middle;
  for (float clip = 1.15f; clip > 0.24f; clip -= 0.05f) {
    search.Try(full * clip, middle);
    search.Try(-full * clip, middle);
  }
}

QUERN_INLINE void Search(const GroupShape& shape, bool symmetric, const float* weights,
                         const float* importance, int64_t row_begin, int64_t row_end,
                         const SearchedGrid& grid) {
  const float max_code = static_cast<float>((1 << shape.bits) - 1);
  ForEachGroup(
      shape, row_begin, row_end,
      [&](int64_t group, int64_t first, int64_t length) QUERN_LAMBDA_INLINE {
        GroupSearch search{weights + first, importance + first % shape.cols, length, max_code};
        float min = 0;
        float max = 0;
        for (int64_t k = 0; k < length; ++k) {
          min = search.w[k] < min ? search.w[k] : min;
          max = search.w[k] > max ? search.w[k] : max;
        }
        if (symmetric) {
          search.best.zero_point = (max_code + 1) / 2;
          SearchSymmetric(search, min, max);
        } else {
          SearchAsymmetric(search, min, max);
        }
        search.Refine();
        grid.scales[group] = search.best.scale;
        grid.zero_points[group] = search.best.zero_point;
      });
}

QUERN_INLINE void MinMax(const GroupShape& shape, bool symmetric, const float* weights,
                         int64_t row_begin, int64_t row_end, const SearchedGrid& grid) {
  const float max_code = static_cast<float>((1 << shape.bits) - 1);
  ForEachGroup(shape, row_begin, row_end,
               [&](int64_t group, int64_t first, int64_t length) QUERN_LAMBDA_INLINE {
                 float min = weights[first];
                 float max = weights[first];
                 for (int64_t k = 1; k < length; ++k) {
                   min = weights[first + k] < min ? weights[first + k] : min;
                   max = weights[first + k] > max ? weights[first + k] : max;
                 }
                 if (symmetric) {
                   const float middle = (max_code + 1) / 2;
                   const float low = -min / middle;
                   const float high = max / (middle - 1);
                   grid.scales[group] = Clamp(low > high ? low : high, 1e-4f, 1e4f);
                   grid.zero_points[group] = middle;
                   return;
                 }
                 const float scale = Clamp((max - min) / max_code, 1e-4f, 1e4f);
                 grid.scales[group] = scale;
                 grid.zero_points[group] = Round(-Clamp(min / scale, -1e4f, 1e4f));
               });
}

QUERN_INLINE void AddScaled(float factor, const float* x, int64_t begin, int64_t end, float* y) {
#pragma omp simd
  for (int64_t k = begin; k < end; ++k) y[k] += factor * x[k];
}

QUERN_INLINE float FakeOne(float w, float scale, float zero_point, float max_code) {
  return (Clamp(Round(w / scale) + zero_point, 0.0f, max_code) - zero_point) * scale;
}

QUERN_INLINE void SearchGroup(const GroupShape& shape, bool symmetric, const float* w,
                              const float* importance, int64_t length, int64_t group,
                              const SearchedGrid& grid) {
  const GroupShape one{1, length, length, shape.bits};
  Search(one, symmetric, w, importance, 0, 1, {grid.scales + group, grid.zero_points + group});
}

QUERN_INLINE void Gptq(const GroupShape& shape, bool symmetric, const float* factor,
                       int64_t col_begin, int64_t col_end, int64_t row_begin, int64_t row_end,
                       float* weights, float* errors, const SearchedGrid& grid) {
  const float max_code = static_cast<float>((1 << shape.bits) - 1);
  const int64_t cols = shape.cols;
  // What an error in a column costs once those after it have made up for it: 1 / U_kk^2.
  std::vector<float> importance(cols);
  for (int64_t k = col_begin; k < cols; ++k) {
    const float pivot = factor[k * cols + k];
    importance[k] = 1 / (pivot * pivot);
  }
  for (int64_t row = row_begin; row < row_end; ++row) {
    float* w = weights + row * cols;
    float* e = errors + row * (col_end - col_begin);
    for (int64_t k = col_begin; k < col_end; ++k) {
      const int64_t at = row * shape.num_groups() + k / shape.group_size;
      const float* u = factor + k * cols;
      if (k % shape.group_size == 0) {
        const int64_t rest = cols - k;
        SearchGroup(shape, symmetric, w + k, importance.data() + k,
                    rest < shape.group_size ? rest : shape.group_size, at, grid);
      }
      const float fake = FakeOne(w[k], grid.scales[at], grid.zero_points[at], max_code);
      const float error = (fake - w[k]) / u[k];
      AddScaled(error, u, k + 1, col_end, w);
      e[k - col_begin] = error;
    }
  }
}

QUERN_INLINE void RefineCodes(const GroupShape& shape, const float* original, const float* h,
                              const float* products, int64_t col_begin, int64_t col_end,
                              int64_t row_begin, int64_t row_end, const SearchedGrid& grid,
                              float* weights, float* errors, float* changes) {
  const float max_code = static_cast<float>((1 << shape.bits) - 1);
  const int64_t num_cols = col_end - col_begin;
  std::vector<float> local(num_cols);  // of `products`, with the changes so far
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t first = row * shape.cols;
    for (int64_t k = 0; k < num_cols; ++k) local[k] = products[first + col_begin + k];
    for (int64_t k = col_begin; k < col_end; ++k) {
      const int64_t group = row * shape.num_groups() + k / shape.group_size;
      const float scale = grid.scales[group];
      const float zero_point = grid.zero_points[group];
      const float* h_row = h + k * shape.cols;
      float& error = errors[first + k];
      const float best = original[first + k] + local[k - col_begin] / h_row[k] - error;
      const float ratio = Clamp(best / scale, -zero_point - 0.49f, max_code - zero_point + 0.49f);
      weights[first + k] = ratio * scale;
      const float next =
          original[first + k] - FakeOne(weights[first + k], scale, zero_point, max_code);
      const float change = next - error;
      changes[row * num_cols + k - col_begin] = change;
      if (change == 0) continue;
      AddScaled(change, h_row + col_begin, 0, num_cols, local.data());
      error = next;
    }
  }
}

template <typename T>
QUERN_INLINE void Dequantize(const GroupShape& shape, const uint8_t* codes,
                             const GroupGrid<float>& grid, int64_t row_begin, int64_t row_end,
                             T* weights) {
  ForEachGroup(shape, row_begin, row_end,
               [&](int64_t group, int64_t first, int64_t length) QUERN_LAMBDA_INLINE {
                 const float scale = grid.scales[group];
                 const float zero_point = grid.zero_points[group];
#pragma omp simd
                 for (int64_t k = 0; k < length; ++k) {
                   StoreFloat((static_cast<float>(codes[first + k]) - zero_point) * scale,
                              &weights[first + k]);
                 }
               });
}

template <typename T>
QUERN_INLINE void ReduceScaleGradient(const GroupShape& shape, const uint8_t* codes,
                                      const float* zero_points, const T* grad_weights,
                                      int64_t row_begin, int64_t row_end, float* grad_scales) {
  ForEachGroup(shape, row_begin, row_end,
               [&](int64_t group, int64_t first, int64_t length) QUERN_LAMBDA_INLINE {
                 const float zero_point = zero_points[group];
                 float sum = 0;
#pragma omp simd reduction(+ : sum)
                 for (int64_t k = 0; k < length; ++k) {
                   sum += (static_cast<float>(codes[first + k]) - zero_point) *
                          ToFloat(grad_weights[first + k]);
                 }
                 grad_scales[group] = sum;
               });
}

}  // namespace

float StoredScale(float scale) { return ToStoredScale(scale); }

// target_clones does not go with templates, hence a plain function per type.
namespace {
QUERN_CLONES void ForwardF32(const GroupShape& shape, const float* weights,
                             const GroupGrid<float>& grid, int64_t row_begin, int64_t row_end,
                             float* fake, uint8_t* codes) {
  Forward(shape, weights, grid, row_begin, row_end, fake, codes);
}
QUERN_CLONES void BackwardF32(const GroupShape& shape, const float* weights,
                              const GroupGrid<float>& grid, const float* grad_fake,
                              int64_t row_begin, int64_t row_end, float* grad_weights,
                              float* grad_scales, float* grad_zero_points) {
  Backward(shape, weights, grid, grad_fake, row_begin, row_end, grad_weights, grad_scales,
           grad_zero_points);
}
}  // namespace

template <>
void FakeQuantizeRows<float>(const GroupShape& shape, const float* weights,
                             const GroupGrid<float>& grid, int64_t row_begin, int64_t row_end,
                             float* fake, uint8_t* codes) {
  ForwardF32(shape, weights, grid, row_begin, row_end, fake, codes);
}

template <>
void FakeQuantizeRows<double>(const GroupShape& shape, const double* weights,
                              const GroupGrid<double>& grid, int64_t row_begin, int64_t row_end,
                              double* fake, uint8_t* codes) {
  Forward(shape, weights, grid, row_begin, row_end, fake, codes);
}

template <>
void FakeQuantizeRowsBackward<float>(const GroupShape& shape, const float* weights,
                                     const GroupGrid<float>& grid, const float* grad_fake,
                                     int64_t row_begin, int64_t row_end, float* grad_weights,
                                     float* grad_scales, float* grad_zero_points) {
  BackwardF32(shape, weights, grid, grad_fake, row_begin, row_end, grad_weights, grad_scales,
              grad_zero_points);
}

template <>
void FakeQuantizeRowsBackward<double>(const GroupShape& shape, const double* weights,
                                      const GroupGrid<double>& grid, const double* grad_fake,
                                      int64_t row_begin, int64_t row_end, double* grad_weights,
                                      double* grad_scales, double* grad_zero_points) {
  Backward(shape, weights, grid, grad_fake, row_begin, row_end, grad_weights, grad_scales,
           grad_zero_points);
}

template <>
QUERN_CLONES void DequantizeRows(const GroupShape& shape, const uint8_t* codes,
                                 const GroupGrid<float>& grid, int64_t row_begin, int64_t row_end,
                                 float* weights) {
  Dequantize(shape, codes, grid, row_begin, row_end, weights);
}

template <>
QUERN_CLONES void DequantizeRows(const GroupShape& shape, const uint8_t* codes,
                                 const GroupGrid<float>& grid, int64_t row_begin, int64_t row_end,
                                 Bfloat16Bits* weights) {
  Dequantize(shape, codes, grid, row_begin, row_end, weights);
}

template <>
QUERN_CLONES void ReduceScaleGradientRows(const GroupShape& shape, const uint8_t* codes,
                                          const float* zero_points, const float* grad_weights,
                                          int64_t row_begin, int64_t row_end, float* grad_scales) {
  ReduceScaleGradient(shape, codes, zero_points, grad_weights, row_begin, row_end, grad_scales);
}

template <>
QUERN_CLONES void ReduceScaleGradientRows(const GroupShape& shape, const uint8_t* codes,
                                          const float* zero_points,
                                          const Bfloat16Bits* grad_weights, int64_t row_begin,
                                          int64_t row_end, float* grad_scales) {
  ReduceScaleGradient(shape, codes, zero_points, grad_weights, row_begin, row_end, grad_scales);
}

QUERN_CLONES void SearchGridRows(const GroupShape& shape, bool symmetric, const float* weights,
                                 const float* importance, int64_t row_begin, int64_t row_end,
                                 const SearchedGrid& grid) {
  Search(shape, symmetric, weights, importance, row_begin, row_end, grid);
}

QUERN_CLONES void MinMaxGridRows(const GroupShape& shape, bool symmetric, const float* weights,
                                 int64_t row_begin, int64_t row_end, const SearchedGrid& grid) {
  MinMax(shape, symmetric, weights, row_begin, row_end, grid);
}

QUERN_CLONES void GptqRows(const GroupShape& shape, bool symmetric, const float* u,
                           int64_t col_begin, int64_t col_end, int64_t row_begin, int64_t row_end,
                           float* weights, float* errors, const SearchedGrid& grid) {
  Gptq(shape, symmetric, u, col_begin, col_end, row_begin, row_end, weights, errors, grid);
}

QUERN_CLONES void RefineCodesRows(const GroupShape& shape, const float* original, const float* h,
                                  const float* error_products, int64_t col_begin, int64_t col_end,
                                  int64_t row_begin, int64_t row_end, const SearchedGrid& grid,
                                  float* weights, float* errors, float* changes) {
  RefineCodes(shape, original, h, error_products, col_begin, col_end, row_begin, row_end, grid,
              weights, errors, changes);
}

}  // namespace quern
