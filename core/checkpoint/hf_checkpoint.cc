#include "core/checkpoint/hf_checkpoint.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/base/utf8.h"
#include "core/model/tensor_names.h"
#include "core/safetensors/safetensors.h"

namespace quern {
namespace {

constexpr absl::string_view kSingleFile = "model.safetensors";
constexpr absl::string_view kIndexFile = "model.safetensors.index.json";
constexpr size_t kMaxConfigBytes = size_t{1} << 20;
constexpr size_t kMaxIndexBytes = size_t{16} << 20;
constexpr size_t kMaxTokenizerBytes = size_t{64} << 20;
constexpr int kMaxIndexDepth = 3;
constexpr int64_t kMaxShards = 1'000;

// The count of "model-NNNNN-of-NNNNN.safetensors", or nothing for a name of another form.
std::optional<int64_t> ShardCountOf(absl::string_view name) {
  constexpr absl::string_view kForm = "model-NNNNN-of-NNNNN.safetensors";
  if (name.size() != kForm.size()) return std::nullopt;
  for (size_t i = 0; i < name.size(); ++i) {
    if (kForm[i] == 'N' ? !absl::ascii_isdigit(name[i]) : name[i] != kForm[i]) return std::nullopt;
  }
  int64_t number = 0;
  int64_t count = 0;
  if (!absl::SimpleAtoi(name.substr(6, 5), &number) ||
      !absl::SimpleAtoi(name.substr(15, 5), &count) || number < 1 || number > count ||
      count > kMaxShards) {
    return std::nullopt;
  }
  return count;
}

// A tensor that older writers stored and nobody reads: RoPE's frequencies follow from the config.
bool IsIgnored(absl::string_view name) { return absl::EndsWith(name, ".rotary_emb.inv_freq"); }

enum class Blocks { kDense, kPacked };

class HuggingFaceCheckpoint final : public PackedCheckpoint {
 public:
  HuggingFaceCheckpoint(absl::string_view directory, Blocks blocks)
      : directory_(directory), blocks_(blocks) {}

  absl::Status ReadConfig(int max_position_embeddings);
  absl::Status ReadTokenizer();
  absl::Status OpenWeights();

  absl::StatusOr<TensorView> Tensor(absl::string_view name) const override;
  absl::StatusOr<TensorView> TensorShape(absl::string_view name) const override {
    ASSIGN_OR_RETURN(TensorView view, Tensor(name));
    view.data = nullptr;
    return view;
  }
  absl::StatusOr<std::string> DigestHex() const override;
  int64_t weight_bytes() const override { return weight_bytes_; }
  const Json& quantization() const override { return quantization_; }
  const TensorView* Find(absl::string_view name) const override {
    const auto found = tensors_.find(std::string(name));
    return found == tensors_.end() ? nullptr : &found->second;
  }

 private:
  std::string PathOf(absl::string_view name) const { return absl::StrCat(directory_, "/", name); }
  // The bytes of a small file, remembered for the digest; nothing when it is not there.
  absl::StatusOr<std::optional<std::string>> ReadOptional(absl::string_view name, size_t max_bytes);
  // Takes what the packed form needs out of `config`, which describes a dense model then.
  absl::Status TakeQuantization(Json& config);
  absl::Status ReadGenerationConfig();
  absl::Status ReadChatTemplate();
  absl::Status OpenShard(const std::string& name);
  absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& text) const;
  absl::Status OpenShards(const std::map<std::string, std::string>& weight_map);
  absl::Status CheckTensors();
  absl::Status CheckTiedHead();

