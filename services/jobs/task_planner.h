#ifndef QUERN_SERVICES_JOBS_TASK_PLANNER_H_
#define QUERN_SERVICES_JOBS_TASK_PLANNER_H_

#include <absl/status/statusor.h>
#include <quern/quantization/v1/quantization_service.pb.h>

#include <string>

namespace quern {

// Checks a job before it is queued, with the functions that the quantizer itself will use, so that
// what is accepted here runs there. Thread-safe.
class TaskPlanner {
 public:
  TaskPlanner(std::string model_root, std::string data_root)
      : model_root_(std::move(model_root)), data_root_(std::move(data_root)) {}

  // What the user asked for: task and labels, without anything that is output only. Checks what
  // does not need the files. INVALID_ARGUMENT naming the field.
  static absl::StatusOr<quantization::v1::QuantizationJob> Normalize(
      const quantization::v1::QuantizationJob& asked);

  // `job` (normalized) with every setting resolved and the expected cost. Reads the checkpoint's
  // configuration; calibration and evaluation texts must be there. INVALID_ARGUMENT naming the
  // field; FAILED_PRECONDITION for a damaged checkpoint; RESOURCE_EXHAUSTED.
  absl::StatusOr<quantization::v1::QuantizationJob> Plan(
      quantization::v1::QuantizationJob job) const;

 private:
  absl::Status CheckText(absl::string_view field, const std::string& path) const;

  const std::string model_root_;
  const std::string data_root_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_TASK_PLANNER_H_
