#include "core/convert/export.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/artifact/pack.h"
#include "core/base/file.h"
#include "core/base/half.h"
#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "core/base/utf8.h"
#include "core/convert/gguf.h"
#include "core/convert/gptq.h"
#include "core/model/tensor_names.h"
#include "core/safetensors/safetensors.h"

namespace quern {
namespace {

// A tensor of a shard and its memory.
struct OwnedTensor {
  TensorView view;
  std::shared_ptr<const void> storage;
};

template <typename T>
OwnedTensor Own(DType dtype, std::vector<int64_t> shape, std::vector<T> values) {
  auto storage = std::make_shared<const std::vector<T>>(std::move(values));
  OwnedTensor tensor{.view = {.dtype = dtype,
                              .shape = std::move(shape),
                              .data = storage->data(),
                              .size_bytes = storage->size() * sizeof(T)}};
  tensor.storage = std::move(storage);
  return tensor;
}

bool IsGptq(ExportForm form, const TensorSpec& spec) {
  return form == ExportForm::kGptqV2 && spec.kind == TensorSpec::Kind::kBlockMatrix;
}

int64_t SizeOfTensor(ExportForm form, const PackedModel& model, const TensorSpec& spec) {
  if (IsGptq(form, spec)) return model.matrices.at(spec.name).size_bytes();
  int64_t size = sizeof(float);
  for (const int64_t dim : spec.shape) size *= dim;
  return size;
}

std::vector<float> DenseValues(const PackedModel& model, const TensorSpec& spec) {
  if (spec.kind == TensorSpec::Kind::kVector) return model.vectors.at(spec.name);
  if (const auto packed = model.matrices.find(spec.name); packed != model.matrices.end()) {
    return Dequantize(packed->second);
  }
  const HalfTensor& half = model.half_matrices.at(spec.name);
  std::vector<float> values(int64_t{half.rows} * half.cols);
  std::transform(half.data, half.data + values.size(), values.begin(), HalfToFloat);
  return values;
}

// What `spec` is in the files, by name.
void AddTensors(ExportForm form, const PackedModel& model, const TensorSpec& spec,
                std::map<std::string, OwnedTensor>& tensors) {
  if (!IsGptq(form, spec)) {
    tensors[spec.name] = Own(DType::kF32, spec.shape, DenseValues(model, spec));
    return;
  }
  const PackedTensor& matrix = model.matrices.at(spec.name);
  GptqTensors gptq = ToGptq(matrix);
  const std::string prefix(absl::StripSuffix(spec.name, "weight"));
  const int64_t words = int64_t{gptq.in_features} * matrix.bits / 32;
  const int64_t zero_words = int64_t{gptq.out_features} * matrix.bits / 32;
  tensors[prefix + "qweight"] =
      Own(DType::kI32, {words, gptq.out_features}, std::move(gptq.qweight));
  tensors[prefix + "qzeros"] =
      Own(DType::kI32, {gptq.num_groups, zero_words}, std::move(gptq.qzeros));
  tensors[prefix + "scales"] =
      Own(DType::kF16, {gptq.num_groups, gptq.out_features}, std::move(gptq.scales));
  tensors[prefix + "g_idx"] = Own(DType::kI32, {gptq.in_features}, std::move(gptq.g_idx));
}

absl::Status WriteWeights(const PackedModel& model, ExportForm form, absl::string_view directory,
                          int64_t shard_bytes) {
  std::vector<std::vector<TensorSpec>> shards(1);
  int64_t size = 0;
  for (TensorSpec& spec : ModelTensors(model.config)) {
    const int64_t tensor_size = SizeOfTensor(form, model, spec);
    if (size + tensor_size > shard_bytes && !shards.back().empty()) {
      shards.emplace_back();
      size = 0;
    }
    size += tensor_size;
    shards.back().push_back(std::move(spec));
  }
  Json weight_map = Json::object();
  int64_t total_bytes = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = shards.size() == 1 ? "model.safetensors"
                                                : absl::StrFormat("model-%05d-of-%05d.safetensors",
                                                                  i + 1, shards.size());
    std::map<std::string, OwnedTensor> tensors;
    for (const TensorSpec& spec : shards[i]) AddTensors(form, model, spec, tensors);
    std::map<std::string, TensorView> views;
    for (const auto& [name, tensor] : tensors) {
      views[name] = tensor.view;
      weight_map[name] = file;
      total_bytes += static_cast<int64_t>(tensor.view.size_bytes);
    }
    RETURN_IF_ERROR(
        WriteSafetensors(absl::StrCat(directory, "/", file), views, {{"format", "pt"}}));
  }
  if (shards.size() == 1) return absl::OkStatus();
  return WriteFileDurably(absl::StrCat(directory, "/model.safetensors.index.json"),
                          DumpCanonicalJson({{"metadata", {{"total_size", total_bytes}}},
                                             {"weight_map", std::move(weight_map)}}));
}

// As GPTQModel writes it, and reads it from quantize_config.json or config.json.
Json QuantizationConfig(const QuantFormat& format) {
  return {{"bits", format.bits},
          {"group_size", format.group_size == 0 ? -1 : format.group_size},
          {"desc_act", false},
          {"sym", format.symmetric},
          {"lm_head", false},
          {"quant_method", "gptq"},
          {"checkpoint_format", "gptq_v2"},
          {"meta", {{"quantizer", absl::StrCat("quern:", QUERN_VERSION)}}}};
}

absl::Status WriteJson(absl::string_view directory, absl::string_view name, const Json& json) {
  return WriteFileDurably(absl::StrCat(directory, "/", name), absl::StrCat(json.dump(2), "\n"));
}

// The `added_tokens` of a tokenizer.json by id, as far as it has the form.
std::map<int64_t, std::string> SpecialTokens(const std::string& tokenizer_json) {
  std::map<int64_t, std::string> tokens;
  const absl::StatusOr<Json> json = ParseJson(tokenizer_json, kTokenizerName);
  if (!json.ok() || !json->is_object()) return tokens;
  const auto added = json->find("added_tokens");
  if (added == json->end() || !added->is_array()) return tokens;
  for (const Json& token : *added) {
    if (!token.is_object() || !token.contains("id") || !token.contains("content")) continue;
    const Json& id = token.at("id");
    const Json& content = token.at("content");
    if (id.is_number_integer() && content.is_string()) {
      tokens[id.get<int64_t>()] = content.get<std::string>();
    }
  }
  return tokens;
}

absl::Status WriteTokenizer(const PackedModel& model, absl::string_view directory) {
  if (model.tokenizer_json.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(
      WriteFileDurably(absl::StrCat(directory, "/", kTokenizerName), model.tokenizer_json));
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"model_max_length", model.config.max_position_embeddings}};
  if (!model.chat_template.empty()) config["chat_template"] = model.chat_template;
  // Chat templates name them.
  const std::map<int64_t, std::string> special = SpecialTokens(model.tokenizer_json);
  const auto add = [&](const char* key, int id) {
    if (const auto found = special.find(id); found != special.end()) config[key] = found->second;
  };
  add("bos_token", model.config.bos_token_id);
  if (!model.config.eos_token_ids.empty()) add("eos_token", model.config.eos_token_ids.front());
  return WriteJson(directory, "tokenizer_config.json", config);
}

}  // namespace

