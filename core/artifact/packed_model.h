#ifndef QUERN_CORE_ARTIFACT_PACKED_MODEL_H_
#define QUERN_CORE_ARTIFACT_PACKED_MODEL_H_

// The waist of the project: training ends in a PackedModel, serving starts from one.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/model/model_config.h"
#include "core/model/tensor_names.h"
#include "kernels/packed_matrix.h"

namespace quern {

// How linear weights are coded: w = (code - zero_point) * scale, per group.
struct QuantFormat {
  int bits = 4;            // 2, 3, 4 or 8
  int group_size = 64;     // 32, 64, 128, or 0 for a whole output channel
  bool symmetric = false;  // no zero points; the scale may be negative
  int embedding_bits = 8;  // of the embedding and the head: 4, 8 or 16 (16: kept as half floats)
  // Matrices of blocks that take other bits than `bits`, by tensor name.
  std::map<std::string, int> matrix_bits;

  // Of a block's matrix.
  int BitsOf(const std::string& name) const;
  // The same for one matrix, whose bits are then `bits`.
  QuantFormat For(const std::string& name) const;

  // INVALID_ARGUMENT naming the field, its value and what is supported.
  absl::Status Validate() const;
  // The same, and that matrix_bits names matrices of the blocks of such a model.
  absl::Status ValidateFor(const ModelConfig& config) const;
  bool operator==(const QuantFormat&) const = default;
};

// How one matrix is coded.
struct MatrixFormat {
  int bits = 0;
  int group_size = 0;  // in [1, cols]
  bool symmetric = false;
  bool operator==(const MatrixFormat&) const = default;
};

// What `format` means for a matrix of kind `kind` with `cols` inputs: block matrices take `bits`,
// embedding and head `embedding_bits`; group and symmetry are the same for all, a group longer than
// a row becomes the row. Nothing for a matrix that stays at 16 bits. `kind` is no kVector.
std::optional<MatrixFormat> FormatOf(const QuantFormat& format, TensorSpec::Kind kind, int cols);
// The same for a matrix by its name, which may have bits of its own.
std::optional<MatrixFormat> FormatOf(const QuantFormat& format, const TensorSpec& spec);

// Mean bits of the codes of a model's blocks.
double MeanBits(const QuantFormat& format, const ModelConfig& config);

// One quantized matrix that owns its memory (or shares a mapping). Layout: PackedMatrix.
struct PackedTensor {
  int rows = 0;
  int cols = 0;
  int bits = 0;
  int group_size = 0;  // in [1, cols]: 0 of QuantFormat is resolved to cols here
  bool symmetric = false;
  const uint32_t* codes = nullptr;
  const uint16_t* scales = nullptr;
  const uint32_t* zero_points = nullptr;  // null when symmetric
  // Keeps the memory behind the pointers alive.
  std::shared_ptr<const void> storage;
  // The id of the artifact that holds these bytes under the tensor's name, so that equal name and
  // origin mean equal bytes. Empty when none does.
  std::string origin;

  PackedMatrix view() const;
  int64_t num_groups() const { return (cols + group_size - 1) / group_size; }
  int64_t code_words() const { return int64_t{(cols + 31) / 32} * bits * rows; }
  int64_t zero_point_words() const { return PackedWords(rows * num_groups(), bits); }
  // Codes, scales and zero points.
  int64_t size_bytes() const;
};

// A dense F16 matrix (an embedding or head kept at 16 bits).
struct HalfTensor {
  int rows = 0;
  int cols = 0;
  const uint16_t* data = nullptr;
  std::shared_ptr<const void> storage;
  std::string origin;  // as in PackedTensor
};

struct PackedModel {
  ModelConfig config;
  QuantFormat format;
  // By Hugging Face tensor name ("...q_proj.weight", "model.embed_tokens.weight"). Every matrix of
  // ModelTensors(config) is in exactly one of the two maps.
  std::map<std::string, PackedTensor> matrices;
  std::map<std::string, HalfTensor> half_matrices;
  // Norm weights and biases, F32, by name.
  std::map<std::string, std::vector<float>> vectors;
  // As in Checkpoint.
  std::string tokenizer_json;
  std::string chat_template;

  // Codes, scales, zero points, half matrices, vectors.
  int64_t weight_bytes() const;
};

}  // namespace quern

#endif  // QUERN_CORE_ARTIFACT_PACKED_MODEL_H_
