#ifndef QUERN_CORE_CONVERT_GPTQ_H_
#define QUERN_CORE_CONVERT_GPTQ_H_

// The layout of GPTQ v2 checkpoints (ModelCloud/GPTQModel, checkpoint_format "gptq_v2"): codes in
// int32 words as a little-endian bit stream along the inputs, zero points, as they are, along the
// outputs. 3-bit fields cross words ("continuous"). Version 1 stores zero points less one.
// EfficientQAT's native form (OpenGVLab/EfficientQAT, quantize/int_linear_real.py) has the same
// tensors, zero points as in version 2, and ten 3-bit fields in a word.

#include <absl/status/status.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstdint>
#include <vector>

#include "core/artifact/packed_model.h"

namespace quern {

struct GptqTensors {
  int in_features = 0;
  int out_features = 0;
  int num_groups = 0;
  std::vector<int32_t> qweight;  // [in_features * bits / 32, out_features]
  std::vector<int32_t> qzeros;   // [num_groups, out_features * bits / 32]
  std::vector<uint16_t> scales;  // half floats, [num_groups, out_features]
  std::vector<int32_t> g_idx;    // [in_features]: the group of each input
};

// FAILED_PRECONDITION naming `name` when the layout cannot hold the matrix: inputs and outputs must
// be multiples of 32, the inputs one of the group size too.
absl::Status CheckGptq(const PackedTensor& matrix, absl::string_view name);

// Of a matrix that CheckGptq accepts. Symmetric ones get their implied zero points.
GptqTensors ToGptq(const PackedTensor& matrix);

// Fields of `bits` bits, each [0, 2^bits - 1], one after the other from the lowest bit of the first
// word on. fields.size() * bits is a multiple of 32.
std::vector<int32_t> PackBitStream(absl::Span<const uint8_t> fields, int bits);

enum class FieldLayout {
  kStream,       // fields may cross words
  kWithinWords,  // 32 / bits of them in a word, what is left unused: EfficientQAT's native form
};
// `count` fields of `bits` bits from words that hold at least as many.
std::vector<uint8_t> UnpackFields(absl::Span<const uint32_t> words, FieldLayout layout, int bits,
                                  int64_t count);

}  // namespace quern

#endif  // QUERN_CORE_CONVERT_GPTQ_H_
