#include "services/jobs/task_planner.h"

#include <absl/strings/str_cat.h>
#include <google/protobuf/util/json_util.h>
#include <sys/stat.h>

#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/plan/plan.h"
#include "services/jobs/job_messages.h"
#include "services/jobs/request_fields.h"

namespace quern {
namespace {

using quantization::v1::Progress;
using quantization::v1::QuantizationJob;
using quantization::v1::QuantizeTask;
using quantization::v1::ResolvedSettings;

constexpr size_t kMaxPathBytes = 1024;

// A file that the caller named and that is not there (or lies outside) is a wrong argument.
absl::Status ForField(absl::string_view field, const absl::Status& status) {
  absl::StatusCode code = status.code();
  if (code == absl::StatusCode::kNotFound || code == absl::StatusCode::kPermissionDenied) {
    code = absl::StatusCode::kInvalidArgument;
  } else if (code == absl::StatusCode::kDataLoss) {
    code = absl::StatusCode::kFailedPrecondition;
  }
  return absl::Status(code, absl::StrCat(field, ": ", status.message()));
}

absl::StatusOr<Task> ToTask(const QuantizeTask& message) {
  std::string json;
  const auto converted = google::protobuf::util::MessageToJsonString(message, &json);
  if (!converted.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("quantization_job.quantize: ", std::string(converted.message())));
  }
  absl::StatusOr<Task> task = ParseTask(json);
  if (!task.ok()) return ForField("quantization_job.quantize", task.status());
  return task;
}

Progress::Stage ToStage(Stage stage) {
  Progress::Stage result = Progress::STAGE_UNSPECIFIED;
  Progress::Stage_Parse(std::string(StageName(stage)), &result);
  return result;
}

// Every setting as the run uses it, by way of the JSON form that both sides know.
absl::Status FillResolved(const Task& task, ResolvedSettings& resolved) {
  const Json all = TaskToJson(task);
  const Json settings = {{"block_ap", all.at("block_ap")}, {"e2e_qp", all.at("e2e_qp")}};
  const auto status =
      google::protobuf::util::JsonStringToMessage(DumpCanonicalJson(settings), &resolved);
  if (status.ok()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("resolved settings: ", std::string(status.message())));
}

}  // namespace

absl::StatusOr<QuantizationJob> TaskPlanner::Normalize(const QuantizationJob& asked) {
  if (!asked.has_quantize()) {
    return absl::InvalidArgumentError("quantization_job.quantize: is required, a job has one task");
  }
  RETURN_IF_ERROR(CheckLabels("quantization_job.labels", asked.labels()));
  QuantizationJob job;
  *job.mutable_quantize() = asked.quantize();
  *job.mutable_labels() = asked.labels();
  QuantizeTask& task = *job.mutable_quantize();
  task.clear_resolved();
  const std::string prefix = "quantization_job.quantize.";
  if (task.checkpoint().path().empty()) {
    return absl::InvalidArgumentError(prefix + "checkpoint.path: is required");
  }
  if (!task.has_format()) return absl::InvalidArgumentError(prefix + "format: is required");
  RETURN_IF_ERROR(
      quern::CheckText(prefix + "checkpoint.path", task.checkpoint().path(), kMaxPathBytes));
  RETURN_IF_ERROR(
      quern::CheckText(prefix + "calibration.path", task.calibration().path(), kMaxPathBytes));
  RETURN_IF_ERROR(
      quern::CheckText(prefix + "evaluation.path", task.evaluation().path(), kMaxPathBytes));
  RETURN_IF_ERROR(ToTask(task).status());
  return job;
}

absl::Status TaskPlanner::CheckText(absl::string_view field, const std::string& path) const {
  if (path.empty()) return absl::OkStatus();
  absl::StatusOr<std::string> real = ResolveBeneath(data_root_, path);
  if (!real.ok()) return ForField(field, real.status());
  struct stat info;
  if (stat(real->c_str(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", path, " is no file"));
  }
  return absl::OkStatus();
}

absl::StatusOr<QuantizationJob> TaskPlanner::Plan(QuantizationJob job) const {
  QuantizeTask& message = *job.mutable_quantize();
  ASSIGN_OR_RETURN(const Task task, ToTask(message));
  const std::string field = "quantization_job.quantize.checkpoint.path";
  absl::StatusOr<std::string> path = ResolveBeneath(model_root_, task.checkpoint_path);
  if (!path.ok()) return ForField(field, path.status());
  absl::StatusOr<ModelConfig> config = ReadCheckpointConfig(*path);
  if (!config.ok()) return ForField(field, config.status());
  RETURN_IF_ERROR(CheckText("quantization_job.quantize.calibration.path", task.calibration_path));
  RETURN_IF_ERROR(CheckText("quantization_job.quantize.evaluation.path", task.evaluation_path));
  // The memory of the machine that will run the job is not known here; the quantizer checks it.
  absl::StatusOr<PlanResult> plan = MakePlan(task, *config, Machine{});
  if (!plan.ok()) return ForField("quantization_job.quantize", plan.status());

  RETURN_IF_ERROR(FillResolved(plan->resolved, *message.mutable_resolved()));
  for (const StageCost& cost : plan->stages) {
    quantization::v1::Plan::StageCost& stage = *job.mutable_plan()->add_stages();
    stage.set_stage(ToStage(cost.stage));
    *stage.mutable_duration() = ToProtoDuration(cost.duration);
    stage.set_host_memory_bytes(cost.host_memory_bytes);
    stage.set_disk_bytes(cost.disk_bytes);
  }
  job.mutable_plan()->set_artifact_size_bytes(plan->artifact_size_bytes);
  return job;
}

}  // namespace quern
