#include "services/jobs/task_planner.h"

#include <absl/strings/str_cat.h>
#include <google/protobuf/util/json_util.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/plan/evaluate_task.h"
#include "core/plan/plan.h"
#include "core/plan/tune_task.h"
#include "services/jobs/job_messages.h"
#include "services/jobs/request_fields.h"

namespace quern {
namespace {

using quantization::v1::Progress;
using quantization::v1::QuantizationJob;
using quantization::v1::QuantizeTask;

constexpr size_t kMaxPathBytes = 1024;
// Of JSON lines with instructions, their keys among them.
constexpr int64_t kBytesPerToken = 4;
constexpr absl::string_view kQuantizeField = "quantization_job.quantize";
constexpr absl::string_view kEvaluateField = "quantization_job.evaluate";
constexpr absl::string_view kTuneField = "quantization_job.tune";

// A file that the caller named and that is not there (or lies outside) is a wrong argument. What no
// worker has room for will not fit later either: RESOURCE_EXHAUSTED asks to be tried again.
absl::Status ForField(absl::string_view field, const absl::Status& status) {
  absl::StatusCode code = status.code();
  if (code == absl::StatusCode::kNotFound || code == absl::StatusCode::kPermissionDenied) {
    code = absl::StatusCode::kInvalidArgument;
  } else if (code == absl::StatusCode::kDataLoss || code == absl::StatusCode::kResourceExhausted) {
    code = absl::StatusCode::kFailedPrecondition;
  }
  return absl::Status(code, absl::StrCat(field, ": ", status.message()));
}

absl::StatusOr<std::string> ToJson(absl::string_view field,
                                   const google::protobuf::Message& message) {
  std::string json;
  const auto converted = google::protobuf::util::MessageToJsonString(message, &json);
  if (!converted.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", std::string(converted.message())));
  }
  return json;
}

absl::StatusOr<Task> ToTask(const QuantizeTask& message) {
  ASSIGN_OR_RETURN(const std::string json, ToJson(kQuantizeField, message));
  absl::StatusOr<Task> task = ParseTask(json);
  if (!task.ok()) return ForField(kQuantizeField, task.status());
  return task;
}

absl::StatusOr<quern::TuneTask> ToTask(const quantization::v1::TuneTask& message) {
  ASSIGN_OR_RETURN(const std::string json, ToJson(kTuneField, message));
  absl::StatusOr<quern::TuneTask> task = ParseTuneTask(json);
  if (!task.ok()) return ForField(kTuneField, task.status());
  return task;
}

Progress::Stage ToStage(Stage stage) {
  Progress::Stage result = Progress::STAGE_UNSPECIFIED;
  Progress::Stage_Parse(std::string(StageName(stage)), &result);
  return result;
}

// Every setting as the run uses it, by way of the JSON form that both sides know.
absl::Status FillResolved(const Json& settings, google::protobuf::Message& resolved) {
  const auto status =
      google::protobuf::util::JsonStringToMessage(DumpCanonicalJson(settings), &resolved);
  if (status.ok()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("resolved settings: ", std::string(status.message())));
}

absl::StatusOr<quern::EvaluateTask> ToTask(const quantization::v1::EvaluateTask& message) {
  ASSIGN_OR_RETURN(const std::string json, ToJson(kEvaluateField, message));
  absl::StatusOr<quern::EvaluateTask> task = ParseEvaluateTask(json);
  if (!task.ok()) return ForField(kEvaluateField, task.status());
  return task;
}

void FillPlan(const std::vector<StageCost>& stages, int64_t artifact_size_bytes,
              quantization::v1::Plan& plan) {
  for (const StageCost& cost : stages) {
    quantization::v1::Plan::StageCost& stage = *plan.add_stages();
    stage.set_stage(ToStage(cost.stage));
    *stage.mutable_duration() = ToProtoDuration(cost.duration);
    stage.set_host_memory_bytes(cost.host_memory_bytes);
    stage.set_device_memory_bytes(cost.device_memory_bytes);
    stage.set_disk_bytes(cost.disk_bytes);
  }
  plan.set_artifact_size_bytes(artifact_size_bytes);
}

absl::Status CheckPath(absl::string_view field, const std::string& path) {
  return CheckText(field, path, kMaxPathBytes);
}

absl::Status NormalizeQuantize(QuantizeTask& task) {
  task.clear_resolved();
  const auto field = [](absl::string_view name) { return absl::StrCat(kQuantizeField, ".", name); };
  if (task.checkpoint().path().empty()) {
    return absl::InvalidArgumentError(field("checkpoint.path: is required"));
  }
  if (!task.has_format()) return absl::InvalidArgumentError(field("format: is required"));
  RETURN_IF_ERROR(CheckPath(field("checkpoint.path"), task.checkpoint().path()));
  RETURN_IF_ERROR(CheckPath(field("calibration.path"), task.calibration().path()));
  RETURN_IF_ERROR(CheckPath(field("evaluation.path"), task.evaluation().path()));
  return ToTask(task).status();
}

absl::Status NormalizeEvaluate(const quantization::v1::EvaluateTask& task) {
  const auto field = [](absl::string_view name) { return absl::StrCat(kEvaluateField, ".", name); };
  if (task.artifact().empty()) return absl::InvalidArgumentError(field("artifact: is required"));
  RETURN_IF_ERROR(CheckPath(field("artifact"), task.artifact()));
  RETURN_IF_ERROR(CheckPath(field("reference.path"), task.reference().path()));
  for (const auto& text : task.texts()) RETURN_IF_ERROR(CheckPath(field("texts"), text.path()));
  for (const auto& data : task.zero_shot()) {
    RETURN_IF_ERROR(CheckPath(field("zero_shot"), data.path()));
  }
  return ToTask(task).status();
}

absl::Status NormalizeTune(quantization::v1::TuneTask& task) {
  task.clear_resolved();
  const auto field = [](absl::string_view name) { return absl::StrCat(kTuneField, ".", name); };
  if (task.base().empty()) return absl::InvalidArgumentError(field("base: is required"));
  if (task.data().path().empty())
    return absl::InvalidArgumentError(field("data.path: is required"));
  RETURN_IF_ERROR(CheckPath(field("base"), task.base()));
  RETURN_IF_ERROR(CheckPath(field("data.path"), task.data().path()));
  RETURN_IF_ERROR(CheckPath(field("evaluation.path"), task.evaluation().path()));
  return ToTask(task).status();
}

}  // namespace

absl::StatusOr<QuantizationJob> TaskPlanner::Normalize(const QuantizationJob& asked) {
  RETURN_IF_ERROR(CheckLabels("quantization_job.labels", asked.labels()));
  QuantizationJob job;
  *job.mutable_labels() = asked.labels();
  switch (asked.task_case()) {
    case QuantizationJob::kQuantize:
      *job.mutable_quantize() = asked.quantize();
      RETURN_IF_ERROR(NormalizeQuantize(*job.mutable_quantize()));
      return job;
    case QuantizationJob::kTune:
      *job.mutable_tune() = asked.tune();
      RETURN_IF_ERROR(NormalizeTune(*job.mutable_tune()));
      return job;
    case QuantizationJob::kEvaluate:
      *job.mutable_evaluate() = asked.evaluate();
      RETURN_IF_ERROR(NormalizeEvaluate(job.evaluate()));
      return job;
    case QuantizationJob::TASK_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      "quantization_job: a task is required, quantize, tune or evaluate; a job has one task");
}

absl::StatusOr<int64_t> TaskPlanner::CheckFile(absl::string_view field,
                                               const std::string& path) const {
  if (path.empty()) return 0;
  absl::StatusOr<std::string> real = ResolveBeneath(data_root_, path);
  if (!real.ok()) return ForField(field, real.status());
  struct stat info;
  if (stat(real->c_str(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", path, " is no file"));
  }
  return info.st_size;
}

void TaskPlanner::NoteWorker(const worker::v1::WorkerCapabilities& capabilities) const {
  const bool has_gpu = capabilities.device() == worker::v1::WorkerCapabilities::CUDA;
  std::atomic<int64_t>& most = has_gpu ? device_memory_bytes_ : memory_bytes_;
  int64_t known = most;
  while (known < capabilities.memory_bytes() &&
         !most.compare_exchange_weak(known, capabilities.memory_bytes())) {
  }
  if (capabilities.gflops() <= 0) return;
  gflops_ = capabilities.gflops();
  bfloat16_gflops_ = capabilities.bfloat16_gflops();
}

Machine TaskPlanner::FleetMachine() const {
  Machine machine;
  // A worker with a GPU does not say what its host has.
  if (device_memory_bytes_ > 0) {
    machine.device_memory_bytes = device_memory_bytes_;
  } else {
    machine.memory_bytes = memory_bytes_;
  }
  machine.activation_memory_bytes = std::max(machine.memory_bytes, machine.device_memory_bytes) / 2;
  const double gflops = gflops_;
  if (gflops > 0) {
    machine.gflops = gflops;
    machine.bfloat16_gflops = bfloat16_gflops_;
  }
  return machine;
}

absl::StatusOr<QuantizationJob> TaskPlanner::Plan(QuantizationJob job) const {
  if (job.has_tune()) return PlanTune(std::move(job));
  if (job.has_evaluate()) return PlanEvaluate(std::move(job));
  return PlanQuantize(std::move(job));
}

absl::StatusOr<QuantizationJob> TaskPlanner::PlanQuantize(QuantizationJob job) const {
  QuantizeTask& message = *job.mutable_quantize();
  ASSIGN_OR_RETURN(const Task task, ToTask(message));
  const std::string field = absl::StrCat(kQuantizeField, ".checkpoint.path");
  absl::StatusOr<std::string> path = ResolveBeneath(model_root_, task.checkpoint_path);
  if (!path.ok()) return ForField(field, path.status());
  absl::StatusOr<ModelConfig> config = ReadCheckpointConfig(*path);
  if (!config.ok()) return ForField(field, config.status());
  RETURN_IF_ERROR(
      CheckFile(absl::StrCat(kQuantizeField, ".calibration.path"), task.calibration_path).status());
  RETURN_IF_ERROR(
      CheckFile(absl::StrCat(kQuantizeField, ".evaluation.path"), task.evaluation.path).status());
  absl::StatusOr<PlanResult> plan = MakePlan(task, *config, FleetMachine());
  if (!plan.ok()) return ForField(kQuantizeField, plan.status());
  const Json all = TaskToJson(plan->resolved);
  RETURN_IF_ERROR(FillResolved({{"block_ap", all.at("block_ap")}, {"e2e_qp", all.at("e2e_qp")}},
                               *message.mutable_resolved()));
  FillPlan(plan->stages, plan->artifact_size_bytes, *job.mutable_plan());
  return job;
}

absl::StatusOr<QuantizationJob> TaskPlanner::PlanTune(QuantizationJob job) const {
  quantization::v1::TuneTask& message = *job.mutable_tune();
  ASSIGN_OR_RETURN(const quern::TuneTask task, ToTask(message));
  const std::string field = absl::StrCat(kTuneField, ".base");
  ASSIGN_OR_RETURN(const Digest base, Digest::Parse(task.base));
  const absl::StatusOr<Manifest> manifest = manifest_of_(base);
  if (!manifest.ok()) return ForField(field, manifest.status());
  if (!manifest->base.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", message.base(),
                                                   " is a scale delta, wanted a whole model: tune ",
                                                   ArtifactName(manifest->base), " instead"));
  }
  ASSIGN_OR_RETURN(const int64_t data_bytes,
                   CheckFile(absl::StrCat(kTuneField, ".data.path"), task.data_path));
  RETURN_IF_ERROR(
      CheckFile(absl::StrCat(kTuneField, ".evaluation.path"), task.evaluation.path).status());
  const absl::StatusOr<TunePlan> plan = quern::PlanTune(
      task, manifest->config, manifest->format, FleetMachine(), data_bytes / kBytesPerToken);
  if (!plan.ok()) return ForField(kTuneField, plan.status());
  RETURN_IF_ERROR(
      FillResolved(TuneTaskToJson(plan->resolved).at("settings"), *message.mutable_resolved()));
  // The worker's machine decides.
  message.mutable_resolved()->set_compute_dtype(message.settings().compute_dtype());
  FillPlan(plan->stages, plan->artifact_size_bytes, *job.mutable_plan());
  return job;
}

absl::StatusOr<QuantizationJob> TaskPlanner::PlanEvaluate(QuantizationJob job) const {
  ASSIGN_OR_RETURN(const quern::EvaluateTask task, ToTask(job.evaluate()));
  ASSIGN_OR_RETURN(const Digest artifact, Digest::Parse(task.artifact));
  const absl::StatusOr<Manifest> manifest = manifest_of_(artifact);
  if (!manifest.ok()) return ForField(absl::StrCat(kEvaluateField, ".artifact"), manifest.status());
  if (!task.reference_path.empty()) {
    const std::string field = absl::StrCat(kEvaluateField, ".reference.path");
    const absl::StatusOr<std::string> path = ResolveBeneath(model_root_, task.reference_path);
    if (!path.ok()) return ForField(field, path.status());
    const absl::StatusOr<ModelConfig> config = ReadCheckpointConfig(*path);
    if (!config.ok()) return ForField(field, config.status());
  }
  for (const EvaluationData& text : task.texts) {
    RETURN_IF_ERROR(CheckFile(absl::StrCat(kEvaluateField, ".texts"), text.path).status());
  }
  for (const ZeroShotData& data : task.zero_shot) {
    RETURN_IF_ERROR(CheckFile(absl::StrCat(kEvaluateField, ".zero_shot"), data.path).status());
  }
  absl::StatusOr<EvaluatePlan> plan =
      quern::PlanEvaluate(task, manifest->config, manifest->format, FleetMachine());
  if (!plan.ok()) return ForField(kEvaluateField, plan.status());
  FillPlan(plan->stages, 0, *job.mutable_plan());
  return job;
}

}  // namespace quern
