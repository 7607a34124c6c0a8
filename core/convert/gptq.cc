#include "core/convert/gptq.h"

#include <absl/strings/str_cat.h>

#include "core/artifact/pack.h"

namespace quern {

std::vector<int32_t> PackBitStream(absl::Span<const uint8_t> fields, int bits) {
  std::vector<uint32_t> words(fields.size() * bits / 32);
  for (size_t i = 0; i < fields.size(); ++i) {
    const size_t bit = i * bits;
    const uint64_t field = uint64_t{fields[i]} << (bit % 32);
    words[bit / 32] |= static_cast<uint32_t>(field);
    if (field >> 32 != 0) words[bit / 32 + 1] |= static_cast<uint32_t>(field >> 32);
  }
  return std::vector<int32_t>(words.begin(), words.end());
}

std::vector<uint8_t> UnpackFields(absl::Span<const uint32_t> words, FieldLayout layout, int bits,
                                  int64_t count) {
  const uint32_t mask = (uint32_t{1} << bits) - 1;
  const int per_word = 32 / bits;
  std::vector<uint8_t> fields(count);
  for (int64_t i = 0; i < count; ++i) {
    if (layout == FieldLayout::kWithinWords) {
      fields[i] = static_cast<uint8_t>(words[i / per_word] >> (i % per_word * bits) & mask);
      continue;
    }
    const int64_t bit = i * bits;
    uint64_t word = words[bit / 32];
    if (bit % 32 + bits > 32) word |= uint64_t{words[bit / 32 + 1]} << 32;
    fields[i] = static_cast<uint8_t>(word >> (bit % 32) & mask);
  }
  return fields;
}

absl::Status CheckGptq(const PackedTensor& matrix, absl::string_view name) {
  if (matrix.cols % 32 == 0 && matrix.rows % 32 == 0 && matrix.cols % matrix.group_size == 0) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      name, ": [", matrix.rows, ", ", matrix.cols, "] in groups of ", matrix.group_size,
      " does not fit GPTQ's layout: rows and columns must be multiples of 32, and columns one of "
      "the group; export it with --as huggingface"));
}

GptqTensors ToGptq(const PackedTensor& matrix) {
  const int rows = matrix.rows;
  const int cols = matrix.cols;
  const int num_groups = static_cast<int>(matrix.num_groups());
  GptqTensors gptq{.in_features = cols, .out_features = rows, .num_groups = num_groups};
  const std::vector<uint8_t> codes = UnpackCodes(matrix);
  const std::vector<uint8_t> zero_points = UnpackZeroPoints(matrix);
  const int words = cols * matrix.bits / 32;
  gptq.qweight.resize(int64_t{words} * rows);
  for (int row = 0; row < rows; ++row) {
    const std::vector<int32_t> column =
        PackBitStream({codes.data() + int64_t{row} * cols, static_cast<size_t>(cols)}, matrix.bits);
    for (int word = 0; word < words; ++word) {
      gptq.qweight[int64_t{word} * rows + row] = column[word];
    }
  }
  gptq.scales.resize(int64_t{num_groups} * rows);
  std::vector<uint8_t> of_group(rows);
  for (int group = 0; group < num_groups; ++group) {
    for (int row = 0; row < rows; ++row) {
      gptq.scales[int64_t{group} * rows + row] = matrix.scales[int64_t{row} * num_groups + group];
      of_group[row] = zero_points[int64_t{row} * num_groups + group];
    }
    const std::vector<int32_t> packed = PackBitStream(of_group, matrix.bits);
    gptq.qzeros.insert(gptq.qzeros.end(), packed.begin(), packed.end());
  }
  for (int col = 0; col < cols; ++col) gptq.g_idx.push_back(col / matrix.group_size);
  return gptq;
}

}  // namespace quern
