#ifndef QUERN_CORE_QUANT_GROUP_LOOPS_H_
#define QUERN_CORE_QUANT_GROUP_LOOPS_H_

// The loops of the fake quantizer over rows of raw memory: one pass over the weights each, where
// separate tensor operations would take ten to fifteen. Formulas: EfficientQAT (arXiv 2407.11062),
// with the gradients of LSQ+ (arXiv 2004.09576). No LibTorch here, so that this one file can be
// compiled with its own flags.
//
// A group's sum is added in an order that depends on its length alone; rows may be split over
// threads in any way without changing a bit.

#include <cstdint>

#include "core/quant/bfloat16.h"

namespace quern {

// A matrix [rows, cols] whose rows are cut into groups of `group_size` columns, the last one
// shorter where it does not divide. Per-group arrays are [rows, num_groups()].
struct GroupShape {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t group_size = 0;
  int bits = 0;

  int64_t num_groups() const { return (cols + group_size - 1) / group_size; }
  int max_code() const { return (1 << bits) - 1; }
};

// What a group shares, as the forward pass uses it: scales not zero, zero points whole and in
// [0, max_code].
template <typename T>
struct GroupGrid {
  const T* scales = nullptr;
  const T* zero_points = nullptr;
};

// fake = (clamp(round(w / scale) + zero_point, 0, max_code) - zero_point) * scale for rows
// [row_begin, row_end); round half to even. Either output may be null.
template <typename T>
void FakeQuantizeRows(const GroupShape& shape, const T* weights, const GroupGrid<T>& grid,
                      int64_t row_begin, int64_t row_end, T* fake, uint8_t* codes);

// Gradients of the above given `grad_fake`, rounding passing gradients straight through. With
// u = round(w / scale) + zero_point:
//
//                          d/dw   d/dscale              d/dzero_point
//   0 <= u <= max_code     1      round(w/scale)-w/scale   0
//   u < 0                  0      -zero_point              -scale
//   u > max_code           0      max_code - zero_point    -scale
//
// Each output is overwritten and may be null.
template <typename T>
void FakeQuantizeRowsBackward(const GroupShape& shape, const T* weights, const GroupGrid<T>& grid,
                              const T* grad_fake, int64_t row_begin, int64_t row_end,
                              T* grad_weights, T* grad_scales, T* grad_zero_points);

// weights = (code - zero_point) * scale, rounded to T: float or Bfloat16Bits.
template <typename T>
void DequantizeRows(const GroupShape& shape, const uint8_t* codes, const GroupGrid<float>& grid,
                    int64_t row_begin, int64_t row_end, T* weights);

// grad_scales = sum over the group of (code - zero_point) * grad_weights, of T as above.
template <typename T>
void ReduceScaleGradientRows(const GroupShape& shape, const uint8_t* codes,
                             const float* zero_points, const T* grad_weights, int64_t row_begin,
                             int64_t row_end, float* grad_scales);

// The scale and zero point that the search below gives a group.
struct SearchedGrid {
  float* scales = nullptr;
  float* zero_points = nullptr;
};

// Finds a start for training: for every group the clipped range (and, unless symmetric, the zero
// point) with the least sum of importance * (w - fake)^2, then the scale that is best by least
// squares for the codes so found, twice. Symmetric grids have the full range
// [-2^(bits-1), 2^(bits-1) - 1] and a signed scale. Scales are exact as half floats and not zero.
//
// importance: [cols], not negative: the mean square of each input, so that the error counted is
// that of the matrix's output for inputs that are not correlated.
void SearchGridRows(const GroupShape& shape, bool symmetric, const float* weights,
                    const float* importance, int64_t row_begin, int64_t row_end,
                    const SearchedGrid& grid);

// The grid of EfficientQAT's recipe (section 2.1 of its quantizer): each group's whole range,
// scale = (max - min) / max_code in [1e-4, 1e4], zero point = round(-min / scale), not clamped;
// symmetric grids, which it does not have, get the larger of -min / 2^(bits-1) and
// max / (2^(bits-1) - 1). Scales are not rounded to half floats.
void MinMaxGridRows(const GroupShape& shape, bool symmetric, const float* weights,
                    int64_t row_begin, int64_t row_end, const SearchedGrid& grid);

// GPTQ (arXiv 2210.17323, algorithm 1, without reordering) over columns [col_begin, col_end): codes
// column by column, each column's error made up for by those after it as far as the inputs are
// correlated. A group's grid is searched, as above, when its first column is reached; it must not
// end beyond col_end unless it begins at col_begin. u: upper triangular, [cols, cols], with
// U^T U = H^-1, where H = sum over tokens of x x^T with something added to its diagonal. weights:
// in, the matrix, made up for what the columns before col_begin did; out, the values that the codes
// were rounded from. errors: [rows, col_end - col_begin], what the columns from col_end on have to
// make up for: weights += errors * U[col_begin..col_end, col_end..].
void GptqRows(const GroupShape& shape, bool symmetric, const float* u, int64_t col_begin,
              int64_t col_end, int64_t row_begin, int64_t row_end, float* weights, float* errors,
              const SearchedGrid& grid);

// Lowers e^T H e (h: [cols, cols], as above), e = original - fake, along columns
// [col_begin, col_end): each code in turn becomes the best one given all others (as QuantEase,
// arXiv 2309.01885, does). errors: [rows, cols], e, kept up to date. weights: out, each code's best
// value given the others, at most 0.49 steps beyond the outermost code. error_products:
// [rows, cols], e H at the start. changes: [rows, col_end - col_begin], of e.
void RefineCodesRows(const GroupShape& shape, const float* original, const float* h,
                     const float* error_products, int64_t col_begin, int64_t col_end,
                     int64_t row_begin, int64_t row_end, const SearchedGrid& grid, float* weights,
                     float* errors, float* changes);

// The half float nearest to `scale`, and when that is zero or tiny, the smallest allowed
// magnitude with the sign of `scale`: a zero scale could neither divide nor be trained.
float StoredScale(float scale);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_GROUP_LOOPS_H_
