#include "core/model/model_config.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cmath>

#include "core/base/status_macros.h"

namespace quern {
namespace {

// Inputs of a matrix: kernels sum a group, at most a whole row, in 32-bit integers
// (kernels/packed_matrix.h, kMaxGroupSize). Heads times head_dim stays below it as well.
constexpr int kMaxHiddenSize = 65'536;
constexpr int kMaxIntermediateSize = 65'536;
constexpr int kMaxLayers = 1'024;
constexpr int kMaxHeads = 256;
constexpr int kMaxHeadDim = 256;
constexpr int kMaxVocabSize = 1'048'576;
constexpr int kMaxContext = 16'777'216;
constexpr size_t kMaxEosIds = 64;

// What config.json leaves to the model class. One row per model_type of Hugging Face transformers.
struct Family {
  // Biases are a fixed property of the class, or follow the keys attention_bias and mlp_bias.
  enum class AttentionBias { kNever, kQkvAlways, kByKey };
  // When the key sliding_window takes effect.
  enum class Window { kNever, kWhenSet, kWhenUsed };

  absl::string_view model_type;
  absl::string_view architecture;  // the class
  AttentionBias attention_bias;
  bool mlp_bias_by_key;
  bool qk_norm;
  int default_head_dim;  // 0: hidden_size / num_attention_heads
  Window window;
  int default_window;  // of a missing key; 0: none
};

constexpr Family kFamilies[] = {
    {"llama", "LlamaForCausalLM", Family::AttentionBias::kByKey, true, false, 0,
     Family::Window::kNever, 0},
    {"mistral", "MistralForCausalLM", Family::AttentionBias::kNever, false, false, 0,
     Family::Window::kWhenSet, 4096},
    {"qwen2", "Qwen2ForCausalLM", Family::AttentionBias::kQkvAlways, false, false, 0,
     Family::Window::kWhenUsed, 4096},
    {"qwen3", "Qwen3ForCausalLM", Family::AttentionBias::kByKey, false, true, 128,
     Family::Window::kWhenUsed, 4096},
};

const Family* FindFamily(absl::string_view model_type) {
  for (const Family& family : kFamilies) {
    if (family.model_type == model_type) return &family;
  }
  return nullptr;
}

std::string SupportedFamilies() {
  return absl::StrJoin(kFamilies, ", ", [](std::string* out, const Family& family) {
    absl::StrAppend(out, family.model_type);
  });
}

absl::Status Unsupported(const JsonObject& config, absl::string_view key,
                         absl::string_view supported) {
  const Json* value = config.Find(key);
  std::string found =
      value == nullptr ? "nothing" : value->dump(-1, ' ', true, Json::error_handler_t::replace);
  if (found.size() > 80) found = absl::StrCat(found.substr(0, 77), "...");
  return absl::InvalidArgumentError(
      absl::StrCat(config.where(), ": ", key, ": found ", found, ", supported: ", supported));
}

bool IsSet(const JsonObject& config, absl::string_view key) {
  const Json* value = config.Find(key);
  return value != nullptr && !value->is_null();
}

// Keys that ask for code of the model's author, or for arithmetic that is not implemented.
absl::Status RefuseForeign(const JsonObject& config) {
  if (IsSet(config, "auto_map")) {
    return Unsupported(config, "auto_map", "models that need no code of their own");
  }
  ASSIGN_OR_RETURN(const bool trust, config.BoolOr("trust_remote_code", false));
  if (trust) {
    return Unsupported(config, "trust_remote_code", "models that need no code of their own");
  }
  if (IsSet(config, "quantization_config")) {
    return Unsupported(config, "quantization_config", "checkpoints in F32, F16 or BF16");
  }
  for (absl::string_view key : {"torch_dtype", "dtype"}) {
    ASSIGN_OR_RETURN(const std::string dtype, config.StringOr(key, "float32"));
    if (dtype != "float32" && dtype != "float16" && dtype != "bfloat16") {
      return Unsupported(config, key, "float32, float16, bfloat16");
    }
  }
  ASSIGN_OR_RETURN(const std::string activation, config.StringOr("hidden_act", "silu"));
  if (activation != "silu" && activation != "swish") {
    return Unsupported(config, "hidden_act", "silu");
  }
  ASSIGN_OR_RETURN(const double rotary, config.NumberOr("partial_rotary_factor", 0, 1, 1));
  if (rotary != 1) return Unsupported(config, "partial_rotary_factor", "1");
  if (IsSet(config, "layer_types")) {
    ASSIGN_OR_RETURN(const Json* types, config.Array("layer_types"));
    for (const Json& type : *types) {
      if (type != "full_attention") return Unsupported(config, "layer_types", "full_attention");
    }
  }
  if (IsSet(config, "architectures")) {
    ASSIGN_OR_RETURN(const Json* names, config.Array("architectures"));
    for (const Json& name : *names) {
      if (!name.is_string() || !absl::EndsWith(name.get_ref<const std::string&>(), "ForCausalLM")) {
        return Unsupported(config, "architectures", "language models (...ForCausalLM)");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status RefuseSlidingWindow(const JsonObject& config, const Family& family,
                                 int max_position_embeddings) {
  if (family.window == Family::Window::kNever) return absl::OkStatus();
  if (family.window == Family::Window::kWhenUsed) {
    ASSIGN_OR_RETURN(const bool used, config.BoolOr("use_sliding_window", false));
    if (!used) return absl::OkStatus();
  }
  int64_t window = family.default_window;
  if (const Json* value = config.Find("sliding_window"); value != nullptr) {
    if (value->is_null()) return absl::OkStatus();
    ASSIGN_OR_RETURN(window, config.Int("sliding_window", 1, INT32_MAX));
  }
  if (window >= max_position_embeddings) return absl::OkStatus();
  return Unsupported(config, "sliding_window",
                     absl::StrCat("attention over the whole context; the window of ", window,
                                  " would take effect in the context of ", max_position_embeddings,
                                  ": limit max_position_embeddings to at most ", window));
}

struct Rope {
  double theta = 10000;
  RopeScaling scaling;
  bool operator==(const Rope&) const = default;
};

// `rope` is the object `rope_scaling` (transformers 4) or `rope_parameters` (5).
absl::StatusOr<Rope> ReadRope(const JsonObject& rope, double default_theta) {
  Rope result;
  ASSIGN_OR_RETURN(result.theta, rope.NumberOr("rope_theta", 1, 1e15, default_theta));
  ASSIGN_OR_RETURN(const double rotary, rope.NumberOr("partial_rotary_factor", 0, 1, 1));
  if (rotary != 1) return Unsupported(rope, "partial_rotary_factor", "1");
  const absl::string_view key = IsSet(rope, "rope_type") ? "rope_type" : "type";
  ASSIGN_OR_RETURN(const std::string type, rope.StringOr(key, "default"));
  if (type == "default") return result;
  RopeScaling& scaling = result.scaling;
  if (type == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
    ASSIGN_OR_RETURN(scaling.factor, rope.Number("factor", 1e-3, 1e6));
    return result;
  }
  if (type != "llama3") return Unsupported(rope, key, "default, linear, llama3");
  scaling.type = RopeScaling::Type::kLlama3;
  ASSIGN_OR_RETURN(scaling.factor, rope.Number("factor", 1e-3, 1e6));
  ASSIGN_OR_RETURN(scaling.low_freq_factor, rope.Number("low_freq_factor", 1e-3, 1e6));
  ASSIGN_OR_RETURN(scaling.high_freq_factor, rope.Number("high_freq_factor", 1e-3, 1e6));
  ASSIGN_OR_RETURN(scaling.original_max_position_embeddings,
                   rope.Int("original_max_position_embeddings", 1, kMaxContext));
  return result;
}

absl::StatusOr<Rope> ReadRopeKeys(const JsonObject& config) {
  Rope rope;
  ASSIGN_OR_RETURN(rope.theta, config.NumberOr("rope_theta", 1, 1e15, 10000));
  bool found = false;
  for (absl::string_view key : {"rope_parameters", "rope_scaling"}) {
    if (!IsSet(config, key)) continue;
    ASSIGN_OR_RETURN(const JsonObject object, config.Object(key));
    ASSIGN_OR_RETURN(const Rope read, ReadRope(object, rope.theta));
    if (found && read != rope) {
      return Unsupported(config, key, "the same as rope_parameters, or only one of the two");
    }
    rope = read;
    found = true;
  }
  return rope;
}

// The ids of the array `key`, in order, each once.
absl::StatusOr<std::vector<int>> ReadIds(const JsonObject& config, absl::string_view key,
                                         int vocab_size) {
  ASSIGN_OR_RETURN(const Json* values, config.Array(key));
  std::vector<int> ids;
  for (const Json& value : *values) {
    // Integers made in code are signed, parsed ones unsigned.
    const int64_t id = value.is_number_integer() ? value.get<int64_t>() : -1;
    if (id < 0 || id >= vocab_size || values->size() > kMaxEosIds) {
      return Unsupported(
          config, key,
          absl::StrFormat("at most %u integers in [0, %d]", kMaxEosIds, vocab_size - 1));
    }
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(static_cast<int>(id));
  }
  return ids;
}

absl::StatusOr<std::vector<int>> ReadEosIds(const JsonObject& config, int vocab_size) {
  constexpr absl::string_view kKey = "eos_token_id";
  const Json* value = config.Find(kKey);
  if (value == nullptr || value->is_null()) return std::vector<int>();
  if (value->is_array()) return ReadIds(config, kKey, vocab_size);
  ASSIGN_OR_RETURN(const int64_t id, config.Int(kKey, 0, vocab_size - 1));
  return std::vector<int>{static_cast<int>(id)};
}

absl::Status ReadSizes(const JsonObject& config, const Family& family, ModelConfig* result) {
  ASSIGN_OR_RETURN(result->hidden_size, config.Int("hidden_size", 1, kMaxHiddenSize));
  ASSIGN_OR_RETURN(result->intermediate_size,
                   config.Int("intermediate_size", 1, kMaxIntermediateSize));
  ASSIGN_OR_RETURN(result->num_hidden_layers, config.Int("num_hidden_layers", 1, kMaxLayers));
  ASSIGN_OR_RETURN(result->num_attention_heads, config.Int("num_attention_heads", 1, kMaxHeads));
  ASSIGN_OR_RETURN(result->num_key_value_heads,
                   config.IntOr("num_key_value_heads", 1, kMaxHeads, result->num_attention_heads));
  ASSIGN_OR_RETURN(result->vocab_size, config.Int("vocab_size", 1, kMaxVocabSize));
  ASSIGN_OR_RETURN(result->max_position_embeddings,
                   config.Int("max_position_embeddings", 1, kMaxContext));
  int head_dim = family.default_head_dim;
  if (head_dim == 0 && !IsSet(config, "head_dim")) {
    if (result->hidden_size % result->num_attention_heads != 0) {
      return Unsupported(
          config, "num_attention_heads",
          absl::StrCat("a divisor of hidden_size ", result->hidden_size, ", or the key head_dim"));
    }
    head_dim = result->hidden_size / result->num_attention_heads;
  }
  ASSIGN_OR_RETURN(result->head_dim, config.IntOr("head_dim", 1, kMaxHeadDim, head_dim));
  return absl::OkStatus();
}

absl::Status Wrong(absl::string_view field, double value, absl::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %.17g, wanted %s", field, value, wanted));
}

absl::Status CheckRope(const ModelConfig& config) {
  if (!(config.rope_theta >= 1 && config.rope_theta <= 1e15)) {
    return Wrong("rope_theta", config.rope_theta, "1 to 1e15");
  }
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling.type == RopeScaling::Type::kNone) return absl::OkStatus();
  if (!(scaling.factor > 0 && std::isfinite(scaling.factor))) {
    return Wrong("rope_scaling.factor", scaling.factor, "a positive number");
  }
  if (scaling.type == RopeScaling::Type::kLinear) return absl::OkStatus();
  if (!(scaling.low_freq_factor > 0 && scaling.high_freq_factor > scaling.low_freq_factor &&
        std::isfinite(scaling.high_freq_factor))) {
    return Wrong(
        "rope_scaling.high_freq_factor", scaling.high_freq_factor,
        absl::StrCat("more than low_freq_factor ", scaling.low_freq_factor, ", both positive"));
  }
  if (scaling.original_max_position_embeddings < 1 ||
      scaling.original_max_position_embeddings > kMaxContext) {
    return Wrong("rope_scaling.original_max_position_embeddings",
                 scaling.original_max_position_embeddings, absl::StrCat("1 to ", kMaxContext));
  }
  return absl::OkStatus();
}

absl::string_view RopeTypeName(RopeScaling::Type type) {
  switch (type) {
    case RopeScaling::Type::kNone:
      return "default";
    case RopeScaling::Type::kLinear:
      return "linear";
    case RopeScaling::Type::kLlama3:
      return "llama3";
  }
  return "default";
}

absl::StatusOr<RopeScaling> RopeScalingFromJson(const JsonObject& json) {
  RopeScaling scaling;
  ASSIGN_OR_RETURN(const std::string type, json.String("rope_type"));
  if (type == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
  } else if (type == "llama3") {
    scaling.type = RopeScaling::Type::kLlama3;
  } else if (type != "default") {
    return Unsupported(json, "rope_type", "default, linear, llama3");
  }
  ASSIGN_OR_RETURN(scaling.factor, json.Number("factor", 0, 1e9));
  ASSIGN_OR_RETURN(scaling.low_freq_factor, json.Number("low_freq_factor", 0, 1e9));
  ASSIGN_OR_RETURN(scaling.high_freq_factor, json.Number("high_freq_factor", 0, 1e9));
  ASSIGN_OR_RETURN(scaling.original_max_position_embeddings,
                   json.Int("original_max_position_embeddings", 1, kMaxContext));
  return scaling;
}

// `json` must have exactly the keys of `model`.
absl::Status CheckSameKeys(const JsonObject& json, const Json& model) {
  for (const auto& [key, unused] : model.items()) {
    if (!json.Has(key)) {
      return absl::InvalidArgumentError(absl::StrCat(json.where(), ": key ", key, " is missing"));
    }
  }
  for (const auto& [key, unused] : json.json().items()) {
    if (!model.contains(key)) {
      return absl::InvalidArgumentError(
          absl::StrCat(json.where(), ": key \"", key.substr(0, 80), "\" is not known"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> Flag(const JsonObject& json, absl::string_view key) {
  const Json* value = json.Find(key);
  if (value == nullptr || !value->is_boolean()) return Unsupported(json, key, "true or false");
  return value->get<bool>();
}

}  // namespace

absl::Status ModelConfig::Validate() const {
  if (FindFamily(model_type) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("model_type is \"", model_type, "\", supported: ", SupportedFamilies()));
  }
  const struct {
    absl::string_view name;
    int value;
    int max;
  } sizes[] = {
      {"hidden_size", hidden_size, kMaxHiddenSize},
      {"intermediate_size", intermediate_size, kMaxIntermediateSize},
      {"num_hidden_layers", num_hidden_layers, kMaxLayers},
      {"num_attention_heads", num_attention_heads, kMaxHeads},
      {"num_key_value_heads", num_key_value_heads, kMaxHeads},
      {"head_dim", head_dim, kMaxHeadDim},
      {"vocab_size", vocab_size, kMaxVocabSize},
      {"max_position_embeddings", max_position_embeddings, kMaxContext},
  };
  for (const auto& size : sizes) {
    if (size.value < 1 || size.value > size.max) {
      return Wrong(size.name, size.value, absl::StrCat("1 to ", size.max));
    }
  }
  if (head_dim % 2 != 0) return Wrong("head_dim", head_dim, "an even number (rotary pairs)");
  if (num_attention_heads % num_key_value_heads != 0) {
    return Wrong("num_key_value_heads", num_key_value_heads,
                 absl::StrCat("a divisor of num_attention_heads ", num_attention_heads));
  }
  if (!(rms_norm_eps > 0 && rms_norm_eps <= 1)) {
    return Wrong("rms_norm_eps", rms_norm_eps, "more than 0 and at most 1");
  }
  RETURN_IF_ERROR(CheckRope(*this));
  if (bos_token_id < -1 || bos_token_id >= vocab_size) {
    return Wrong("bos_token_id", bos_token_id, absl::StrCat("-1 to ", vocab_size - 1));
  }
  if (eos_token_ids.size() > kMaxEosIds) {
    return Wrong("the number of eos_token_ids", static_cast<double>(eos_token_ids.size()),
                 absl::StrCat("at most ", kMaxEosIds));
  }
  for (int id : eos_token_ids) {
    if (id < 0 || id >= vocab_size) {
      return Wrong("eos_token_ids", id, absl::StrCat("0 to ", vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ModelConfigFromHuggingFace(const Json& json, absl::string_view where) {
  ASSIGN_OR_RETURN(const JsonObject config, JsonObject::Of(json, where));
  ModelConfig result;
  ASSIGN_OR_RETURN(result.model_type, config.String("model_type"));
  const Family* family = FindFamily(result.model_type);
  if (family == nullptr) return Unsupported(config, "model_type", SupportedFamilies());
  RETURN_IF_ERROR(RefuseForeign(config));
  RETURN_IF_ERROR(ReadSizes(config, *family, &result));
  RETURN_IF_ERROR(RefuseSlidingWindow(config, *family, result.max_position_embeddings));
  ASSIGN_OR_RETURN(result.rms_norm_eps, config.NumberOr("rms_norm_eps", 1e-30, 1, 1e-6));
  ASSIGN_OR_RETURN(const Rope rope, ReadRopeKeys(config));
  result.rope_theta = rope.theta;
  result.rope_scaling = rope.scaling;
  ASSIGN_OR_RETURN(result.tie_word_embeddings, config.BoolOr("tie_word_embeddings", false));
  ASSIGN_OR_RETURN(const bool attention_bias, config.BoolOr("attention_bias", false));
  ASSIGN_OR_RETURN(const bool mlp_bias, config.BoolOr("mlp_bias", false));
  const bool by_key = family->attention_bias == Family::AttentionBias::kByKey;
  result.o_bias = by_key && attention_bias;
  result.qkv_bias = result.o_bias || family->attention_bias == Family::AttentionBias::kQkvAlways;
  result.mlp_bias = family->mlp_bias_by_key && mlp_bias;
  result.qk_norm = family->qk_norm;
  ASSIGN_OR_RETURN(result.bos_token_id, config.IntOr("bos_token_id", 0, result.vocab_size - 1, -1));
  ASSIGN_OR_RETURN(result.eos_token_ids, ReadEosIds(config, result.vocab_size));
  if (absl::Status status = result.Validate(); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", status.message()));
  }
  return result;
}

absl::StatusOr<Json> ModelConfigToHuggingFace(const ModelConfig& config) {
  const Family* family = FindFamily(config.model_type);
  if (family == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("no model class is known for model_type ", config.model_type));
  }
  Json json = {{"architectures", Json::array({std::string(family->architecture)})},
               {"model_type", config.model_type},
               {"hidden_size", config.hidden_size},
               {"intermediate_size", config.intermediate_size},
               {"num_hidden_layers", config.num_hidden_layers},
               {"num_attention_heads", config.num_attention_heads},
               {"num_key_value_heads", config.num_key_value_heads},
               {"head_dim", config.head_dim},
               {"vocab_size", config.vocab_size},
               {"max_position_embeddings", config.max_position_embeddings},
               {"hidden_act", "silu"},
               {"rms_norm_eps", config.rms_norm_eps},
               {"rope_theta", config.rope_theta},
               {"tie_word_embeddings", config.tie_word_embeddings}};
  const RopeScaling& scaling = config.rope_scaling;
  switch (scaling.type) {
    case RopeScaling::Type::kNone:
      break;
    case RopeScaling::Type::kLinear:
      json["rope_scaling"] = {{"rope_type", "linear"}, {"factor", scaling.factor}};
      break;
    case RopeScaling::Type::kLlama3:
      json["rope_scaling"] = {
          {"rope_type", "llama3"},
          {"factor", scaling.factor},
          {"low_freq_factor", scaling.low_freq_factor},
          {"high_freq_factor", scaling.high_freq_factor},
          {"original_max_position_embeddings", scaling.original_max_position_embeddings}};
      break;
  }
  if (family->attention_bias == Family::AttentionBias::kByKey) {
    json["attention_bias"] = config.qkv_bias;
  }
  if (family->mlp_bias_by_key) json["mlp_bias"] = config.mlp_bias;
  if (family->window == Family::Window::kWhenSet) json["sliding_window"] = nullptr;
  if (family->window == Family::Window::kWhenUsed) json["use_sliding_window"] = false;
  if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
  if (!config.eos_token_ids.empty()) json["eos_token_id"] = config.eos_token_ids;
  const absl::StatusOr<ModelConfig> again = ModelConfigFromHuggingFace(json, "config.json");
  if (!again.ok() || *again != config) {
    return absl::FailedPreconditionError(
        absl::StrCat("the class ", family->architecture,
                     " of Hugging Face transformers cannot express the model",
                     again.ok() ? ": its biases or norms are others" : "", again.ok() ? "" : ": ",
                     again.ok() ? "" : again.status().message()));
  }
  return json;
}

Json ModelConfigToJson(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  return Json{
      {"model_type", config.model_type},
      {"hidden_size", config.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"num_hidden_layers", config.num_hidden_layers},
      {"num_attention_heads", config.num_attention_heads},
      {"num_key_value_heads", config.num_key_value_heads},
      {"head_dim", config.head_dim},
      {"vocab_size", config.vocab_size},
      {"max_position_embeddings", config.max_position_embeddings},
      {"rms_norm_eps", config.rms_norm_eps},
      {"rope_theta", config.rope_theta},
      {"rope_scaling",
       {{"rope_type", std::string(RopeTypeName(scaling.type))},
        {"factor", scaling.factor},
        {"low_freq_factor", scaling.low_freq_factor},
        {"high_freq_factor", scaling.high_freq_factor},
        {"original_max_position_embeddings", scaling.original_max_position_embeddings}}},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"qkv_bias", config.qkv_bias},
      {"o_bias", config.o_bias},
      {"mlp_bias", config.mlp_bias},
      {"qk_norm", config.qk_norm},
      {"bos_token_id", config.bos_token_id},
      {"eos_token_ids", config.eos_token_ids},
  };
}

absl::StatusOr<ModelConfig> ModelConfigFromJson(const Json& json, absl::string_view where) {
  ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, where));
  const Json all_keys = ModelConfigToJson(ModelConfig());
  RETURN_IF_ERROR(CheckSameKeys(object, all_keys));
  ASSIGN_OR_RETURN(const JsonObject scaling, object.Object("rope_scaling"));
  RETURN_IF_ERROR(CheckSameKeys(scaling, all_keys["rope_scaling"]));
  ModelConfig config;
  ASSIGN_OR_RETURN(config.model_type, object.String("model_type"));
  const struct {
    absl::string_view key;
    int* value;
    int max;
  } sizes[] = {
      {"hidden_size", &config.hidden_size, kMaxHiddenSize},
      {"intermediate_size", &config.intermediate_size, kMaxIntermediateSize},
      {"num_hidden_layers", &config.num_hidden_layers, kMaxLayers},
      {"num_attention_heads", &config.num_attention_heads, kMaxHeads},
      {"num_key_value_heads", &config.num_key_value_heads, kMaxHeads},
      {"head_dim", &config.head_dim, kMaxHeadDim},
      {"vocab_size", &config.vocab_size, kMaxVocabSize},
      {"max_position_embeddings", &config.max_position_embeddings, kMaxContext},
  };
  for (const auto& size : sizes) {
    ASSIGN_OR_RETURN(*size.value, object.Int(size.key, 1, size.max));
  }
  ASSIGN_OR_RETURN(config.rms_norm_eps, object.Number("rms_norm_eps", 0, 1));
  ASSIGN_OR_RETURN(config.rope_theta, object.Number("rope_theta", 1, 1e15));
  ASSIGN_OR_RETURN(config.rope_scaling, RopeScalingFromJson(scaling));
  ASSIGN_OR_RETURN(config.tie_word_embeddings, Flag(object, "tie_word_embeddings"));
  ASSIGN_OR_RETURN(config.qkv_bias, Flag(object, "qkv_bias"));
  ASSIGN_OR_RETURN(config.o_bias, Flag(object, "o_bias"));
  ASSIGN_OR_RETURN(config.mlp_bias, Flag(object, "mlp_bias"));
  ASSIGN_OR_RETURN(config.qk_norm, Flag(object, "qk_norm"));
  ASSIGN_OR_RETURN(config.bos_token_id, object.Int("bos_token_id", -1, config.vocab_size - 1));
  ASSIGN_OR_RETURN(config.eos_token_ids, ReadIds(object, "eos_token_ids", config.vocab_size));
  if (absl::Status status = config.Validate(); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", status.message()));
  }
  return config;
}

}  // namespace quern