  const std::string directory_;
  const Blocks blocks_;
  Json quantization_;
  std::map<std::string, std::string> small_file_digests_;  // by name, hex
  std::map<std::string, SafetensorsFile> shards_;          // by name
  std::map<std::string, TensorView> tensors_;
  int64_t weight_bytes_ = 0;
};

absl::StatusOr<std::optional<std::string>> HuggingFaceCheckpoint::ReadOptional(
    absl::string_view name, size_t max_bytes) {
  absl::StatusOr<std::string> text = ReadFile(PathOf(name), max_bytes);
  if (absl::IsNotFound(text.status())) return std::nullopt;
  // A file above the limit is not a busy service: no client should try again.
  if (absl::IsResourceExhausted(text.status())) {
    return absl::InvalidArgumentError(text.status().message());
  }
  if (!text.ok()) return text.status();
  small_file_digests_[std::string(name)] = Sha256Hex(*text);
  return *std::move(text);
}

absl::Status HuggingFaceCheckpoint::ReadConfig(int max_position_embeddings) {
  const std::string path = PathOf("config.json");
  ASSIGN_OR_RETURN(const std::optional<std::string> text,
                   ReadOptional("config.json", kMaxConfigBytes));
  if (!text.has_value()) {
    return absl::NotFoundError(
        absl::StrCat(path, ": no such file; a checkpoint directory needs config.json, ",
                     kSingleFile, " (or ", kIndexFile, " and its shards) and tokenizer.json"));
  }
  ASSIGN_OR_RETURN(Json config, ParseJson(*text, path));
  // Before the check, since a shorter context may be what makes a sliding window harmless.
  if (max_position_embeddings > 0 && config.is_object()) {
    config["max_position_embeddings"] = max_position_embeddings;
  }
  if (blocks_ == Blocks::kPacked && config.is_object()) RETURN_IF_ERROR(TakeQuantization(config));
  ASSIGN_OR_RETURN(config_, ModelConfigFromHuggingFace(config, path));
  return ReadGenerationConfig();
}

absl::Status HuggingFaceCheckpoint::TakeQuantization(Json& config) {
  if (const auto found = config.find("quantization_config"); found != config.end()) {
    quantization_ = *found;
    config.erase(found);
    return absl::OkStatus();
  }
  constexpr absl::string_view kName = "quantize_config.json";
  ASSIGN_OR_RETURN(const std::optional<std::string> text, ReadOptional(kName, kMaxConfigBytes));
  if (text.has_value()) {
    ASSIGN_OR_RETURN(quantization_, ParseJson(*text, PathOf(kName)));
  }
  return absl::OkStatus();
}

// Chat models often end a turn with ids that only generation_config.json names.
absl::Status HuggingFaceCheckpoint::ReadGenerationConfig() {
  constexpr absl::string_view kName = "generation_config.json";
  ASSIGN_OR_RETURN(const std::optional<std::string> text, ReadOptional(kName, kMaxConfigBytes));
  if (!text.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Json json, ParseJson(*text, PathOf(kName)));
  ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, PathOf(kName)));
  const Json* eos = object.Find("eos_token_id");
  if (eos == nullptr || eos->is_null()) return absl::OkStatus();
  for (const Json& id : eos->is_array() ? *eos : Json::array({*eos})) {
    if (!id.is_number_unsigned() ||
        id.get<uint64_t>() >= static_cast<uint64_t>(config_.vocab_size)) {
      return absl::InvalidArgumentError(absl::StrCat(
          object.where(), ": eos_token_id: wanted integers in [0, ", config_.vocab_size - 1, "]"));
    }
    std::vector<int>& ids = config_.eos_token_ids;
    if (std::find(ids.begin(), ids.end(), id.get<int>()) == ids.end()) ids.push_back(id.get<int>());
  }
  if (absl::Status status = config_.Validate(); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(object.where(), ": ", status.message()));
  }
  return absl::OkStatus();
}

absl::Status HuggingFaceCheckpoint::ReadTokenizer() {
  ASSIGN_OR_RETURN(std::optional<std::string> text,
                   ReadOptional("tokenizer.json", kMaxTokenizerBytes));
  tokenizer_json_ = std::move(text).value_or("");
  return ReadChatTemplate();
}

absl::Status HuggingFaceCheckpoint::ReadChatTemplate() {
  // transformers prefers the file of its own.
  ASSIGN_OR_RETURN(std::optional<std::string> own,
                   ReadOptional("chat_template.jinja", kMaxChatTemplateBytes));
  if (own.has_value()) {
    if (!IsUtf8(*own)) {
      return absl::InvalidArgumentError(absl::StrCat(PathOf("chat_template.jinja"), ": not UTF-8"));
    }
    chat_template_ = *std::move(own);
    return absl::OkStatus();
  }
  constexpr absl::string_view kName = "tokenizer_config.json";
  ASSIGN_OR_RETURN(const std::optional<std::string> text, ReadOptional(kName, kMaxTokenizerBytes));
  if (!text.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Json json, ParseJson(*text, PathOf(kName)));
  ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, PathOf(kName)));
  const Json* found = object.Find("chat_template");
  if (found == nullptr || found->is_null()) return absl::OkStatus();
  if (!found->is_array()) {
    ASSIGN_OR_RETURN(chat_template_, object.String("chat_template"));
  } else {
    // Several named ones; "default" is the one for plain chat.
    for (const Json& entry : *found) {
      ASSIGN_OR_RETURN(const JsonObject named,
                       JsonObject::Of(entry, absl::StrCat(object.where(), ": chat_template")));
      ASSIGN_OR_RETURN(const std::string name, named.String("name"));
      if (name == "default") {
        ASSIGN_OR_RETURN(chat_template_, named.String("template"));
      }
    }
  }
  if (chat_template_.size() > kMaxChatTemplateBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(object.where(), ": chat_template: ", chat_template_.size(), " bytes, at most ",
                     kMaxChatTemplateBytes, " are read"));
  }
  return absl::OkStatus();
}

