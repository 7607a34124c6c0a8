#include "core/checkpoint/gguf_config.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "core/model/rope.h"
#include "core/model/tensor_names.h"

namespace quern {
namespace {

struct NamePair {
  absl::string_view hugging_face;
  absl::string_view gguf;
};
constexpr NamePair kModelNames[] = {
    {kEmbeddingName, "token_embd.weight"},
    {kFinalNormName, "output_norm.weight"},
    {kHeadName, "output.weight"},
};
// Behind "model.layers.N." and "blk.N.", before ".weight" and ".bias".
constexpr NamePair kBlockNames[] = {
    {"input_layernorm", "attn_norm"},    {"post_attention_layernorm", "ffn_norm"},
    {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},      {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};

// Keys under the architecture's name that change the arithmetic in ways that are not implemented.
// Harmless only with the value 0 (or where the key is missing).
constexpr absl::string_view kForeignKeys[] = {
    "expert_count",
    "expert_used_count",
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "attention.sliding_window_pattern",
};

// Mistral comes as llama.
absl::string_view GgufArchitecture(const ModelConfig& config) {
  return config.model_type == "mistral" ? "llama" : absl::string_view(config.model_type);
}

// Reads the keys of one architecture.
class ConfigReader {
 public:
  ConfigReader(const GgufFile& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)) {}

  absl::StatusOr<ModelConfig> Read(int max_position_embeddings);

 private:
  std::string Key(absl::string_view name) const { return absl::StrCat(architecture_, ".", name); }
  bool HasTensor(absl::string_view name) const {
    return file_.tensors().count(std::string(name)) != 0;
  }
  absl::Status ReadSizes(int max_position_embeddings);
  absl::Status ReadHeadDim();
  absl::Status RefuseForeign() const;
  absl::Status ReadRopeScaling();
  absl::Status ReadRopeFactors();
  absl::Status ReadTokenIds();
  absl::StatusOr<int> TokenId(absl::string_view name) const;

  const GgufFile& file_;
  const std::string architecture_;
  ModelConfig config_;
};

absl::Status ConfigReader::ReadHeadDim() {
  int64_t head_dim = 0;
  if (config_.hidden_size % config_.num_attention_heads == 0) {
    head_dim = config_.hidden_size / config_.num_attention_heads;
  }
  ASSIGN_OR_RETURN(head_dim, file_.IntOr(Key("attention.key_length"), 1, INT32_MAX, head_dim));
  if (head_dim == 0) {
    return file_.Wrong(Key("attention.head_count"),
                       absl::StrCat("a divisor of embedding_length ", config_.hidden_size,
                                    ", or the key attention.key_length"));
  }
  for (absl::string_view name : {"attention.value_length", "rope.dimension_count"}) {
    ASSIGN_OR_RETURN(const int64_t other, file_.IntOr(Key(name), 1, INT32_MAX, head_dim));
    if (other != head_dim) {
      return file_.Wrong(Key(name), absl::StrCat("the head size ", head_dim));
    }
  }
  config_.head_dim = static_cast<int>(head_dim);
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadSizes(int max_position_embeddings) {
  const struct {
    absl::string_view key;
    int* value;
  } sizes[] = {
      {"block_count", &config_.num_hidden_layers},
      {"embedding_length", &config_.hidden_size},
      {"feed_forward_length", &config_.intermediate_size},
      {"attention.head_count", &config_.num_attention_heads},
      {"context_length", &config_.max_position_embeddings},
  };
  for (const auto& size : sizes) {
    ASSIGN_OR_RETURN(*size.value, file_.Int(Key(size.key), 1, INT32_MAX));
  }
  if (max_position_embeddings > 0) config_.max_position_embeddings = max_position_embeddings;
  ASSIGN_OR_RETURN(
      config_.num_key_value_heads,
      file_.IntOr(Key("attention.head_count_kv"), 1, INT32_MAX, config_.num_attention_heads));
  RETURN_IF_ERROR(ReadHeadDim());
  ASSIGN_OR_RETURN(config_.rms_norm_eps,
                   file_.Number(Key("attention.layer_norm_rms_epsilon"), 1e-30, 1));
  ASSIGN_OR_RETURN(config_.rope_theta, file_.NumberOr(Key("rope.freq_base"), 1, 1e15, 10000));
  const std::string embedding_name = GgufTensorName(kEmbeddingName);
  const auto embedding = file_.tensors().find(embedding_name);
  if (embedding == file_.tensors().end() || embedding->second.shape.size() != 2 ||
      embedding->second.shape[0] > INT32_MAX) {
    return absl::DataLossError(absl::StrCat(file_.path(), ": tensor ", embedding_name,
                                            " is missing or no matrix: the file holds no model"));
  }
  config_.vocab_size = static_cast<int>(embedding->second.shape[0]);
  ASSIGN_OR_RETURN(const int64_t declared,
                   file_.IntOr(Key("vocab_size"), 1, INT32_MAX, config_.vocab_size));
  if (declared != config_.vocab_size) {
    return file_.Wrong(Key("vocab_size"),
                       absl::StrCat("the ", config_.vocab_size, " rows of ", embedding_name));
  }
  return absl::OkStatus();
}

absl::Status ConfigReader::RefuseForeign() const {
  for (absl::string_view name : kForeignKeys) {
    const std::string key = Key(name);
    if (!file_.Has(key)) continue;
    const absl::StatusOr<int64_t> integer = file_.Int(key, 0, 0);
    const absl::StatusOr<double> number = file_.Number(key, 0, 0);
    if (!integer.ok() && !number.ok()) return file_.Wrong(key, "0 or no such key");
  }
  ASSIGN_OR_RETURN(const bool causal, file_.BoolOr(Key("attention.causal"), true));
  if (!causal) return file_.Wrong(Key("attention.causal"), "true");
  const std::string window_key = Key("attention.sliding_window");
  ASSIGN_OR_RETURN(const int64_t window, file_.IntOr(window_key, 0, UINT32_MAX, 0));
  if (window != 0 && window < config_.max_position_embeddings) {
    return file_.Wrong(
        window_key, absl::StrCat("a window that takes no effect: limit max_position_embeddings, ",
                                 config_.max_position_embeddings, ", to it"));
  }
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadRopeScaling() {
  const std::string type_key = Key("rope.scaling.type");
  const std::string factor_key = Key("rope.scaling.factor");
  std::string type = "none";
  if (file_.Has(type_key)) {
    ASSIGN_OR_RETURN(type, file_.String(type_key));
  }
  RopeScaling& scaling = config_.rope_scaling;
  if (type == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
    ASSIGN_OR_RETURN(scaling.factor, file_.Number(factor_key, 1e-3, 1e6));
  } else if (type != "none") {
    return file_.Wrong(type_key, "none or linear");
  } else if (const std::string old_key = Key("rope.scale_linear"); file_.Has(old_key)) {
    ASSIGN_OR_RETURN(const double factor, file_.Number(old_key, 0, 1e6));
    // 0 meant "not set".
    if (factor != 0 && factor != 1) {
      scaling.type = RopeScaling::Type::kLinear;
      scaling.factor = factor;
    }
  }
  return ReadRopeFactors();
}

// llama.cpp's converter (conversion of Llama 3.1 and later) stores base frequency / scaled
// frequency for every rotary pair instead of the parameters. The parameters are recovered by trying
// the published ones (low 1, high 4, 8192 positions) with the tensor's own largest factor, and
// accepted only if they give every factor back.
absl::Status ConfigReader::ReadRopeFactors() {
  const auto found = file_.tensors().find(kGgufRopeFactorsName);
  if (found == file_.tensors().end()) return absl::OkStatus();
  const GgufTensor& tensor = found->second;
  const auto fail = [&](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": tensor ", kGgufRopeFactorsName, ": ", what));
  };
  if (tensor.type != GgmlType::kF32 || tensor.shape != std::vector<int64_t>{config_.head_dim / 2}) {
    return fail(absl::StrCat("wanted F32 of shape [", config_.head_dim / 2, "]"));
  }
  std::vector<float> factors(static_cast<size_t>(tensor.num_elements()));
  DequantizeGgml(tensor.type, tensor.data, tensor.num_elements(), factors.data());
  if (std::all_of(factors.begin(), factors.end(), [](float factor) { return factor == 1; })) {
    return absl::OkStatus();
  }
  const std::string unsupported =
      "factors are not those of rope type llama3 (low_freq_factor 1, "
      "high_freq_factor 4, 8192 positions), which alone is supported";
  if (config_.rope_scaling.type != RopeScaling::Type::kNone) return fail(unsupported);
  ModelConfig scaled = config_;
  scaled.rope_scaling = {.type = RopeScaling::Type::kLlama3,
                         .factor = *std::max_element(factors.begin(), factors.end()),
                         .low_freq_factor = 1,
                         .high_freq_factor = 4,
                         .original_max_position_embeddings = 8192};
  if (!scaled.Validate().ok()) return fail(unsupported);
  const std::vector<float> base = RopeFrequencies(config_);
  const std::vector<float> wanted = RopeFrequencies(scaled);
  for (size_t i = 0; i < factors.size(); ++i) {
    // The converter computes in float; neighbouring parameters differ by far more.
    if (!(std::fabs(base[i] / factors[i] - wanted[i]) <= 1e-4f * wanted[i])) {
      return fail(unsupported);
    }
  }
  config_.rope_scaling = scaled.rope_scaling;
  return absl::OkStatus();
}

absl::StatusOr<int> ConfigReader::TokenId(absl::string_view name) const {
  const std::string key = absl::StrCat("tokenizer.ggml.", name, "_token_id");
  ASSIGN_OR_RETURN(const int64_t id, file_.IntOr(key, 0, kNoGgufToken, kNoGgufToken));
  if (id == kNoGgufToken) return -1;
  if (id >= config_.vocab_size) {
    return file_.Wrong(key, absl::StrCat("less than the vocabulary of ", config_.vocab_size));
  }
  return static_cast<int>(id);
}

absl::Status ConfigReader::ReadTokenIds() {
  ASSIGN_OR_RETURN(config_.bos_token_id, TokenId("bos"));
  // End of text, of a turn and of a message: each ends a generation.
  for (absl::string_view name : {"eos", "eot", "eom"}) {
    ASSIGN_OR_RETURN(const int id, TokenId(name));
    std::vector<int>& ids = config_.eos_token_ids;
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ConfigReader::Read(int max_position_embeddings) {
  config_.model_type = architecture_;
  RETURN_IF_ERROR(ReadSizes(max_position_embeddings));
  RETURN_IF_ERROR(RefuseForeign());
  config_.tie_word_embeddings = !HasTensor(GgufTensorName(kHeadName));
  config_.qkv_bias = HasTensor("blk.0.attn_q.bias");
  config_.o_bias = HasTensor("blk.0.attn_output.bias");
  config_.mlp_bias = HasTensor("blk.0.ffn_up.bias");
  config_.qk_norm = architecture_ == "qwen3";
  RETURN_IF_ERROR(ReadTokenIds());
  // Before the RoPE factors, which are computed with these sizes.
  RETURN_IF_ERROR(config_.Validate());
  RETURN_IF_ERROR(ReadRopeScaling());
  RETURN_IF_ERROR(config_.Validate());
  return config_;
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfigFromGguf(const GgufFile& file, int max_position_embeddings) {
  ASSIGN_OR_RETURN(std::string architecture, file.String("general.architecture"));
  if (architecture != "llama" && architecture != "qwen2" && architecture != "qwen3") {
    return file.Wrong("general.architecture", "llama, qwen2 or qwen3");
  }
  absl::StatusOr<ModelConfig> config =
      ConfigReader(file, std::move(architecture)).Read(max_position_embeddings);
  if (!config.ok() && !absl::StartsWith(config.status().message(), file.path())) {
    return absl::Status(config.status().code(),
                        absl::StrCat(file.path(), ": ", config.status().message()));
  }
  return config;
}

std::string GgufTensorName(absl::string_view name) {
  for (const NamePair& pair : kModelNames) {
    if (pair.hugging_face == name) return std::string(pair.gguf);
  }
  absl::string_view rest = name;
  if (!absl::ConsumePrefix(&rest, "model.layers.")) return std::string(name);
  const absl::string_view layer = rest.substr(0, rest.find('.'));
  rest.remove_prefix(std::min(layer.size() + 1, rest.size()));
  for (const NamePair& pair : kBlockNames) {
    if (absl::StartsWith(rest, absl::StrCat(pair.hugging_face, "."))) {
      return absl::StrCat("blk.", layer, ".", pair.gguf, rest.substr(pair.hugging_face.size()));
    }
  }
  return std::string(name);
}

bool HasInterleavedRotaryRows(const ModelConfig& config) {
  return GgufArchitecture(config) == "llama";
}

int64_t InterleavedRow(int64_t row, int head_dim) {
  const int64_t in_head = row % head_dim;
  return row - in_head + in_head % 2 * (head_dim / 2) + in_head / 2;
}

void AddModelConfigToGguf(const ModelConfig& config, GgufWriter& writer) {
  const std::string architecture(GgufArchitecture(config));
  const auto key = [&](absl::string_view name) { return absl::StrCat(architecture, ".", name); };
  writer.String("general.architecture", architecture);
  const std::pair<absl::string_view, int> sizes[] = {
      {"block_count", config.num_hidden_layers},
      {"context_length", config.max_position_embeddings},
      {"embedding_length", config.hidden_size},
      {"feed_forward_length", config.intermediate_size},
      {"attention.head_count", config.num_attention_heads},
      {"attention.head_count_kv", config.num_key_value_heads},
      {"attention.key_length", config.head_dim},
      {"attention.value_length", config.head_dim},
      {"rope.dimension_count", config.head_dim},
      {"vocab_size", config.vocab_size},
  };
  for (const auto& [name, value] : sizes) writer.Uint32(key(name), static_cast<uint32_t>(value));
  writer.Float32(key("rope.freq_base"), static_cast<float>(config.rope_theta));
  writer.Float32(key("attention.layer_norm_rms_epsilon"), static_cast<float>(config.rms_norm_eps));
  if (config.rope_scaling.type == RopeScaling::Type::kLinear) {
    writer.String(key("rope.scaling.type"), "linear");
    writer.Float32(key("rope.scaling.factor"), static_cast<float>(config.rope_scaling.factor));
  }
}

std::vector<float> GgufRopeFactors(const ModelConfig& config) {
  if (config.rope_scaling.type != RopeScaling::Type::kLlama3) return {};
  ModelConfig plain = config;
  plain.rope_scaling = {};
  std::vector<float> factors = RopeFrequencies(plain);
  const std::vector<float> scaled = RopeFrequencies(config);
  for (size_t i = 0; i < factors.size(); ++i) factors[i] /= scaled[i];
  return factors;
}

}  // namespace quern
