#ifndef QUERN_SERVICES_JOBS_TASK_PLANNER_H_
#define QUERN_SERVICES_JOBS_TASK_PLANNER_H_

#include <absl/status/statusor.h>
#include <quern/quantization/v1/quantization_service.pb.h>
#include <quern/worker/v1/worker_service.pb.h>

#include <atomic>
#include <functional>
#include <string>
#include <utility>

#include "core/artifact/artifact.h"
#include "core/base/sha256.h"
#include "core/plan/plan.h"

namespace quern {

// Checks a job before it is queued, with the functions that the quantizer itself will use, so that
// what is accepted here runs there. Thread-safe.
class TaskPlanner {
 public:
  // `manifest_of`: of a published artifact, NOT_FOUND otherwise; thread-safe.
  TaskPlanner(std::string model_root, std::string data_root,
              std::function<absl::StatusOr<Manifest>(const Digest& artifact)> manifest_of)
      : model_root_(std::move(model_root)),
        data_root_(std::move(data_root)),
        manifest_of_(std::move(manifest_of)) {}

  // What a worker says of its machine. Plans count on the last one's speed and on the most memory
  // that one has had since the start: what none had room for is refused.
  void NoteWorker(const worker::v1::WorkerCapabilities& capabilities) const;

  // What the user asked for: task and labels, without anything that is output only. Checks what
  // does not need the files. INVALID_ARGUMENT naming the field.
  static absl::StatusOr<quantization::v1::QuantizationJob> Normalize(
      const quantization::v1::QuantizationJob& asked);

  // `job` (normalized) with every setting resolved and the expected cost. Reads the configuration
  // of the checkpoint or the base artifact; the data that the task names must be there.
  // INVALID_ARGUMENT naming the field; FAILED_PRECONDITION for a damaged checkpoint, and with the
  // setting that would fit for what no worker has memory for.
  absl::StatusOr<quantization::v1::QuantizationJob> Plan(
      quantization::v1::QuantizationJob job) const;

 private:
  absl::StatusOr<quantization::v1::QuantizationJob> PlanQuantize(
      quantization::v1::QuantizationJob job) const;
  absl::StatusOr<quantization::v1::QuantizationJob> PlanEvaluate(
      quantization::v1::QuantizationJob job) const;
  absl::StatusOr<quantization::v1::QuantizationJob> PlanTune(
      quantization::v1::QuantizationJob job) const;
  // The size of a file below the data root; 0 of an empty path.
  absl::StatusOr<int64_t> CheckFile(absl::string_view field, const std::string& path) const;

  Machine FleetMachine() const;

  // Of the largest workers; 0 before one has asked for work.
  mutable std::atomic<int64_t> memory_bytes_ = 0;
  mutable std::atomic<int64_t> device_memory_bytes_ = 0;
  // Of large products; 0 before a worker has run a job.
  mutable std::atomic<double> gflops_ = 0;
  mutable std::atomic<double> bfloat16_gflops_ = 0;
  const std::string model_root_;
  const std::string data_root_;
  const std::function<absl::StatusOr<Manifest>(const Digest& artifact)> manifest_of_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_TASK_PLANNER_H_