absl::Status HuggingFaceCheckpoint::OpenShard(const std::string& name) {
  ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(PathOf(name)));
  const auto [shard, unused] = shards_.emplace(name, std::move(file));
  for (const auto& [tensor_name, view] : shard->second.tensors()) {
    if (!tensors_.emplace(tensor_name, view).second) {
      return absl::DataLossError(absl::StrCat(PathOf(name), ": tensor ", Quoted(tensor_name),
                                              " is in another shard already"));
    }
    weight_bytes_ += static_cast<int64_t>(view.size_bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::map<std::string, std::string>> HuggingFaceCheckpoint::ReadIndex(
    const std::string& text) const {
  ASSIGN_OR_RETURN(const Json json,
                   ParseJson(text, PathOf(kIndexFile), {.max_depth = kMaxIndexDepth}));
  ASSIGN_OR_RETURN(const JsonObject index, JsonObject::Of(json, PathOf(kIndexFile)));
  ASSIGN_OR_RETURN(const JsonObject map, index.Object("weight_map"));
  std::map<std::string, std::string> weight_map;
  std::optional<int64_t> count;
  for (const auto& [name, file] : map.json().items()) {
    const std::string file_name = file.is_string() ? file.get<std::string>() : "";
    const std::optional<int64_t> file_count = ShardCountOf(file_name);
    if (!file_count.has_value() || (count.has_value() && count != file_count)) {
      return absl::InvalidArgumentError(
          absl::StrCat(map.where(), ": ", Quoted(name), ": found ",
                       file.is_string() ? Quoted(file_name) : file.dump().substr(0, 80),
                       ", wanted model-NNNNN-of-NNNNN.safetensors in the same directory, numbers 1 "
                       "to N of one N "
                       "up to ",
                       kMaxShards));
    }
    count = file_count;
    weight_map.emplace(name, file_name);
  }
  return weight_map;
}

absl::Status HuggingFaceCheckpoint::OpenShards(
    const std::map<std::string, std::string>& weight_map) {
  for (const auto& [name, file_name] : weight_map) {
    if (shards_.count(file_name) == 0) RETURN_IF_ERROR(OpenShard(file_name));
    if (shards_.at(file_name).tensors().count(name) == 0) {
      return absl::DataLossError(absl::StrCat(PathOf(file_name), ": tensor ", Quoted(name),
                                              " is missing; ", kIndexFile, " places it here"));
    }
  }
  for (const auto& [name, unused] : tensors_) {
    if (weight_map.count(name) == 0) {
      return absl::DataLossError(absl::StrCat(PathOf(kIndexFile), ": tensor ", Quoted(name),
                                              " is in a shard but not in weight_map"));
    }
  }
  return absl::OkStatus();
}

// Opens what is there, then checks it against the configuration.
absl::Status HuggingFaceCheckpoint::OpenWeights() {
  // transformers, too, prefers the single file.
  if (absl::Status status = OpenShard(std::string(kSingleFile)); status.ok()) {
    return CheckTensors();
  } else if (!absl::IsNotFound(status)) {
    return status;
  }
  ASSIGN_OR_RETURN(const std::optional<std::string> text, ReadOptional(kIndexFile, kMaxIndexBytes));
  if (!text.has_value()) {
    return absl::NotFoundError(absl::StrCat(directory_, ": found neither ", kSingleFile, " nor ",
                                            kIndexFile,
                                            " (weights in other formats are not read)"));
  }
  ASSIGN_OR_RETURN(const auto weight_map, ReadIndex(*text));
  RETURN_IF_ERROR(OpenShards(weight_map));
  return CheckTensors();
}

// Every tensor of the model, in shape and type, and nothing that would have to be computed with.
absl::Status HuggingFaceCheckpoint::CheckTensors() {
  std::set<absl::string_view> unused;
  for (const auto& [name, view] : tensors_) unused.insert(name);
  for (const TensorSpec& spec : ModelTensors(config_)) {
    if (blocks_ == Blocks::kPacked && spec.kind == TensorSpec::Kind::kBlockMatrix) {
      const absl::string_view prefix = absl::StripSuffix(spec.name, "weight");
      for (const char* part : {"qweight", "qzeros", "scales", "g_idx", "bias"}) {
        unused.erase(absl::StrCat(prefix, part));
      }
      continue;
    }
    const auto found = tensors_.find(spec.name);
    if (found == tensors_.end()) {
      return absl::DataLossError(absl::StrCat(
          directory_, ": tensor ", spec.name, " is missing from the weights",
          spec.kind == TensorSpec::Kind::kHead
              ? "; if the head is the embedding, config.json needs \"tie_word_embeddings\": true"
              : ""));
    }
    const TensorView& view = found->second;
    if (view.shape != spec.shape) {
      return absl::DataLossError(absl::StrCat(
          directory_, ": tensor ", spec.name, ": found shape [", absl::StrJoin(view.shape, ", "),
          "], config.json implies [", absl::StrJoin(spec.shape, ", "), "]"));
    }
    if (view.dtype != DType::kF32 && view.dtype != DType::kF16 && view.dtype != DType::kBF16) {
      return absl::InvalidArgumentError(absl::StrCat(directory_, ": tensor ", spec.name, ": dtype ",
                                                     DTypeName(view.dtype),
                                                     ", supported: F32, F16, BF16"));
    }
    unused.erase(spec.name);
  }
  if (config_.tie_word_embeddings && unused.erase(kHeadName) != 0) {
    RETURN_IF_ERROR(CheckTiedHead());
  }
  for (absl::string_view name : unused) {
    if (IsIgnored(name)) continue;
    return absl::InvalidArgumentError(absl::StrCat(directory_, ": tensor ", Quoted(name),
                                                   " is no part of the ", config_.model_type,
                                                   " model that config.json describes"));
  }
  return absl::OkStatus();
}

// Some writers store the embedding a second time as the head. Anything else contradicts the config.
absl::Status HuggingFaceCheckpoint::CheckTiedHead() {
  const TensorView& embedding = tensors_.at(std::string(kEmbeddingName));
  const TensorView& head = tensors_.at(std::string(kHeadName));
  if (head.dtype == embedding.dtype && head.size_bytes == embedding.size_bytes &&
      std::memcmp(head.data, embedding.data, head.size_bytes) == 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(directory_,
                                                 ": config.json says tie_word_embeddings, but ",
                                                 kHeadName, " differs from ", kEmbeddingName));
}

absl::StatusOr<TensorView> HuggingFaceCheckpoint::Tensor(absl::string_view name) const {
  const auto found = tensors_.find(std::string(name));
  const bool is_tied_head = config_.tie_word_embeddings && name == kHeadName;
  if (found == tensors_.end() || is_tied_head || IsIgnored(name)) {
    return absl::NotFoundError(absl::StrCat(directory_, ": the model has no tensor ", name));
  }
  return found->second;
}

absl::StatusOr<std::string> HuggingFaceCheckpoint::DigestHex() const {
  std::map<std::string, std::string> digests = small_file_digests_;
  for (const auto& [name, file] : shards_) digests[name] = Sha256Hex(file.bytes());
  std::string list;
  for (const auto& [name, digest] : digests) absl::StrAppend(&list, digest, "  ", name, "\n");
  return Sha256Hex(list);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenHuggingFaceCheckpoint(
    absl::string_view directory, const OpenCheckpointOptions& options) {
  auto checkpoint = std::make_unique<HuggingFaceCheckpoint>(directory, Blocks::kDense);
  RETURN_IF_ERROR(checkpoint->ReadConfig(options.max_position_embeddings));
  RETURN_IF_ERROR(checkpoint->OpenWeights());
  RETURN_IF_ERROR(checkpoint->ReadTokenizer());
  return checkpoint;
}

absl::StatusOr<std::unique_ptr<PackedCheckpoint>> OpenPackedCheckpoint(
    absl::string_view directory) {
  auto checkpoint = std::make_unique<HuggingFaceCheckpoint>(directory, Blocks::kPacked);
  RETURN_IF_ERROR(checkpoint->ReadConfig(/*max_position_embeddings=*/0));
  RETURN_IF_ERROR(checkpoint->OpenWeights());
  RETURN_IF_ERROR(checkpoint->ReadTokenizer());
  return checkpoint;
}

absl::StatusOr<ModelConfig> ReadHuggingFaceConfig(absl::string_view directory) {
  HuggingFaceCheckpoint checkpoint(directory, Blocks::kDense);
  RETURN_IF_ERROR(checkpoint.ReadConfig(/*max_position_embeddings=*/0));
  return checkpoint.config();
}

}  // namespace quern
