#include "core/plan/task.h"

#include <absl/strings/ascii.h>
#include <absl/strings/escaping.h>
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_split.h>

#include <cmath>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "core/base/sha256.h"
#include "core/base/status_macros.h"

namespace quern {
namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();
constexpr size_t kMaxPathBytes = 4096;

// "sample_count" -> "sampleCount", as protobuf's JSON names are made.
std::string CamelCase(absl::string_view name) {
  std::string camel;
  bool upper = false;
  for (char c : name) {
    if (c == '_') {
      upper = true;
    } else {
      camel.push_back(upper ? absl::ascii_toupper(c) : c);
      upper = false;
    }
  }
  return camel;
}

// One name of an enum and what it stands for.
template <typename T>
struct EnumName {
  absl::string_view name;
  int number;
  T value;
};

template <typename T>
using EnumNames = std::vector<EnumName<T>>;

// Named in the proto's order; the first is what an unset field stands for.
const EnumNames<QuantMethod>& MethodNames() {
  static const auto* const names =
      new EnumNames<QuantMethod>{{"METHOD_UNSPECIFIED", 0, QuantMethod::kBlockApE2eQp},
                                 {"RTN", 1, QuantMethod::kRtn},
                                 {"BLOCK_AP", 2, QuantMethod::kBlockAp},
                                 {"BLOCK_AP_E2E_QP", 3, QuantMethod::kBlockApE2eQp},
                                 {"GPTQ", 4, QuantMethod::kGptq},
                                 {"AWQ", 5, QuantMethod::kAwq}};
  return *names;
}

const EnumNames<Preset>& PresetNames() {
  static const auto* const names =
      new EnumNames<Preset>{{"PRESET_UNSPECIFIED", 0, Preset::kStandard},
                            {"QUICK", 1, Preset::kQuick},
                            {"STANDARD", 2, Preset::kStandard},
                            {"BEST", 3, Preset::kBest},
                            {"REFERENCE", 4, Preset::kReference}};
  return *names;
}

const EnumNames<std::optional<QuantStart>>& StartNames() {
  static const auto* const names =
      new EnumNames<std::optional<QuantStart>>{{"START_UNSPECIFIED", 0, std::nullopt},
                                               {"MIN_MAX", 1, QuantStart::kMinMax},
                                               {"SEARCH", 2, QuantStart::kSearch},
                                               {"GPTQ", 3, QuantStart::kGptq}};
  return *names;
}

const EnumNames<std::optional<BlockTarget>>& TargetNames() {
  static const auto* const names = new EnumNames<std::optional<BlockTarget>>{
      {"TARGET_UNSPECIFIED", 0, std::nullopt},
      {"SOURCE_STREAM", 1, BlockTarget::kSourceStream},
      {"QUANTIZED_STREAM", 2, BlockTarget::kQuantizedStream},
      {"BOTH_STREAMS", 3, BlockTarget::kBoth}};
  return *names;
}

const EnumNames<std::optional<BlockLoss>>& BlockLossNames() {
  static const auto* const names = new EnumNames<std::optional<BlockLoss>>{
      {"LOSS_UNSPECIFIED", 0, std::nullopt},
      {"MEAN_SQUARES", 1, BlockLoss::kMeanSquares},
      {"RELATIVE_PER_TOKEN", 2, BlockLoss::kRelativePerToken}};
  return *names;
}

const EnumNames<std::optional<E2eLoss>>& E2eLossNames() {
  static const auto* const names =
      new EnumNames<std::optional<E2eLoss>>{{"LOSS_UNSPECIFIED", 0, std::nullopt},
                                            {"CROSS_ENTROPY", 1, E2eLoss::kCrossEntropy},
                                            {"DISTILLATION", 2, E2eLoss::kDistillation}};
  return *names;
}

const EnumNames<std::optional<E2eTrainable>>& E2eTrainableNames() {
  static const auto* const names = new EnumNames<std::optional<E2eTrainable>>{
      {"TRAINABLE_UNSPECIFIED", 0, std::nullopt},
      {"SCALES", 1, E2eTrainable::kScales},
      {"SCALES_AND_NORMS", 2, E2eTrainable::kScalesAndNorms},
      {"ALL", 3, E2eTrainable::kAll}};
  return *names;
}

// The name that is not "unspecified".
template <typename T>
absl::string_view NameOf(const EnumNames<T>& names, T value) {
  for (const EnumName<T>& entry : names) {
    if (entry.number != 0 && entry.value == value) return entry.name;
  }
  return "";
}

template <typename T>
Json NameOrNull(const EnumNames<std::optional<T>>& names, const std::optional<T>& value) {
  return value.has_value() ? Json(std::string(NameOf(names, value))) : Json(nullptr);
}

// One message in proto3 JSON form. Each reader marks its field as known; the first error sticks
// (and later readers do nothing), so that parsing reads as a list of fields.
class ProtoJson {
 public:
  ProtoJson(const Json* value, std::string where) : where_(std::move(where)) {
    if (value == nullptr || value->is_null()) return;
    if (value->is_object()) {
      object_ = value;
    } else {
      Fail("", "wanted an object");
    }
  }

