#include "core/artifact/tensor_check.h"

#include <absl/strings/str_cat.h>

#include <cmath>

#include "core/base/half.h"
#include "core/base/status_macros.h"

namespace quern {
namespace {

absl::Status Wrong(absl::string_view name, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": ", what));
}

absl::Status CheckHalves(absl::string_view name, absl::string_view what, const uint16_t* halves,
                         int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows * cols; ++i) {
    if ((halves[i] & 0x7c00) == 0x7c00) {
      return Wrong(name, absl::StrCat(what, " at row ", i / cols, ", column ", i % cols, " is ",
                                      HalfToFloat(halves[i]), ", wanted a finite number"));
    }
  }
  return absl::OkStatus();
}

// The fields from `count` to the end of its last run are zero.
bool FillingIsZero(const uint32_t* words, int bits, int64_t count) {
  for (int64_t i = count; i < (count + 31) / 32 * 32; ++i) {
    if (UnpackCode(words, bits, i) != 0) return false;
  }
  return true;
}

absl::Status CheckPacked(const TensorSpec& spec, const PackedTensor& tensor,
                         const MatrixFormat& format) {
  if (tensor.rows != spec.shape[0] || tensor.cols != spec.shape[1] || tensor.bits != format.bits ||
      tensor.group_size != format.group_size || tensor.symmetric != format.symmetric) {
    const auto describe = [](int64_t rows, int64_t cols, const MatrixFormat& f) {
      return absl::StrCat("[", rows, ", ", cols, "] at ", f.bits, " bits in groups of ",
                          f.group_size, f.symmetric ? ", symmetric" : ", asymmetric");
    };
    return Wrong(spec.name,
                 absl::StrCat("is ",
                              describe(tensor.rows, tensor.cols,
                                       {tensor.bits, tensor.group_size, tensor.symmetric}),
                              ", wanted ", describe(spec.shape[0], spec.shape[1], format)));
  }
  if (tensor.codes == nullptr || tensor.scales == nullptr ||
      (tensor.zero_points == nullptr) != tensor.symmetric) {
    return Wrong(spec.name, "codes, scales or zero points are missing");
  }
  RETURN_IF_ERROR(CheckHalves(spec.name, "scale", tensor.scales, tensor.rows, tensor.num_groups()));
  const int64_t words_per_row = tensor.view().words_per_row();
  for (int64_t row = 0; row < tensor.rows; ++row) {
    if (!FillingIsZero(tensor.codes + row * words_per_row, tensor.bits, tensor.cols)) {
      return Wrong(spec.name,
                   absl::StrCat("the filling after the codes of row ", row, " is not zero"));
    }
  }
  if (!tensor.symmetric &&
      !FillingIsZero(tensor.zero_points, tensor.bits, tensor.rows * tensor.num_groups())) {
    return Wrong(spec.name, "the filling after the zero points is not zero");
  }
  return absl::OkStatus();
}

absl::Status CheckVector(const TensorSpec& spec, const std::vector<float>& vector) {
  if (static_cast<int64_t>(vector.size()) != spec.shape[0]) {
    return Wrong(spec.name,
                 absl::StrCat("has ", vector.size(), " numbers, wanted ", spec.shape[0]));
  }
  for (size_t i = 0; i < vector.size(); ++i) {
    if (!std::isfinite(vector[i])) {
      return Wrong(spec.name, absl::StrCat("number ", i, " is ", vector[i], ", wanted finite"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckHalfMatrix(const TensorSpec& spec, const HalfTensor& tensor) {
  if (tensor.rows != spec.shape[0] || tensor.cols != spec.shape[1] || tensor.data == nullptr) {
    return Wrong(spec.name, absl::StrCat("is [", tensor.rows, ", ", tensor.cols, "], wanted [",
                                         spec.shape[0], ", ", spec.shape[1], "]"));
  }
  return CheckHalves(spec.name, "number", tensor.data, tensor.rows, tensor.cols);
}

}  // namespace

absl::Status CheckModelTensors(const PackedModel& model) {
  RETURN_IF_ERROR(model.config.Validate());
  RETURN_IF_ERROR(model.format.ValidateFor(model.config));
  size_t num_tensors = 0;
  for (const TensorSpec& spec : ModelTensors(model.config)) {
    ++num_tensors;
    const auto missing = Wrong(spec.name, "is missing");
    if (spec.kind == TensorSpec::Kind::kVector) {
      const auto it = model.vectors.find(spec.name);
      if (it == model.vectors.end()) return missing;
      RETURN_IF_ERROR(CheckVector(spec, it->second));
      continue;
    }
    const auto format = FormatOf(model.format, spec);
    if (format.has_value()) {
      const auto it = model.matrices.find(spec.name);
      if (it == model.matrices.end()) return missing;
      RETURN_IF_ERROR(CheckPacked(spec, it->second, *format));
    } else {
      const auto it = model.half_matrices.find(spec.name);
      if (it == model.half_matrices.end()) return missing;
      RETURN_IF_ERROR(CheckHalfMatrix(spec, it->second));
    }
  }
  const size_t found = model.matrices.size() + model.half_matrices.size() + model.vectors.size();
  if (found != num_tensors) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model holds ", found, " tensors, its config asks for ", num_tensors));
  }
  return absl::OkStatus();
}

}  // namespace quern
