#include "core/artifact/pack.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "core/base/half.h"
#include "core/base/status_macros.h"

namespace quern {
namespace {

// The smallest positive half float.
constexpr float kSmallestScale = 0x1p-24f;

struct PackedStorage {
  std::vector<uint32_t> codes;
  std::vector<uint16_t> scales;
  std::vector<uint32_t> zero_points;
  std::shared_ptr<const void> shared;  // what else the tensor points into
};

// Packs `codes`, each below 2^bits, into zeroed words; the layout of kernels/packed_matrix.h.
void PackSequence(absl::Span<const uint8_t> codes, int bits, uint32_t* words) {
  for (size_t i = 0; i < codes.size(); ++i) {
    uint32_t* run = words + i / 32 * bits;
    const int j = static_cast<int>(i % 32);
    const uint32_t code = codes[i];
    if (bits == 3) {
      run[j / 16] |= (code & 3u) << (j % 16 * 2);
      run[2] |= code >> 2 << j;
    } else {
      const int per_word = 32 / bits;
      run[j / per_word] |= code << (j % per_word * bits);
    }
  }
}

std::vector<uint8_t> UnpackSequence(const uint32_t* words, int bits, int64_t count) {
  std::vector<uint8_t> codes(count);
  for (int64_t i = 0; i < count; ++i) codes[i] = UnpackCode(words, bits, i);
  return codes;
}

absl::Status CheckShape(int rows, int cols, int bits, int group_size) {
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot pack codes of ", bits, " bits, wanted 2, 3, 4 or 8"));
  }
  if (rows < 1 || cols < 1 || group_size < 1 || group_size > cols) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot pack a matrix of ", rows, " x ", cols, " in groups of ", group_size,
                     ", wanted positive sizes and a group no longer than a row"));
  }
  return absl::OkStatus();
}

absl::Status CheckCount(absl::string_view what, size_t found, int64_t wanted) {
  if (static_cast<int64_t>(found) == wanted) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("got ", found, " ", what, ", wanted ", wanted));
}

