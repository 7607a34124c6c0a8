#ifndef QUERN_CORE_MODEL_MODEL_CONFIG_H_
#define QUERN_CORE_MODEL_MODEL_CONFIG_H_

// What a decoder looks like, as data: every supported family is a setting of these fields, with
// their Hugging Face names.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/json.h"

namespace quern {

// Llama 3's change of low rotary frequencies (config.json `rope_scaling`, rope_type "llama3").
struct RopeScaling {
  enum class Type { kNone, kLinear, kLlama3 };
  Type type = Type::kNone;
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int original_max_position_embeddings = 8192;
  bool operator==(const RopeScaling&) const = default;
};

struct ModelConfig {
  std::string model_type;  // "llama", "mistral", "qwen2" or "qwen3"
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_hidden_layers = 0;
  int num_attention_heads = 0;
  int num_key_value_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;  // rows of the embedding
  int max_position_embeddings = 0;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // q, k and v have a bias (Qwen2; Llama with attention_bias)
  bool o_bias = false;    // the attention output has one (Llama with attention_bias)
  bool mlp_bias = false;  // gate, up and down have one (Llama with mlp_bias)
  bool qk_norm = false;   // RMSNorm over each head of q and k before RoPE (Qwen3)
  int bos_token_id = -1;  // -1: none
  std::vector<int> eos_token_ids;

  int q_size() const { return num_attention_heads * head_dim; }
  int kv_size() const { return num_key_value_heads * head_dim; }

  // INVALID_ARGUMENT naming the field, its value and what is supported: positive sizes within
  // bounds, heads a multiple of key/value heads, an even head_dim of at most 256, finite numbers.
  absl::Status Validate() const;

  bool operator==(const ModelConfig&) const = default;
};

// From a Hugging Face config.json. Refuses, naming key, value and what is supported: an unknown
// model_type, other activations than silu, sliding windows that would take effect, rope types
// other than default, linear and llama3, `auto_map` and `trust_remote_code` (they ask for code),
// quantization_config. The result is validated.
absl::StatusOr<ModelConfig> ModelConfigFromHuggingFace(const Json& config, absl::string_view where);

// The inverse: a config.json that transformers and the function above read as `config`.
// FAILED_PRECONDITION when none does (biases that the family's class does not have).
absl::StatusOr<Json> ModelConfigToHuggingFace(const ModelConfig& config);

// Our own form, for manifests: every field, canonical. Strict: an unknown or missing key fails.
Json ModelConfigToJson(const ModelConfig& config);
absl::StatusOr<ModelConfig> ModelConfigFromJson(const Json& json, absl::string_view where);

}  // namespace quern

#endif  // QUERN_CORE_MODEL_MODEL_CONFIG_H_
