#ifndef QUERN_CORE_PLAN_PLAN_H_
#define QUERN_CORE_PLAN_PLAN_H_

// What a task will do and cost, before anything runs. quern-jobs at submit and quern-quantizer at
// start call the same function, so a submit refuses exactly what the run would refuse.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
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
  int64_t memory_bytes = 0;  // of the host; 0: unknown, not checked
  // Of the GPU that trains; 0: the host does.
  int64_t device_memory_bytes = 0;
  // Of what trains, what states between blocks may take before they go to the disk; 0: all of them.
  int64_t activation_memory_bytes = 0;
  // Billions of floating-point operations per second of a large product, all threads together; of
  // bfloat16 only where the device has it in hardware, else 0.
  double gflops = 107;
  double bfloat16_gflops = 0;
  // Of the checkpoint as it lies in memory: 2 for mapped 16-bit files, 4 for F32 and for
  // quantized GGUF files, which are held dequantized.
  int source_bytes_per_weight = 4;
};

// What a task is computed in that does not say.
ComputeDtype FasterDtype(const Machine& machine);

// Machine::source_bytes_per_weight of a checkpoint whose files hold `weight_bytes`.
int SourceBytesPerWeight(const ModelConfig& config, int64_t weight_bytes);

// End-to-end training takes several sequences at once as long as they have no more tokens than
// this: enough that what is done for each weight, whatever their number, is not most of the time.
inline constexpr int kE2eTokensTogether = 512;
// What end-to-end training keeps of all blocks for the way back; where that is more than this, it
// keeps their inputs alone and computes the rest again, a third more of the products.
inline constexpr int64_t kMaxE2eGraphBytes = int64_t{3} << 30;
int64_t E2eGraphBytes(const ModelConfig& config, int64_t num_tokens, ComputeDtype compute_dtype);

struct StageCost {
  Stage stage;
  absl::Duration duration;
  int64_t host_memory_bytes = 0;
  int64_t device_memory_bytes = 0;  // of a GPU
  int64_t disk_bytes = 0;
};

struct PlanResult {
  Task resolved;                  // every setting as the run uses it
  std::vector<StageCost> stages;  // in the order they run, those the method has
  // Weights exact; tokenizer and headers by the size of the vocabulary and the number of tensors.
  int64_t artifact_size_bytes = 0;
};

// Calibration sequences that a resolved task asks for: Block-AP trains on the first ones and holds
// the next back for validation; E2E-QP uses the first ones again. Each method takes the first
// `sequence_length_tokens` of a row.
struct CalibrationShape {
  int num_sequences = 0;  // 0: the method needs none
  // Of these, sampled from the model; where others are not, evenly among those after Block-AP's.
  int num_sampled = 0;
  int num_block_sequences = 0;
  int length_tokens = 0;
};
CalibrationShape CalibrationShapeOf(const Task& resolved);

// INVALID_ARGUMENT naming field, value and what is supported (format against the model's shapes,
// sequence length against the context, settings against each other); RESOURCE_EXHAUSTED when the
// machine's memory cannot hold the run.
absl::StatusOr<PlanResult> MakePlan(const Task& task, const ModelConfig& config,
                                    const Machine& machine);

// RESOURCE_EXHAUSTED naming the stage and both numbers when one needs more than `free_bytes`.
absl::Status CheckDisk(const std::vector<StageCost>& stages, int64_t free_bytes);

}  // namespace quern

#endif  // QUERN_CORE_PLAN_PLAN_H_
