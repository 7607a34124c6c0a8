#include "core/quant/gptq.h"

#include <algorithm>
#include <utility>

#include "core/base/status_macros.h"
#include "core/quant/group_loops.h"

namespace quern {
namespace {

// After the first pass over the codes, each with a pass over the scales before it.
constexpr int kNumPasses = 6;
// Columns that a row's loop goes through before the others learn of it.
constexpr int64_t kBlockColumns = 128;

// Adds to the diagonal of `h` in place and returns the upper U with U^T U = h^-1.
absl::StatusOr<at::Tensor> DampAndFactor(const at::Tensor& h) {
  if (!at::isfinite(h).all().item<bool>()) {
    return absl::AbortedError("the inputs' second moments are not finite");
  }
  at::Tensor diagonal = h.diagonal();
  // Inputs that were never seen leave a row of zeros.
  const double mean = std::max(diagonal.mean().item<double>(), 1e-30);
  for (double damping = 0.003; damping < 1e3; damping *= 10) {
    diagonal.add_(damping * mean);
    const auto [lower, info] = at::linalg_cholesky_ex(h.to(at::kDouble));
    if (info.item<int>() != 0) continue;
    const auto [upper, again] = at::linalg_cholesky_ex(at::cholesky_inverse(lower), /*upper=*/true);
    if (again.item<int>() == 0) return upper.to(at::kFloat).contiguous();
  }
  return absl::AbortedError("the inputs' second moments cannot be factored");
}

// The end of the block that starts at column `begin`, where a group does: whole groups as far as
// they fit, or a part of one group.
int64_t BlockEnd(const GroupShape& shape, int64_t begin) {
  int64_t end = begin + kBlockColumns;
  if (shape.group_size <= kBlockColumns) {
    end = begin + kBlockColumns / shape.group_size * shape.group_size;
  } else {
    end = std::min(end, (begin / shape.group_size + 1) * shape.group_size);
  }
  return std::min(end, shape.cols);
}

class GptqSearch {
 public:
  GptqSearch(const at::Tensor& weight, at::Tensor h, const QuantFormat& format)
      : symmetric_(format.symmetric), original_(weight), h_(std::move(h)) {
    grid_ = EmptyParameters(weight, format);
    values_ = original_.clone();
  }

  // `u`: as DampAndFactor gives it.
  void FindCodes(const at::Tensor& u);
  void Refine();

  const at::Tensor& values() const { return values_; }
  QuantParameters grid() const { return grid_; }

 private:
  const GroupShape& shape() const { return grid_.shape; }
  SearchedGrid Grid() {
    return {grid_.scale.data_ptr<float>(), grid_.zero_point.data_ptr<float>()};
  }
  // True when a code changed.
  bool PassOverCodes();
  // Moves each group's scale to where e^T H e is least, its codes kept.
  void PassOverScales();

  const bool symmetric_;
  const at::Tensor original_;
  const at::Tensor h_;
  QuantParameters grid_;
  at::Tensor values_;
  at::Tensor errors_;    // e = original - fake
  at::Tensor products_;  // e H
};

void GptqSearch::FindCodes(const at::Tensor& u) {
  for (int64_t begin = 0; begin < shape().cols;) {
    const int64_t end = BlockEnd(shape(), begin);
    at::Tensor errors = at::empty({shape().rows, end - begin}, at::kFloat);
    const auto body = [&](int64_t row_begin, int64_t row_end) {
      GptqRows(shape(), symmetric_, u.const_data_ptr<float>(), begin, end, row_begin, row_end,
               values_.data_ptr<float>(), errors.data_ptr<float>(), Grid());
    };
    ParallelRows(shape(), body);
    if (end < shape().cols) {
      values_.narrow(1, end, shape().cols - end)
          .addmm_(errors, u.narrow(0, begin, end - begin).narrow(1, end, shape().cols - end));
    }
    begin = end;
  }
}

bool GptqSearch::PassOverCodes() {
  bool changed = false;
  for (int64_t begin = 0; begin < shape().cols; begin += kBlockColumns) {
    const int64_t end = std::min(begin + kBlockColumns, shape().cols);
    at::Tensor changes = at::empty({shape().rows, end - begin}, at::kFloat);
    const auto body = [&](int64_t row_begin, int64_t row_end) {
      RefineCodesRows(shape(), original_.const_data_ptr<float>(), h_.const_data_ptr<float>(),
                      products_.const_data_ptr<float>(), begin, end, row_begin, row_end, Grid(),
                      values_.data_ptr<float>(), errors_.data_ptr<float>(),
                      changes.data_ptr<float>());
    };
    ParallelRows(shape(), body);
    if (!at::any(changes).item<bool>()) continue;
    products_.addmm_(changes, h_.narrow(0, begin, end - begin));
    changed = true;
  }
  return changed;
}

void GptqSearch::PassOverScales() {
  for (int64_t group = 0; group < shape().num_groups(); ++group) {
    const int64_t begin = group * shape().group_size;
    const int64_t count = std::min(shape().group_size, shape().cols - begin);
    const at::Tensor h = h_.narrow(0, begin, count);
    at::Tensor scale = grid_.scale.narrow(1, group, 1);
    at::Tensor errors = errors_.narrow(1, begin, count);
    // Codes, less the zero point.
    const at::Tensor original = original_.narrow(1, begin, count);
    const at::Tensor codes = ((original - errors) / scale).round();
    const at::Tensor slope = (codes * products_.narrow(1, begin, count)).sum(1, true);
    const at::Tensor curvature = (codes * codes.mm(h.narrow(1, begin, count))).sum(1, true);
    at::Tensor next = RoundScale(scale + slope / curvature);
    // A group of zeros, and a scale that would change its sign, stay.
    next = at::where((curvature > 0).logical_and(next * scale > 0), next, scale);
    const at::Tensor fake = codes * next;
    const at::Tensor changed = original - fake;
    products_.addmm_(changed - errors, h);
    errors.copy_(changed);
    values_.narrow(1, begin, count).copy_(fake);
    scale.copy_(next);
  }
}

void GptqSearch::Refine() {
  errors_ =
      original_ - FakeQuantize(values_, grid_.scale, grid_.zero_point, grid_.shape).contiguous();
  products_ = errors_.mm(h_);
  PassOverCodes();
  for (int pass = 0; pass < kNumPasses; ++pass) {
    PassOverScales();
    if (!PassOverCodes()) break;
  }
}

}  // namespace

absl::StatusOr<QuantParameters> GptqQuantParameters(at::Tensor& weight,
                                                    const at::Tensor& second_moments,
                                                    const QuantFormat& format) {
  const at::NoGradGuard no_grad;
  const at::Tensor h = second_moments.to(at::kCPU, at::kFloat).contiguous().clone();
  ASSIGN_OR_RETURN(const at::Tensor u, DampAndFactor(h));
  GptqSearch search(weight.detach().to(at::kCPU, at::kFloat).contiguous(), h, format);
  search.FindCodes(u);
  search.Refine();
  QuantParameters result = search.grid();
  result.scale = result.scale.to(weight.device());
  result.zero_point = result.zero_point.to(weight.device());
  weight = search.values().to(weight.device());
  return result;
}

}  // namespace quern
