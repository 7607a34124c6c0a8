#ifndef QUERN_CORE_PLAN_EVALUATE_TASK_H_
#define QUERN_CORE_PLAN_EVALUATE_TASK_H_

// A task that measures an artifact, as plain data, parsed from the proto3 JSON form of
// quern.quantization.v1.EvaluateTask.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <optional>
#include <string>
#include <vector>

#include "core/plan/plan.h"
#include "core/plan/task.h"

namespace quern {

struct ZeroShotData {
  std::string path;        // below a data root
  int max_item_count = 0;  // 0: all
};

struct EvaluateTask {
  std::string artifact;          // id, 64 hex digits
  std::string reference_path;    // checkpoint below a model root; empty: none
  std::string reference_digest;  // optional, hex
  std::vector<EvaluationData> texts;
  std::vector<ZeroShotData> zero_shot;
};

// As ParseTask; and there must be a text or a task.
absl::StatusOr<EvaluateTask> ParseEvaluateTask(absl::string_view json);

Json EvaluateTaskToJson(const EvaluateTask& task);

struct EvaluatePlan {
  EvaluateTask resolved;
  std::vector<StageCost> stages;
};

// What measuring a model of `config` in `format` takes; of zero-shot tasks the items are guessed
// where all are wanted. Errors as MakePlan.
absl::StatusOr<EvaluatePlan> PlanEvaluate(const EvaluateTask& task, const ModelConfig& config,
                                          const QuantFormat& format, const Machine& machine);

}  // namespace quern

#endif  // QUERN_CORE_PLAN_EVALUATE_TASK_H_