// `row_length` values of a row; `unit` names the place within one.
absl::Status CheckFields(absl::Span<const uint8_t> fields, int64_t row_length, int bits,
                         absl::string_view what, absl::string_view unit) {
  const uint8_t max = static_cast<uint8_t>((1u << bits) - 1);
  for (size_t i = 0; i < fields.size(); ++i) {
    if (fields[i] > max) {
      return absl::InvalidArgumentError(absl::StrCat(what, " at row ", i / row_length, ", ", unit,
                                                     " ", i % row_length, " is ", fields[i],
                                                     ", wanted at most ", max));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint16_t>> ToHalfScales(absl::Span<const float> scales,
                                                   int64_t num_groups) {
  std::vector<uint16_t> halves(scales.size());
  for (size_t i = 0; i < scales.size(); ++i) {
    halves[i] = FloatToHalf(scales[i]);
    if (!std::isfinite(HalfToFloat(halves[i]))) {
      return absl::InvalidArgumentError(
          absl::StrCat("scale at row ", i / num_groups, ", group ", i % num_groups, " is ",
                       scales[i], ", wanted a finite number of at most 65504 in magnitude"));
    }
  }
  return halves;
}

// The scale as it will be stored, in float; see RoundToNearest.
float StoredScale(float scale) {
  const float stored = HalfToFloat(FloatToHalf(scale));
  return stored == 0 ? std::copysign(kSmallestScale, scale) : stored;
}

struct Group {
  float scale;
  float zero_point;
};

Group FitGroup(absl::Span<const float> weights, int bits, bool symmetric) {
  float min = 0;
  float max = 0;
  for (float weight : weights) {
    min = std::min(min, weight);
    max = std::max(max, weight);
  }
  const float code_max = static_cast<float>((1 << bits) - 1);
  if (symmetric) {
    const float middle = static_cast<float>(1 << (bits - 1));
    const float largest = -min >= max ? min : max;
    return {StoredScale(largest / -middle), middle};
  }
  const float scale = StoredScale((max - min) / code_max);
  return {scale, std::clamp(std::nearbyint(-min / scale), 0.0f, code_max)};
}

}  // namespace

absl::StatusOr<PackedTensor> Pack(int rows, int cols, int bits, int group_size, bool symmetric,
                                  absl::Span<const uint8_t> codes, absl::Span<const float> scales,
                                  absl::Span<const uint8_t> zero_points) {
  RETURN_IF_ERROR(CheckShape(rows, cols, bits, group_size));
  PackedTensor tensor{
      .rows = rows, .cols = cols, .bits = bits, .group_size = group_size, .symmetric = symmetric};
  const int64_t num_groups = tensor.num_groups();
  RETURN_IF_ERROR(CheckCount("codes", codes.size(), int64_t{rows} * cols));
  RETURN_IF_ERROR(CheckCount("scales", scales.size(), rows * num_groups));
  RETURN_IF_ERROR(CheckCount("zero points", zero_points.size(), symmetric ? 0 : rows * num_groups));
  RETURN_IF_ERROR(CheckFields(codes, cols, bits, "code", "column"));
  RETURN_IF_ERROR(CheckFields(zero_points, num_groups, bits, "zero point", "group"));

  auto storage = std::make_shared<PackedStorage>();
  ASSIGN_OR_RETURN(storage->scales, ToHalfScales(scales, num_groups));
  storage->codes.resize(tensor.code_words());
  const int64_t words_per_row = tensor.view().words_per_row();
  for (int row = 0; row < rows; ++row) {
    PackSequence(codes.subspan(int64_t{row} * cols, cols), bits,
                 storage->codes.data() + row * words_per_row);
  }
  tensor.codes = storage->codes.data();
  tensor.scales = storage->scales.data();
  if (!symmetric) {
    storage->zero_points.resize(tensor.zero_point_words());
    PackSequence(zero_points, bits, storage->zero_points.data());
    tensor.zero_points = storage->zero_points.data();
  }
  tensor.storage = std::move(storage);
  return tensor;
}

absl::StatusOr<HalfTensor> ToHalfTensor(absl::Span<const float> values, int rows, int cols,
                                        absl::string_view name) {
  auto storage = std::make_shared<std::vector<uint16_t>>();
  storage->reserve(values.size());
  for (const float value : values) {
    if (std::abs(value) >= 65520) {
      return absl::InvalidArgumentError(absl::StrCat(
          name, ": holds ", value, ", too large for half floats; use format.embedding_bits 8"));
    }
    storage->push_back(FloatToHalf(value));
  }
  HalfTensor half{.rows = rows, .cols = cols, .data = storage->data()};
  half.storage = std::move(storage);
  return half;
}

std::vector<uint8_t> UnpackCodes(const PackedTensor& tensor) {
  std::vector<uint8_t> codes(int64_t{tensor.rows} * tensor.cols);
  const int64_t words_per_row = tensor.view().words_per_row();
  for (int row = 0; row < tensor.rows; ++row) {
    const uint32_t* words = tensor.codes + row * words_per_row;
    uint8_t* out = codes.data() + int64_t{row} * tensor.cols;
    for (int col = 0; col < tensor.cols; ++col) out[col] = UnpackCode(words, tensor.bits, col);
  }
  return codes;
}

std::vector<uint8_t> UnpackZeroPoints(const PackedTensor& tensor) {
  const int64_t count = tensor.rows * tensor.num_groups();
  if (tensor.symmetric) {
    return std::vector<uint8_t>(count, static_cast<uint8_t>(1 << (tensor.bits - 1)));
  }
  return UnpackSequence(tensor.zero_points, tensor.bits, count);
}

std::vector<float> UnpackScales(const PackedTensor& tensor) {
  std::vector<float> scales(tensor.rows * tensor.num_groups());
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = HalfToFloat(tensor.scales[i]);
  return scales;
}

std::vector<float> Dequantize(const PackedTensor& tensor) {
  const std::vector<uint8_t> codes = UnpackCodes(tensor);
  const std::vector<uint8_t> zero_points = UnpackZeroPoints(tensor);
  const std::vector<float> scales = UnpackScales(tensor);
  std::vector<float> weights(codes.size());
  const int64_t num_groups = tensor.num_groups();
  for (int row = 0; row < tensor.rows; ++row) {
    for (int col = 0; col < tensor.cols; ++col) {
      const int64_t i = int64_t{row} * tensor.cols + col;
      const int64_t group = row * num_groups + col / tensor.group_size;
      weights[i] = static_cast<float>(codes[i] - zero_points[group]) * scales[group];
    }
  }
  return weights;
}

absl::StatusOr<PackedTensor> WithScales(const PackedTensor& tensor,
                                        absl::Span<const float> scales) {
  RETURN_IF_ERROR(CheckCount("scales", scales.size(), tensor.rows * tensor.num_groups()));
  auto storage = std::make_shared<PackedStorage>();
  ASSIGN_OR_RETURN(storage->scales, ToHalfScales(scales, tensor.num_groups()));
  storage->shared = tensor.storage;
  PackedTensor result = tensor;
  result.scales = storage->scales.data();
  result.storage = std::move(storage);
  result.origin.clear();
  return result;
}

absl::StatusOr<PackedTensor> RoundToNearest(absl::Span<const float> weights, int rows, int cols,
                                            int bits, int group_size, bool symmetric) {
  RETURN_IF_ERROR(CheckShape(rows, cols, bits, group_size));
  RETURN_IF_ERROR(CheckCount("weights", weights.size(), int64_t{rows} * cols));
  const float code_max = static_cast<float>((1 << bits) - 1);
  std::vector<uint8_t> codes(weights.size());
  std::vector<float> scales;
  std::vector<uint8_t> zero_points;
  for (int row = 0; row < rows; ++row) {
    for (int begin = 0; begin < cols; begin += group_size) {
      const int64_t offset = int64_t{row} * cols + begin;
      const auto values = weights.subspan(offset, std::min(group_size, cols - begin));
      for (size_t i = 0; i < values.size(); ++i) {
        if (!std::isfinite(values[i])) {
          return absl::InvalidArgumentError(absl::StrCat("weight at row ", row, ", column ",
                                                         begin + i, " is ", values[i],
                                                         ", wanted a finite number"));
        }
      }
      const Group group = FitGroup(values, bits, symmetric);
      scales.push_back(group.scale);
      if (!symmetric) zero_points.push_back(static_cast<uint8_t>(group.zero_point));
      for (size_t i = 0; i < values.size(); ++i) {
        const float code = std::nearbyint(values[i] / group.scale) + group.zero_point;
        codes[offset + i] = static_cast<uint8_t>(std::clamp(code, 0.0f, code_max));
      }
    }
  }
  return Pack(rows, cols, bits, group_size, symmetric, codes, scales, zero_points);
}

}  // namespace quern