  bool present() const { return object_ != nullptr; }

  void Int(absl::string_view field, int64_t min, int64_t max, int64_t& out) {
    const Json* value = Take(field);
    if (value == nullptr) return;
    int64_t number = 0;
    const bool is_integer =
        value->is_string() ? absl::SimpleAtoi(value->get_ref<const std::string&>(), &number)
                           : value->is_number_integer() &&
                                 !(value->is_number_unsigned() &&
                                   value->get<uint64_t>() >
                                       static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
    if (is_integer && !value->is_string()) number = value->get<int64_t>();
    if (!is_integer || number < min || number > max) {
      Fail(field,
           absl::StrCat("is ", Shown(*value), ", wanted an integer in [", min, ", ", max, "]"));
      return;
    }
    out = number;
  }

  void Int(absl::string_view field, int min, int max, int& out) {
    int64_t wide = out;
    Int(field, int64_t{min}, int64_t{max}, wide);
    out = static_cast<int>(wide);
  }

  void Int(absl::string_view field, int min, int max, std::optional<int>& out) {
    if (Find(field) == nullptr) {
      Take(field);
      return;
    }
    int64_t wide = 0;
    Int(field, int64_t{min}, int64_t{max}, wide);
    out = static_cast<int>(wide);
  }

  void Number(absl::string_view field, double min, double max, std::optional<double>& out) {
    const Json* value = Take(field);
    if (value == nullptr) return;
    double number = std::numeric_limits<double>::quiet_NaN();
    if (value->is_number()) number = value->get<double>();
    if (value->is_string() && !absl::SimpleAtod(value->get_ref<const std::string&>(), &number)) {
      number = std::numeric_limits<double>::quiet_NaN();
    }
    if (!(number >= min && number <= max)) {
      Fail(field,
           absl::StrCat("is ", Shown(*value), ", wanted a number in [", min, ", ", max, "]"));
      return;
    }
    out = number;
  }

  void Bool(absl::string_view field, bool& out) {
    const Json* value = Take(field);
    if (value == nullptr) return;
    if (!value->is_boolean()) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", wanted true or false"));
      return;
    }
    out = value->get<bool>();
  }

  void Bool(absl::string_view field, std::optional<bool>& out) {
    bool value = false;
    if (Find(field) == nullptr) {
      Take(field);
      return;
    }
    Bool(field, value);
    out = value;
  }

  void String(absl::string_view field, std::string& out) {
    const Json* value = Take(field);
    if (value == nullptr) return;
    if (!value->is_string()) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", wanted a string"));
      return;
    }
    out = value->get<std::string>();
  }

  // A path below a root, '/'-separated, in one of the endings (any, when there are none).
  void Path(absl::string_view field, const std::vector<absl::string_view>& endings,
            std::string& out) {
    String(field, out);
    if (!status_.ok() || !present()) return;
    if (out.empty()) return Fail(field, "is empty, wanted a path below the service's root");
    const auto segments = std::vector<absl::string_view>(absl::StrSplit(out, '/'));
    const bool climbs = std::find(segments.begin(), segments.end(), "..") != segments.end();
    const bool control =
        std::any_of(out.begin(), out.end(), [](unsigned char c) { return absl::ascii_iscntrl(c); });
    if (out[0] == '/' || climbs || control || out.size() > kMaxPathBytes) {
      return Fail(field, absl::StrCat("is ", Shown(out), ", wanted a relative path of at most ",
                                      kMaxPathBytes, " bytes without '..' and control characters"));
    }
    const bool known = endings.empty() ||
                       std::any_of(endings.begin(), endings.end(), [&](absl::string_view ending) {
                         return absl::EndsWith(out, ending);
                       });
    if (!known) {
      Fail(field, absl::StrCat("is ", Shown(out), ", wanted a name that ends in ",
                               absl::StrJoin(endings, ", ")));
    }
  }

  template <typename T>
  void Enum(absl::string_view field, const EnumNames<T>& names, T& out) {
    const Json* value = Take(field);
    if (value == nullptr) return;
    for (const EnumName<T>& entry : names) {
      const bool by_name = value->is_string() && value->get_ref<const std::string&>() == entry.name;
      if (by_name || (value->is_number_integer() && *value == entry.number)) {
        out = entry.value;
        return;
      }
    }
    Fail(field, absl::StrCat("is ", Shown(*value), ", wanted one of ",
                             absl::StrJoin(names, ", ", [](std::string* text, const auto& entry) {
                               absl::StrAppend(text, entry.name);
                             })));
  }

  // Parses a nested message with `parse`; its error becomes this one's.
  template <typename Parse>
  void Message(absl::string_view field, Parse parse) {
    const Json* value = Take(field);
    if (!status_.ok()) return;
    ProtoJson nested(value, absl::StrCat(Name(field)));
    parse(nested);
    status_ = nested.Finish();
  }

  void Refuse(absl::string_view field, absl::string_view why) {
    if (Take(field) != nullptr) Fail(field, why);
  }

  void Fail(absl::string_view field, absl::string_view what) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat(Name(field), " ", what));
    }
  }

  // The first error, or one for a key that no reader asked for.
  absl::Status Finish() {
    if (!status_.ok() || object_ == nullptr) return status_;
    for (const auto& [key, value] : object_->items()) {
      if (!known_.contains(key)) {
        return absl::InvalidArgumentError(absl::StrCat(
            Name(absl::CEscape(absl::string_view(key).substr(0, 80))), " is not a known field"));
      }
    }
    return absl::OkStatus();
  }

 private:
  static std::string Shown(const Json& value) {
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return text.size() <= 80 ? text : absl::StrCat(text.substr(0, 77), "...");
  }

  std::string Name(absl::string_view field) const {
    if (where_.empty()) return field.empty() ? "task" : std::string(field);
    return field.empty() ? where_ : absl::StrCat(where_, ".", field);
  }

  const Json* Find(absl::string_view field) const {
    if (object_ == nullptr || !status_.ok()) return nullptr;
    for (const std::string& key : {std::string(field), CamelCase(field)}) {
      const auto it = object_->find(key);
      if (it != object_->end() && !it->is_null()) return &*it;
    }
    return nullptr;
  }

  // Marks both spellings as known. Null when the field is not set.
  const Json* Take(absl::string_view field) {
    const std::string camel = CamelCase(field);
    known_.insert(std::string(field));
    known_.insert(camel);
    if (object_ != nullptr && camel != field && object_->contains(camel) &&
        object_->contains(std::string(field))) {
      Fail(field, absl::StrCat("is given twice, also as ", camel));
    }
    return Find(field);
  }

  const Json* object_ = nullptr;
  const std::string where_;
  std::set<std::string> known_;
  absl::Status status_;
};

