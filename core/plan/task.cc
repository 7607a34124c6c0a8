#include "core/plan/task.h"

#include <absl/strings/str_cat.h>

#include <limits>
#include <utility>
#include <vector>

#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/plan/task_json.h"

namespace quern {
namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();

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
  json.Bool("absolute_rate", settings.absolute_rate);
  json.Number("cross_entropy_share", 0, 1, settings.cross_entropy_share);
}

// What decides the result's weights, seed and inputs apart.
Json SettingsToJson(const Task& task) {
  const BlockApSettings& block = task.block_ap;
  const E2eQpSettings& e2e = task.e2e_qp;
  return {{"method", std::string(MethodName(task.method))},
          {"compute_dtype", NameOrNull(ComputeDtypeNames(), task.compute_dtype)},
          {"activation_dtype", NameOrNull(ComputeDtypeNames(), task.activation_dtype)},
          {"format",
           {{"bits", task.format.bits},
            {"group_size", task.format.group_size},
            {"symmetric", task.format.symmetric},
            {"embedding_bits", task.format.embedding_bits}}},
          {"target_bits", task.target_bits},
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
            {"first_sample", OrNull(e2e.first_sample)},
            {"absolute_rate", OrNull(e2e.absolute_rate)},
            {"cross_entropy_share", OrNull(e2e.cross_entropy_share)}}}};
}

}  // namespace

const EnumNames<std::optional<ComputeDtype>>& ComputeDtypeNames() {
  static const auto* const names =
      new EnumNames<std::optional<ComputeDtype>>{{"COMPUTE_DTYPE_UNSPECIFIED", 0, std::nullopt},
                                                 {"FLOAT32", 1, ComputeDtype::kFloat32},
                                                 {"BFLOAT16", 2, ComputeDtype::kBfloat16}};
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

void ParseCheckpoint(ProtoJson& json, std::string& path, std::string& digest) {
  if (!json.present()) return json.Fail("path", "is missing");
  json.Path("path", {}, path);
  json.String("digest", digest);
  if (digest.empty()) return;
  if (const auto parsed = Digest::Parse(digest); !parsed.ok()) {
    json.Fail("digest", absl::StrCat("is wrong: ", parsed.status().message()));
  }
}

void ParseEvaluationData(ProtoJson& json, EvaluationData& data) {
  if (!json.present()) return;
  json.Path("path", {".txt", ".raw", ".jsonl"}, data.path);
  int chunk_tokens = 0;
  int max_chunk_count = 0;
  json.Int("chunk_tokens", 0, 32768, chunk_tokens);
  json.Int("max_chunk_count", 0, 1'000'000, max_chunk_count);
  if (chunk_tokens == 1) json.Fail("chunk_tokens", "is 1, wanted at least 2: one to predict from");
  if (chunk_tokens != 0) data.chunk_tokens = chunk_tokens;
  if (max_chunk_count != 0) data.max_chunk_count = max_chunk_count;
}

Json EvaluationDataToJson(const EvaluationData& data) {
  return {{"path", data.path},
          {"chunk_tokens", data.chunk_tokens},
          {"max_chunk_count", data.max_chunk_count}};
}

absl::string_view MethodName(QuantMethod method) { return NameOf(MethodNames(), method); }

absl::StatusOr<Task> ParseTask(absl::string_view json) {
  ASSIGN_OR_RETURN(const Json value, ParseJson(json, "task", JsonLimits{.max_depth = 8}));
  if (value.is_null()) return absl::InvalidArgumentError("task is null, wanted an object");
  Task task;
  ProtoJson root(&value, "");
  root.Message("checkpoint", [&](ProtoJson& nested) {
    ParseCheckpoint(nested, task.checkpoint_path, task.checkpoint_digest);
  });
  root.Message("format", [&](ProtoJson& nested) { ParseFormat(nested, task.format); });
  root.Enum("method", MethodNames(), task.method);
  root.Enum("preset", PresetNames(), task.preset);
  root.Message("calibration", [&](ProtoJson& nested) {
    if (!nested.present()) return;
    nested.Path("path", {".txt", ".raw", ".jsonl"}, task.calibration_path);
    nested.Int("sampled_count", 0, 65536, task.calibration_sampled_count);
  });
  root.Message("block_ap", [&](ProtoJson& nested) { ParseBlockAp(nested, task.block_ap); });
  root.Message("e2e_qp", [&](ProtoJson& nested) { ParseE2eQp(nested, task.e2e_qp); });
  root.Enum("compute_dtype", ComputeDtypeNames(), task.compute_dtype);
  root.Enum("activation_dtype", ComputeDtypeNames(), task.activation_dtype);
  std::optional<double> target_bits;
  root.Number("target_bits", 0, 8, target_bits);
  task.target_bits = target_bits.value_or(0);
  int64_t seed = 0;
  root.Int("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), seed);
  task.seed = static_cast<uint64_t>(seed);
  root.Refuse("resolved", "is output only, set block_ap and e2e_qp instead");
  root.Message("evaluation",
               [&](ProtoJson& nested) { ParseEvaluationData(nested, task.evaluation); });
  RETURN_IF_ERROR(root.Finish());
  return task;
}

Json TaskToJson(const Task& task) {
  Json json = SettingsToJson(task);
  json["checkpoint"] = {{"path", task.checkpoint_path}, {"digest", task.checkpoint_digest}};
  json["preset"] = std::string(NameOf(PresetNames(), task.preset));
  json["calibration"] = {{"path", task.calibration_path},
                         {"sampled_count", task.calibration_sampled_count}};
  json["evaluation"] = EvaluationDataToJson(task.evaluation);
  json["seed"] = task.seed;
  return json;
}

std::string TaskDigest(const Task& task) {
  Json json = SettingsToJson(task);
  if (task.method != QuantMethod::kRtn) json["seed"] = task.seed;
  return Sha256Hex(DumpCanonicalJson(json));
}

}  // namespace quern
