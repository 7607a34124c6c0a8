#ifndef QUERN_CORE_PLAN_TUNE_TASK_H_
#define QUERN_CORE_PLAN_TUNE_TASK_H_

// A task that tunes the scales of an artifact on instructions, as plain data, parsed from the
// proto3 JSON form of quern.quantization.v1.TuneTask.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/plan/plan.h"
#include "core/plan/task.h"

namespace quern {

// Every field but held_out_count is set once the task is resolved.
struct TuneSettings {
  std::optional<int> sample_count;            // examples at most, 1..65536
  std::optional<int> sequence_length_tokens;  // of an example at most, 8..32768
  std::optional<int> epoch_count;             // 0..64
  std::optional<int> batch_size;              // examples in a step, 1..1024
  std::optional<double> learning_rate;        // relative to the mean magnitude of each tensor
  std::optional<E2eTrainable> trainable;      // kScales or kScalesAndNorms
  std::optional<ComputeDtype> compute_dtype;
  std::optional<int> held_out_count;  // 0..1024; not set: a tenth of the file's, at most 64
};

struct TuneTask {
  std::string base;       // id of an artifact, 64 hex digits
  std::string data_path;  // below a data root
  TuneSettings settings;
  EvaluationData evaluation;
  uint64_t seed = 0;
};

// As ParseTask.
absl::StatusOr<TuneTask> ParseTuneTask(absl::string_view json);

// Every field; those without a value are null.
Json TuneTaskToJson(const TuneTask& task);

// SHA-256, hex, over what decides the result beside the base and the examples' tokens.
std::string TuneTaskDigest(const TuneTask& task);

// `task` with every setting but held_out_count as a run on a model of `config` on `machine` uses
// it.
TuneTask ResolvedTuneTask(const TuneTask& task, const ModelConfig& config, const Machine& machine);

// The same settings for the trainer, which trains on examples one after the other.
E2eQpSettings E2eSettingsOf(const TuneSettings& resolved);

struct TunePlan {
  TuneTask resolved;
  std::vector<StageCost> stages;    // in the order they run
  int64_t artifact_size_bytes = 0;  // of the scale delta
};

// What tuning a model of `config` in `format` takes, on examples of `num_tokens` in all, or of as
// many as the settings allow where that is less. Errors as MakePlan.
absl::StatusOr<TunePlan> PlanTune(const TuneTask& task, const ModelConfig& config,
                                  const QuantFormat& format, const Machine& machine,
                                  int64_t num_tokens);

}  // namespace quern

#endif  // QUERN_CORE_PLAN_TUNE_TASK_H_
