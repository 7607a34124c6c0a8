#ifndef QUERN_CORE_MODEL_TENSOR_NAMES_H_
#define QUERN_CORE_MODEL_TENSOR_NAMES_H_

// The tensors that a ModelConfig implies, by their Hugging Face names, with shapes.

#include <absl/strings/string_view.h>

#include <string>
#include <vector>

#include "core/model/model_config.h"

namespace quern {

struct TensorSpec {
  enum class Kind {
    kEmbedding,    // [vocab_size, hidden_size]
    kBlockMatrix,  // a linear of a transformer block, [out_features, in_features]
    kHead,         // [vocab_size, hidden_size]; absent when embeddings are tied
    kVector,       // norm weights and biases, [n]
  };
  std::string name;  // e.g. "model.layers.0.self_attn.q_proj.weight"
  Kind kind;
  std::vector<int64_t> shape;
};

inline constexpr absl::string_view kEmbeddingName = "model.embed_tokens.weight";
inline constexpr absl::string_view kFinalNormName = "model.norm.weight";
inline constexpr absl::string_view kHeadName = "lm_head.weight";

// "model.layers.{layer}.{suffix}", e.g. BlockTensorName(0, "mlp.up_proj.weight").
std::string BlockTensorName(int layer, absl::string_view suffix);

// All tensors of one block, in a fixed order: norms, q, k, v, o (weights, biases, q/k norms),
// gate, up, down.
std::vector<TensorSpec> BlockTensors(const ModelConfig& config, int layer);

// Embedding, blocks in order, final norm, head.
std::vector<TensorSpec> ModelTensors(const ModelConfig& config);

}  // namespace quern

#endif  // QUERN_CORE_MODEL_TENSOR_NAMES_H_
