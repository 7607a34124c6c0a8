#ifndef QUERN_CORE_PLAN_PLAN_H_
#define QUERN_CORE_PLAN_PLAN_H_

// What a task will do and cost, before anything runs. quern-jobs at submit and quern-quantizer at
// start call the same function, so a submit refuses exactly what the run would refuse.

#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include <cstdint>
#include <vector>

#include "core/model/model_config.h"
#include "core/plan/task.h"

namespace quern {

enum class Stage { kLoading, kCalibrating, kBlockAp, kE2eQp, kPacking, kEvaluating, kPublishing };
// "LOADING", ... as in the proto's Progress.Stage.
absl::string_view StageName(Stage stage);

// What the run may count on.
struct Machine {
  int num_threads = 2;
  int64_t memory_bytes = 0;  // 0: unknown, not checked
  double gflops = 80;        // of a training step, both threads together
};

struct StageCost {
  Stage stage;
  absl::Duration duration;
  int64_t host_memory_bytes = 0;
  int64_t disk_bytes = 0;
};

struct PlanResult {
  Task resolved;  // every setting as the run uses it
  std::vector<StageCost> stages;
  int64_t artifact_size_bytes = 0;
};

// INVALID_ARGUMENT naming field, value and what is supported (format against the model's shapes,
// sequence length against the context, settings against each other); RESOURCE_EXHAUSTED when the
// machine's memory cannot hold the run.
absl::StatusOr<PlanResult> MakePlan(const Task& task, const ModelConfig& config,
                                    const Machine& machine);

}  // namespace quern

#endif  // QUERN_CORE_PLAN_PLAN_H_
