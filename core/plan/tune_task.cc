#include "core/plan/tune_task.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <limits>

#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/plan/presets.h"
#include "core/plan/task_json.h"

namespace quern {
namespace {

constexpr absl::string_view kArtifacts = "artifacts/";

void ParseSettings(ProtoJson& json, TuneSettings& settings) {
  json.Int("sample_count", 1, 65536, settings.sample_count);
  json.Int("sequence_length_tokens", 8, 32768, settings.sequence_length_tokens);
  json.Int("epoch_count", 0, 64, settings.epoch_count);
  json.Int("batch_size", 1, 1024, settings.batch_size);
  json.Number("learning_rate", 0, 1, settings.learning_rate);
  json.Enum("trainable", E2eTrainableNames(), settings.trainable);
  json.Enum("compute_dtype", ComputeDtypeNames(), settings.compute_dtype);
  json.Int("held_out_count", 0, 1024, settings.held_out_count);
  if (settings.trainable == E2eTrainable::kAll) {
    json.Fail("trainable",
              "is ALL, wanted SCALES or SCALES_AND_NORMS: tuning leaves the codes as they are");
  }
}

template <typename T>
void Fill(std::optional<T>& field, T value) {
  if (!field.has_value()) field = value;
}

Json SettingsToJson(const TuneSettings& settings) {
  return {{"sample_count", OrNull(settings.sample_count)},
          {"sequence_length_tokens", OrNull(settings.sequence_length_tokens)},
          {"epoch_count", OrNull(settings.epoch_count)},
          {"batch_size", OrNull(settings.batch_size)},
          {"learning_rate", OrNull(settings.learning_rate)},
          {"trainable", NameOrNull(E2eTrainableNames(), settings.trainable)},
          {"compute_dtype", NameOrNull(ComputeDtypeNames(), settings.compute_dtype)},
          {"held_out_count", OrNull(settings.held_out_count)}};
}

}  // namespace

absl::StatusOr<TuneTask> ParseTuneTask(absl::string_view json) {
  ASSIGN_OR_RETURN(const Json value, ParseJson(json, "task", JsonLimits{.max_depth = 8}));
  if (value.is_null()) return absl::InvalidArgumentError("task is null, wanted an object");
  TuneTask task;
  ProtoJson root(&value, "");
  root.ArtifactName("base", task.base);
  root.Message("data", [&](ProtoJson& nested) {
    if (!nested.present()) return nested.Fail("path", "is missing");
    nested.Path("path", {".jsonl"}, task.data_path);
  });
  root.Message("settings", [&](ProtoJson& nested) { ParseSettings(nested, task.settings); });
  int64_t seed = 0;
  root.Int("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), seed);
  task.seed = static_cast<uint64_t>(seed);
  root.Message("evaluation",
               [&](ProtoJson& nested) { ParseEvaluationData(nested, task.evaluation); });
  root.Refuse("resolved", "is output only, set settings instead");
  RETURN_IF_ERROR(root.Finish());
  return task;
}

Json TuneTaskToJson(const TuneTask& task) {
  return {{"base", absl::StrCat(kArtifacts, task.base)},
          {"data", {{"path", task.data_path}}},
          {"settings", SettingsToJson(task.settings)},
          {"evaluation", EvaluationDataToJson(task.evaluation)},
          {"seed", task.seed}};
}

std::string TuneTaskDigest(const TuneTask& task) {
  Json json = SettingsToJson(task.settings);
  json["seed"] = task.seed;
  return Sha256Hex(DumpCanonicalJson({{"tune", std::move(json)}}));
}

TuneTask ResolvedTuneTask(const TuneTask& task, const ModelConfig& config, const Machine& machine) {
  TuneTask resolved = task;
  TuneSettings& settings = resolved.settings;
  Fill(settings.sample_count, 1024);
  Fill(settings.sequence_length_tokens, std::min(1024, config.max_position_embeddings));
  Fill(settings.epoch_count, 2);
  Fill(settings.batch_size, 8);
  Fill(settings.learning_rate, 2e-3);
  Fill(settings.trainable, E2eTrainable::kScales);
  Fill(settings.compute_dtype, FasterDtype(machine));
  ResolveChunkTokens(config, resolved.evaluation);
  return resolved;
}

E2eQpSettings E2eSettingsOf(const TuneSettings& resolved) {
  return {.sample_count = resolved.sample_count,
          .sequence_length_tokens = resolved.sequence_length_tokens,
          .epoch_count = resolved.epoch_count,
          .batch_size = resolved.batch_size,
          .learning_rate = resolved.learning_rate,
          .loss = E2eLoss::kCrossEntropy,
          .trainable = resolved.trainable,
          .weight_learning_rate = 0.0,
          .first_sample = 0,
          .absolute_rate = false};
}

}  // namespace quern