void ParseCheckpoint(ProtoJson& json, Task& task) {
  if (!json.present()) return json.Fail("path", "is missing");
  json.Path("path", {}, task.checkpoint_path);
  json.String("digest", task.checkpoint_digest);
  if (task.checkpoint_digest.empty()) return;
  if (const auto digest = Digest::Parse(task.checkpoint_digest); !digest.ok()) {
    json.Fail("digest", absl::StrCat("is wrong: ", digest.status().message()));
  }
}

void ParseFormat(ProtoJson& json, QuantFormat& format) {
  if (!json.present()) return json.Fail("bits", "is missing, supported are 2, 3, 4 and 8");
  format.bits = 0;
  format.group_size = 0;
  int embedding_bits = 0;
  json.Int("bits", 0, kMaxInt, format.bits);
  json.Int("group_size", 0, kMaxInt, format.group_size);
  json.Bool("symmetric", format.symmetric);
  json.Int("embedding_bits", 0, kMaxInt, embedding_bits);
  if (embedding_bits != 0) format.embedding_bits = embedding_bits;
}

void ParseBlockAp(ProtoJson& json, BlockApSettings& settings) {
  json.Int("sample_count", 1, 65536, settings.sample_count);
  json.Int("sequence_length_tokens", 8, 32768, settings.sequence_length_tokens);
  json.Int("epoch_count", 0, 64, settings.epoch_count);
  json.Int("batch_size", 1, 1024, settings.batch_size);
  json.Number("weight_learning_rate", 0, 1, settings.weight_learning_rate);
  json.Number("quant_learning_rate", 0, 1, settings.quant_learning_rate);
  json.Number("zero_point_learning_rate", 0, 1, settings.zero_point_learning_rate);
  json.Int("validation_sample_count", 0, 1024, settings.validation_sample_count);
  json.Enum("start", StartNames(), settings.start);
  json.Enum("target", TargetNames(), settings.target);
  json.Enum("loss", BlockLossNames(), settings.loss);
  json.Bool("round_scales", settings.round_scales);
}

