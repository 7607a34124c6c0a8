#ifndef QUERN_CORE_ENGINE_MODEL_SOURCE_H_
#define QUERN_CORE_ENGINE_MODEL_SOURCE_H_

// What the engine can load: each matrix packed (an artifact) or dense (a checkpoint as it came).

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "core/artifact/packed_model.h"
#include "core/checkpoint/checkpoint.h"
#include "core/model/model_config.h"
#include "core/tokenizer/chat.h"
#include "core/tokenizer/tokenizer.h"
#include "kernels/packed_matrix.h"

namespace quern {

using MatrixView = std::variant<PackedMatrix, DenseMatrix>;

// What packed matrices are multiplied with and as.
enum class Precision {
  // Activations as int8 in groups, but as int16 in the first and the last block and the head, where
  // rounding costs most: docs/performance.md, Precision.
  kMixed,
  kInt8,   // activations as int8 in groups
  kInt16,  // activations as int16 in groups: closer to the floats than half floats are
  kFloat,  // packed matrices as the floats they mean, without rounding of activations: the
           // yardstick
};

// What keys and values are kept as. kInt8 and kInt4 keep whole pages as integers with scales for
// groups of each head, and the page that a sequence is filling in half floats
// (kernels::QuantizedKv): docs/performance.md, KV cache.
enum class KvCacheType { kFloat16, kInt8, kInt4 };
// "float16", "int8", "int4".
absl::string_view KvCacheTypeName(KvCacheType type);
// INVALID_ARGUMENT when it is no such name.
absl::StatusOr<KvCacheType> ParseKvCacheType(absl::string_view name);

class ModelSource;

// Speculative decoding: the next tokens are guessed and computed in one step. Answers are the same;
// few sequences with guessable texts get them sooner.
struct SpeculationOptions {
  // Guesses for a sequence in one step, at most kMaxGuesses; 0: no speculation.
  int max_guesses = 0;
  // A quicker model that makes the guesses, of the same tokenizer: fewer bits or fewer parameters.
  // Read during Load. Null: prompt lookup, which costs nothing.
  const ModelSource* draft = nullptr;
};

inline constexpr int kMaxGuesses = 7;

struct LoadOptions {
  Precision precision = Precision::kMixed;
  KvCacheType kv_cache_type = KvCacheType::kFloat16;
  SpeculationOptions speculation;
};

// Memory that a model takes in the engine, what it may share with others included.
struct ModelMemory {
  int64_t weight_bytes = 0;  // in the form the kernels read
  int64_t kv_bytes = 0;
  int64_t workspace_bytes = 0;  // buffers of a step

  int64_t total_bytes() const { return weight_bytes + kv_bytes + workspace_bytes; }
};

// Read once, at load. A view is valid until the next call.
class ModelSource {
 public:
  virtual ~ModelSource() = default;
  virtual const ModelConfig& config() const = 0;
  virtual absl::StatusOr<MatrixView> Matrix(absl::string_view name) const = 0;
  // Norm weights and biases as F32; DATA_LOSS when a value is not finite.
  virtual absl::StatusOr<std::vector<float>> Vector(absl::string_view name) const = 0;
  virtual const std::string& tokenizer_json() const = 0;
  virtual const std::string& chat_template() const = 0;
  // As Matrix, but only its type and shape count: the data may be null.
  virtual absl::StatusOr<MatrixView> MatrixShape(absl::string_view name) const {
    return Matrix(name);
  }
  // What the matrix's bytes are known by: matrices of equal identity are equal, whatever models
  // they belong to. Empty: not known.
  virtual std::string MatrixIdentity(absl::string_view /*name*/) const { return ""; }
};

// `model` is kept alive by the result.
std::unique_ptr<ModelSource> MakeModelSource(std::shared_ptr<const PackedModel> model);
std::unique_ptr<ModelSource> MakeModelSource(std::shared_ptr<const Checkpoint> checkpoint);

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_MODEL_SOURCE_H_
