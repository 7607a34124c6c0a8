#include "core/model/tensor_names.h"

#include <absl/strings/str_cat.h>

#include <utility>

namespace quern {
namespace {

using Kind = TensorSpec::Kind;

// Collects the tensors of one block.
class BlockBuilder {
 public:
  explicit BlockBuilder(int layer) : layer_(layer) {}

  void Vector(absl::string_view suffix, int64_t size) {
    specs_.push_back({BlockTensorName(layer_, suffix), Kind::kVector, {size}});
  }
  void Linear(absl::string_view module, int64_t out_features, int64_t in_features, bool bias) {
    specs_.push_back({BlockTensorName(layer_, absl::StrCat(module, ".weight")),
                      Kind::kBlockMatrix,
                      {out_features, in_features}});
    if (bias) Vector(absl::StrCat(module, ".bias"), out_features);
  }
  std::vector<TensorSpec> Take() { return std::move(specs_); }

 private:
  const int layer_;
  std::vector<TensorSpec> specs_;
};

}  // namespace

std::string BlockTensorName(int layer, absl::string_view suffix) {
  return absl::StrCat("model.layers.", layer, ".", suffix);
}

std::vector<TensorSpec> BlockTensors(const ModelConfig& config, int layer) {
  BlockBuilder block(layer);
  const int64_t hidden = config.hidden_size;
  const int64_t intermediate = config.intermediate_size;
  block.Vector("input_layernorm.weight", hidden);
  block.Vector("post_attention_layernorm.weight", hidden);
  block.Linear("self_attn.q_proj", config.q_size(), hidden, config.qkv_bias);
  block.Linear("self_attn.k_proj", config.kv_size(), hidden, config.qkv_bias);
  block.Linear("self_attn.v_proj", config.kv_size(), hidden, config.qkv_bias);
  if (config.qk_norm) {
    block.Vector("self_attn.q_norm.weight", config.head_dim);
    block.Vector("self_attn.k_norm.weight", config.head_dim);
  }
  block.Linear("self_attn.o_proj", hidden, config.q_size(), config.o_bias);
  block.Linear("mlp.gate_proj", intermediate, hidden, config.mlp_bias);
  block.Linear("mlp.up_proj", intermediate, hidden, config.mlp_bias);
  block.Linear("mlp.down_proj", hidden, intermediate, config.mlp_bias);
  return block.Take();
}

std::vector<TensorSpec> ModelTensors(const ModelConfig& config) {
  std::vector<TensorSpec> specs;
  const std::vector<int64_t> table = {config.vocab_size, config.hidden_size};
  specs.push_back({std::string(kEmbeddingName), Kind::kEmbedding, table});
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (TensorSpec& spec : BlockTensors(config, layer)) specs.push_back(std::move(spec));
  }
  specs.push_back({std::string(kFinalNormName), Kind::kVector, {config.hidden_size}});
  if (!config.tie_word_embeddings) {
    specs.push_back({std::string(kHeadName), Kind::kHead, table});
  }
  return specs;
}

}  // namespace quern