void ParseE2eQp(ProtoJson& json, E2eQpSettings& settings) {
  json.Int("sample_count", 1, 65536, settings.sample_count);
  json.Int("sequence_length_tokens", 8, 32768, settings.sequence_length_tokens);
  json.Int("epoch_count", 0, 64, settings.epoch_count);
  json.Int("batch_size", 1, 1024, settings.batch_size);
  json.Number("learning_rate", 0, 1, settings.learning_rate);
  json.Enum("loss", E2eLossNames(), settings.loss);
  json.Enum("trainable", E2eTrainableNames(), settings.trainable);
  json.Number("weight_learning_rate", 0, 1, settings.weight_learning_rate);
  json.Int("first_sample", 0, 65536, settings.first_sample);
}

void ParseEvaluation(ProtoJson& json, Task& task) {
  if (!json.present()) return;
  json.Path("path", {".txt", ".raw", ".jsonl"}, task.evaluation_path);
  int chunk_tokens = 0;
  int max_chunk_count = 0;
  json.Int("chunk_tokens", 0, 32768, chunk_tokens);
  json.Int("max_chunk_count", 0, 1'000'000, max_chunk_count);
  if (chunk_tokens == 1) json.Fail("chunk_tokens", "is 1, wanted at least 2: one to predict from");
  if (chunk_tokens != 0) task.evaluation_chunk_tokens = chunk_tokens;
  if (max_chunk_count != 0) task.evaluation_max_chunk_count = max_chunk_count;
}

template <typename T>
Json OrNull(const std::optional<T>& value) {
  return value.has_value() ? Json(*value) : Json(nullptr);
}