absl::Status ExportModel(const PackedModel& model, ExportForm form, absl::string_view directory,
                         int64_t shard_bytes) {
  if (!IsUtf8(model.chat_template)) {
    return absl::FailedPreconditionError(
        "the chat template is not UTF-8, which JSON files must be");
  }
  if (form == ExportForm::kGguf) return ExportGguf(model, absl::StrCat(directory, "/model.gguf"));
  ASSIGN_OR_RETURN(Json config, ModelConfigToHuggingFace(model.config));
  config["torch_dtype"] = "float32";
  if (form == ExportForm::kGptqV2) {
    if (!model.format.matrix_bits.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(
          model.format.matrix_bits.size(),
          " matrices have bits of their own, which GPTQ's configuration has no place for; export "
          "with --as huggingface or --as gguf"));
    }
    for (const TensorSpec& spec : ModelTensors(model.config)) {
      if (IsGptq(form, spec)) RETURN_IF_ERROR(CheckGptq(model.matrices.at(spec.name), spec.name));
    }
    config["torch_dtype"] = "float16";  // what its kernels compute in
    config["quantization_config"] = QuantizationConfig(model.format);
    RETURN_IF_ERROR(WriteJson(directory, "quantize_config.json", QuantizationConfig(model.format)));
  }
  RETURN_IF_ERROR(WriteWeights(model, form, directory, shard_bytes));
  RETURN_IF_ERROR(WriteTokenizer(model, directory));
  Json generation = Json::object();
  if (model.config.bos_token_id >= 0) generation["bos_token_id"] = model.config.bos_token_id;
  if (!model.config.eos_token_ids.empty()) {
    generation["eos_token_id"] = model.config.eos_token_ids;
  }
  RETURN_IF_ERROR(WriteJson(directory, "generation_config.json", generation));
  // Last: without it the directory is no checkpoint.
  return WriteJson(directory, "config.json", config);
}

}  // namespace quern
