#include "core/artifact/packed_model.h"

#include <absl/container/flat_hash_set.h>
#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <utility>

#include "core/base/status_macros.h"

namespace quern {
namespace {

absl::Status Unsupported(absl::string_view field, int value, absl::string_view supported) {
  return absl::InvalidArgumentError(
      absl::StrCat("format.", field, " is ", value, ", supported are ", supported));
}

// A name from a file.
std::string Printable(absl::string_view name) { return absl::CEscape(name.substr(0, 100)); }

bool IsCodeBits(int bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

}  // namespace

int QuantFormat::BitsOf(const std::string& name) const {
  const auto own = matrix_bits.find(name);
  return own == matrix_bits.end() ? bits : own->second;
}

QuantFormat QuantFormat::For(const std::string& name) const {
  QuantFormat format = *this;
  format.bits = BitsOf(name);
  format.matrix_bits.clear();
  return format;
}

absl::Status QuantFormat::Validate() const {
  if (!IsCodeBits(bits)) return Unsupported("bits", bits, "2, 3, 4 and 8");
  for (const auto& [name, own] : matrix_bits) {
    if (!IsCodeBits(own) || own == bits) {
      return absl::InvalidArgumentError(
          absl::StrCat("format.matrix_bits of ", Printable(name), " is ", own,
                       ", supported are 2, 3, 4 and 8, and not format.bits, which is ", bits));
    }
  }
  if (group_size != 0 && group_size != 32 && group_size != 64 && group_size != 128) {
    return Unsupported("group_size", group_size, "32, 64, 128 and 0 (a whole output channel)");
  }
  if (embedding_bits != 4 && embedding_bits != 8 && embedding_bits != 16) {
    return Unsupported("embedding_bits", embedding_bits, "4, 8 and 16");
  }
  return absl::OkStatus();
}

absl::Status QuantFormat::ValidateFor(const ModelConfig& config) const {
  RETURN_IF_ERROR(Validate());
  if (matrix_bits.empty()) return absl::OkStatus();
  absl::flat_hash_set<std::string> names;
  for (TensorSpec& spec : ModelTensors(config)) {
    if (spec.kind == TensorSpec::Kind::kBlockMatrix) names.insert(std::move(spec.name));
  }
  for (const auto& [name, own] : matrix_bits) {
    if (!names.contains(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("format.matrix_bits names ", Printable(name),
                       ", which is no matrix of this model's blocks"));
    }
  }
  return absl::OkStatus();
}

std::optional<MatrixFormat> FormatOf(const QuantFormat& format, TensorSpec::Kind kind, int cols) {
  const bool in_block = kind == TensorSpec::Kind::kBlockMatrix;
  if (!in_block && format.embedding_bits == 16) return std::nullopt;
  const int group_size = format.group_size == 0 ? cols : std::min(format.group_size, cols);
  return MatrixFormat{.bits = in_block ? format.bits : format.embedding_bits,
                      .group_size = group_size,
                      .symmetric = format.symmetric};
}

std::optional<MatrixFormat> FormatOf(const QuantFormat& format, const TensorSpec& spec) {
  std::optional<MatrixFormat> matrix = FormatOf(format, spec.kind, static_cast<int>(spec.shape[1]));
  if (spec.kind == TensorSpec::Kind::kBlockMatrix) matrix->bits = format.BitsOf(spec.name);
  return matrix;
}

double MeanBits(const QuantFormat& format, const ModelConfig& config) {
  double bits = 0;
  double weights = 0;
  for (const TensorSpec& spec : ModelTensors(config)) {
    if (spec.kind != TensorSpec::Kind::kBlockMatrix) continue;
    const auto size = static_cast<double>(spec.shape[0] * spec.shape[1]);
    bits += size * format.BitsOf(spec.name);
    weights += size;
  }
  return bits / weights;
}

PackedMatrix PackedTensor::view() const {
  return PackedMatrix{.rows = rows,
                      .cols = cols,
                      .bits = bits,
                      .group_size = group_size,
                      .symmetric = symmetric,
                      .codes = codes,
                      .scales = scales,
                      .zero_points = zero_points};
}

int64_t PackedTensor::size_bytes() const {
  const int64_t zero_point_bytes =
      symmetric ? 0 : zero_point_words() * static_cast<int64_t>(sizeof(uint32_t));
  return code_words() * static_cast<int64_t>(sizeof(uint32_t)) +
         rows * num_groups() * static_cast<int64_t>(sizeof(uint16_t)) + zero_point_bytes;
}

int64_t PackedModel::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : matrices) bytes += tensor.size_bytes();
  for (const auto& [name, tensor] : half_matrices) {
    bytes += int64_t{tensor.rows} * tensor.cols * static_cast<int64_t>(sizeof(uint16_t));
  }
  for (const auto& [name, vector] : vectors) {
    bytes += static_cast<int64_t>(vector.size() * sizeof(float));
  }
  return bytes;
}

}  // namespace quern