// What decides the result's weights, seed and inputs apart.
Json SettingsToJson(const Task& task) {
  const BlockApSettings& block = task.block_ap;
  const E2eQpSettings& e2e = task.e2e_qp;
  return {{"method", std::string(MethodName(task.method))},
          {"format",
           {{"bits", task.format.bits},
            {"group_size", task.format.group_size},
            {"symmetric", task.format.symmetric},
            {"embedding_bits", task.format.embedding_bits}}},
          {"block_ap",
           {{"sample_count", OrNull(block.sample_count)},
            {"sequence_length_tokens", OrNull(block.sequence_length_tokens)},
            {"epoch_count", OrNull(block.epoch_count)},
            {"batch_size", OrNull(block.batch_size)},
            {"weight_learning_rate", OrNull(block.weight_learning_rate)},
            {"quant_learning_rate", OrNull(block.quant_learning_rate)},
            {"zero_point_learning_rate", OrNull(block.zero_point_learning_rate)},
            {"validation_sample_count", OrNull(block.validation_sample_count)},
            {"start", NameOrNull(StartNames(), block.start)},
            {"target", NameOrNull(TargetNames(), block.target)},
            {"loss", NameOrNull(BlockLossNames(), block.loss)},
            {"round_scales", OrNull(block.round_scales)}}},
          {"e2e_qp",
           {{"sample_count", OrNull(e2e.sample_count)},
            {"sequence_length_tokens", OrNull(e2e.sequence_length_tokens)},
            {"epoch_count", OrNull(e2e.epoch_count)},
            {"batch_size", OrNull(e2e.batch_size)},
            {"learning_rate", OrNull(e2e.learning_rate)},
            {"loss", NameOrNull(E2eLossNames(), e2e.loss)},
            {"trainable", NameOrNull(E2eTrainableNames(), e2e.trainable)},
            {"weight_learning_rate", OrNull(e2e.weight_learning_rate)},
            {"first_sample", OrNull(e2e.first_sample)}}}};
}

}  // namespace

absl::string_view MethodName(QuantMethod method) { return NameOf(MethodNames(), method); }

absl::StatusOr<Task> ParseTask(absl::string_view json) {
  ASSIGN_OR_RETURN(const Json value, ParseJson(json, "task", JsonLimits{.max_depth = 8}));
  if (value.is_null()) return absl::InvalidArgumentError("task is null, wanted an object");
  Task task;
  ProtoJson root(&value, "");
  root.Message("checkpoint", [&](ProtoJson& nested) { ParseCheckpoint(nested, task); });
  root.Message("format", [&](ProtoJson& nested) { ParseFormat(nested, task.format); });
  root.Enum("method", MethodNames(), task.method);
  root.Enum("preset", PresetNames(), task.preset);
  root.Message("calibration", [&](ProtoJson& nested) {
    if (nested.present()) nested.Path("path", {".txt", ".raw", ".jsonl"}, task.calibration_path);
  });
  root.Message("block_ap", [&](ProtoJson& nested) { ParseBlockAp(nested, task.block_ap); });
  root.Message("e2e_qp", [&](ProtoJson& nested) { ParseE2eQp(nested, task.e2e_qp); });
  int64_t seed = 0;
  root.Int("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), seed);
  task.seed = static_cast<uint64_t>(seed);
  root.Refuse("resolved", "is output only, set block_ap and e2e_qp instead");
  root.Message("evaluation", [&](ProtoJson& nested) { ParseEvaluation(nested, task); });
  RETURN_IF_ERROR(root.Finish());
  return task;
}

Json TaskToJson(const Task& task) {
  Json json = SettingsToJson(task);
  json["checkpoint"] = {{"path", task.checkpoint_path}, {"digest", task.checkpoint_digest}};
  json["preset"] = std::string(NameOf(PresetNames(), task.preset));
  json["calibration"] = {{"path", task.calibration_path}};
  json["evaluation"] = {{"path", task.evaluation_path},
                        {"chunk_tokens", task.evaluation_chunk_tokens},
                        {"max_chunk_count", task.evaluation_max_chunk_count}};
  json["seed"] = task.seed;
  return json;
}

std::string TaskDigest(const Task& task) {
  Json json = SettingsToJson(task);
  if (task.method != QuantMethod::kRtn) json["seed"] = task.seed;
  return Sha256Hex(DumpCanonicalJson(json));
}

}  // namespace quern
