#ifndef QUERN_CORE_QUANT_QUANTIZE_H_
#define QUERN_CORE_QUANT_QUANTIZE_H_

// The public face of the training half; no torch type appears here. LibTorch's exceptions stop in
// quantize.cc.

#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "core/artifact/packed_model.h"
#include "core/checkpoint/checkpoint.h"
#include "core/plan/plan.h"
#include "core/plan/task.h"

namespace quern {

struct QuantizeProgress {
  Stage stage;
  int64_t completed = 0;  // units of the stage: blocks in BLOCK_AP, steps in E2E_QP
  int64_t total = 0;
  std::optional<double> loss;  // of the unit just completed
};

struct QuantizeOptions {
  // Where finished blocks and training state are kept; a second run with the same task and the
  // same directory goes on where the first one was stopped and gives the same bytes.
  std::string work_directory;
  int num_threads = 2;
  std::string device = "auto";  // "auto", "cpu" or "cuda"
  // What the states of calibration sequences between blocks may take in memory; streams that do not
  // fit lie in files in the work directory. Changes no result.
  int64_t activation_memory_bytes = std::numeric_limits<int64_t>::max();
  std::function<void(const QuantizeProgress&)> on_progress;
  // Asked between steps; true ends the run with CANCELLED.
  std::function<bool()> cancelled;
};

// Runs the task's method on `checkpoint` with calibration sequences `calibration` (rows of equal
// length; unused by RTN). `task` must be resolved (MakePlan). The result carries the checkpoint's
// tokenizer. ABORTED with block and step when training diverges twice, CANCELLED, DATA_LOSS,
// RESOURCE_EXHAUSTED when memory or disk is.
absl::StatusOr<PackedModel> Quantize(const Checkpoint& checkpoint, const Task& task,
                                     const std::vector<std::vector<int32_t>>& calibration,
                                     const QuantizeOptions& options);

struct DeviceInfo {
  std::string name;    // "cpu" or "cuda"
  std::string detail;  // e.g. the GPU's name
  int64_t memory_bytes = 0;
};
// What `device` ("auto", "cpu", "cuda") means on this machine; FAILED_PRECONDITION when it is not
// there. Must be called before any other use of LibTorch.
absl::StatusOr<DeviceInfo> FindDevice(const std::string& device);

// Billions of floating-point operations per second that a product of large matrices reaches.
struct ProductRates {
  double float32 = 0;
  double bfloat16 = 0;  // 0 where the device does not have such products in hardware
};
// Those of the device now; takes a fraction of a second. Errors as FindDevice.
absl::StatusOr<ProductRates> MeasureProductRates(const std::string& device, int num_threads);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_QUANTIZE_H_
