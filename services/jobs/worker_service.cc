#include "services/jobs/worker_service.h"

#include <absl/strings/ascii.h>
#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "services/common/unary.h"
#include "services/jobs/job_messages.h"
#include "services/jobs/request_fields.h"
#include "services/jobs/stage_artifact_reactor.h"

namespace quern {
namespace {

using quantization::v1::EvaluationReport;
using quantization::v1::JobError;
using quantization::v1::Progress;
using worker::v1::CompleteJobRequest;
using worker::v1::LeaseJobRequest;
using worker::v1::LeaseJobResponse;
using worker::v1::RenewLeaseRequest;
using worker::v1::RenewLeaseResponse;

constexpr absl::Duration kMaxLeaseWait = absl::Minutes(1);
constexpr size_t kMaxLogBytes = 64 << 10;
constexpr int kMaxEvaluationRows = 64;

absl::Status CheckToken(const std::string& token) {
  if (token.empty()) return absl::InvalidArgumentError("token: is required");
  return CheckText("token", token, 256);
}

absl::Status CheckProgress(const Progress& progress) {
  if (!Progress::Stage_IsValid(progress.stage()) || progress.stage() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("progress.stage: found ", progress.stage(), ", wanted LOADING to PUBLISHING"));
  }
  if (progress.completed_count() < 0 || progress.total_count() < 0 ||
      progress.completed_count() > progress.total_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("progress.completed_count: found ", progress.completed_count(), " of ",
                     progress.total_count(), ", wanted 0 to total_count"));
  }
  if (progress.has_loss() && !std::isfinite(progress.loss())) {
    return absl::InvalidArgumentError("progress.loss: is not finite");
  }
  return CheckDuration("progress.remaining", progress.remaining(), absl::InfiniteDuration())
      .status();
}

absl::Status CheckEvaluation(const EvaluationReport& report) {
  const std::string field = "result.evaluation";
  if (report.rows_size() > kMaxEvaluationRows) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".rows: found ", report.rows_size(),
                                                   ", wanted at most ", kMaxEvaluationRows));
  }
  for (const EvaluationReport::Row& row : report.rows()) {
    RETURN_IF_ERROR(CheckText(field + ".rows.model", row.model(), 64));
    RETURN_IF_ERROR(CheckText(field + ".rows.dataset", row.dataset(), 1024));
  }
  if (report.zero_shot_rows_size() > kMaxEvaluationRows) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".zero_shot_rows: found ",
                                                   report.zero_shot_rows_size(),
                                                   ", wanted at most ", kMaxEvaluationRows));
  }
  for (const EvaluationReport::ZeroShotRow& row : report.zero_shot_rows()) {
    RETURN_IF_ERROR(CheckText(field + ".zero_shot_rows.model", row.model(), 64));
    RETURN_IF_ERROR(CheckText(field + ".zero_shot_rows.task", row.task(), 1024));
  }
  return absl::OkStatus();
}

absl::Status CheckError(const JobError& error) {
  if (error.code() < 1 || error.code() > 16) {
    return absl::InvalidArgumentError(absl::StrCat("error.code: found ", error.code(),
                                                   ", wanted a google.rpc.Code from 1 to 16"));
  }
  bool upper_snake = !error.reason().empty() && error.reason().size() <= 63;
  for (char c : error.reason()) {
    const auto byte = static_cast<unsigned char>(c);
    upper_snake =
        upper_snake && (absl::ascii_isupper(byte) || absl::ascii_isdigit(byte) || c == '_');
  }
  if (!upper_snake) {
    return absl::InvalidArgumentError("error.reason: wanted 1 to 63 of A-Z, 0-9 and '_'");
  }
  return CheckText("error.message", error.message(), 16 << 10, /*multi_line=*/true);
}

std::string DeviceLabel(const worker::v1::WorkerCapabilities& capabilities) {
  switch (capabilities.device()) {
    case worker::v1::WorkerCapabilities::CPU:
      return "cpu";
    case worker::v1::WorkerCapabilities::CUDA:
      return "cuda";
    default:
      return "unknown";
  }
}

absl::Status CheckLeaseRequest(const LeaseJobRequest& request) {
  RETURN_IF_ERROR(CheckIdentifier("worker", request.worker(), 63));
  RETURN_IF_ERROR(CheckIdentifier("request_id", request.request_id(), 64));
  const worker::v1::WorkerCapabilities& capabilities = request.capabilities();
  RETURN_IF_ERROR(CheckText("capabilities.device_name", capabilities.device_name(), 256));
  if (!worker::v1::WorkerCapabilities::Device_IsValid(capabilities.device())) {
    return absl::InvalidArgumentError(
        absl::StrCat("capabilities.device: found ", capabilities.device(), ", wanted CPU or CUDA"));
  }
  for (const auto& [name, gflops] :
       {std::pair("gflops", capabilities.gflops()),
        std::pair("bfloat16_gflops", capabilities.bfloat16_gflops())}) {
    if (!(gflops >= 0 && gflops <= 1e9)) {
      return absl::InvalidArgumentError(
          absl::StrCat("capabilities.", name, ": found ", gflops, ", wanted 0 to 1e9"));
    }
  }
  if (capabilities.memory_bytes() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "capabilities.memory_bytes: found ", capabilities.memory_bytes(), ", wanted 0 or more"));
  }
  return absl::OkStatus();
}

}  // namespace

struct WorkerServiceImpl::PendingLease {
  grpc::CallbackServerContext* context;
  const LeaseJobRequest* request;
  LeaseJobResponse* response;
  grpc::ServerUnaryReactor* reactor;
  std::chrono::steady_clock::time_point deadline;

  absl::Status Fill(const LeaseGrant& grant, absl::Duration duration) {
    worker::v1::Lease& lease = *response->mutable_lease();
    lease.set_token(grant.token);
    *lease.mutable_expire_time() = ToTimestamp(grant.job.lease_expire_time);
    *lease.mutable_duration() = ToProtoDuration(duration);
    ASSIGN_OR_RETURN(*lease.mutable_job(), JobFromRecord(grant.job));
    return absl::OkStatus();
  }
};

grpc::ServerUnaryReactor* WorkerServiceImpl::LeaseJob(grpc::CallbackServerContext* context,
                                                      const LeaseJobRequest* request,
                                                      LeaseJobResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::StatusOr<absl::Duration> wait =
      CheckDuration("wait_duration", request->wait_duration(), kMaxLeaseWait);
  absl::Status status = CheckLeaseRequest(*request);
  if (status.ok()) status = wait.status();
  if (!status.ok()) {
    reactor->Finish(ToGrpcStatus(status));
    return reactor;
  }
  auto pending = std::make_shared<PendingLease>(
      PendingLease{context, request, response, reactor,
                   std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(*wait)});
  if (!executor_.TryPost([this, pending] { TryLease(pending); })) {
    reactor->Finish(ToGrpcStatus(TooBusy()));
  }
  return reactor;
}

void WorkerServiceImpl::TryLease(std::shared_ptr<PendingLease> pending) {
  planner_.NoteWorker(pending->request->capabilities());
  // A worker that went away while it waited must not get a job.
  if (pending->context->IsCancelled()) {
    return pending->reactor->Finish(ToGrpcStatus(absl::CancelledError("the call was cancelled")));
  }
  if (board_.stopping()) {
    return pending->reactor->Finish(
        ToGrpcStatus(absl::UnavailableError("the service is shutting down")));
  }
  // Read before looking, so that a job queued between looking and waiting wakes us.
  const int64_t version = board_.queue_version();
  absl::StatusOr<std::optional<LeaseGrant>> grant =
      board_.Lease(pending->request->worker(), DeviceLabel(pending->request->capabilities()),
                   pending->request->request_id());
  if (!grant.ok()) return pending->reactor->Finish(ToGrpcStatus(grant.status()));
  const absl::Duration left =
      absl::FromChrono(pending->deadline - std::chrono::steady_clock::now());
  if (grant->has_value()) {
    const absl::Status filled = pending->Fill(**grant, board_.lease_duration());
    return pending->reactor->Finish(ToGrpcStatus(filled));
  }
  if (left <= absl::ZeroDuration()) return pending->reactor->Finish(grpc::Status::OK);
  board_.WaitForQueued(version, left,
                       [this, pending] { executor_.Post([this, pending] { TryLease(pending); }); });
}

absl::Status WorkerServiceImpl::Renew(const RenewLeaseRequest& request,
                                      RenewLeaseResponse& response) {
  RETURN_IF_ERROR(CheckToken(request.token()));
  std::string progress;
  int64_t mark = -1;
  if (request.has_progress()) {
    RETURN_IF_ERROR(CheckProgress(request.progress()));
    progress = SerializeCanonically(request.progress());
    mark = ProgressMark(request.progress());
  }
  size_t log_bytes = 0;
  std::vector<std::string> lines;
  for (const std::string& line : request.log_lines()) {
    log_bytes += line.size();
    RETURN_IF_ERROR(CheckText("log_lines", line, kMaxLogBytes, /*multi_line=*/true));
    lines.push_back(line);
  }
  if (log_bytes > kMaxLogBytes || lines.size() > 1024) {
    return absl::InvalidArgumentError(absl::StrCat("log_lines: ", lines.size(), " lines of ",
                                                   log_bytes, " bytes, at most 1024 lines of ",
                                                   kMaxLogBytes, " bytes are taken"));
  }
  ASSIGN_OR_RETURN(const JobStore::Renewal renewal,
                   board_.Renew(request.token(), progress, mark, lines));
  *response.mutable_expire_time() = ToTimestamp(renewal.expire_time);
  *response.mutable_duration() = ToProtoDuration(board_.lease_duration());
  response.set_cancel_requested(renewal.cancel_requested);
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* WorkerServiceImpl::RenewLease(grpc::CallbackServerContext* context,
                                                        const RenewLeaseRequest* request,
                                                        RenewLeaseResponse* response) {
  return RunUnary(executor_, context,
                  [this, request, response] { return Renew(*request, *response); });
}

grpc::ServerUnaryReactor* WorkerServiceImpl::ReleaseLease(
    grpc::CallbackServerContext* context, const worker::v1::ReleaseLeaseRequest* request,
    google::protobuf::Empty*) {
  return RunUnary(executor_, context, [this, request]() -> absl::Status {
    RETURN_IF_ERROR(CheckToken(request->token()));
    return board_.Release(request->token());
  });
}

grpc::ServerReadReactor<worker::v1::StageArtifactRequest>* WorkerServiceImpl::StageArtifact(
    grpc::CallbackServerContext*, worker::v1::StageArtifactResponse* response) {
  return StartStageArtifact(board_, catalog_, metrics_, executor_, response);
}

// Only an evaluation ends without one.
absl::Status WorkerServiceImpl::CompleteWithoutArtifact(const CompleteJobRequest& request) {
  const absl::StatusOr<JobRecord> record = board_.store().CheckLease(request.token());
  if (record.ok()) {
    ASSIGN_OR_RETURN(const quantization::v1::QuantizationJob job, JobFromRecord(*record));
    if (!job.has_evaluate()) {
      return absl::InvalidArgumentError("result.artifact: is required, the task makes one");
    }
  }
  // Without a lease this is the repetition of a call that was answered, or it is refused.
  return board_
      .Complete(request.token(), JobState::kSucceeded, "", "",
                SerializeCanonically(request.result().evaluation()), "")
      .status();
}

absl::Status WorkerServiceImpl::Complete(const CompleteJobRequest& request) {
  RETURN_IF_ERROR(CheckToken(request.token()));
  switch (request.outcome_case()) {
    case CompleteJobRequest::kResult: {
      RETURN_IF_ERROR(CheckEvaluation(request.result().evaluation()));
      if (request.result().artifact().empty()) return CompleteWithoutArtifact(request);
      ASSIGN_OR_RETURN(const Digest artifact,
                       ParseArtifactName("result.artifact", request.result().artifact()));
      return catalog_
          .Publish(request.token(), artifact, SerializeCanonically(request.result().evaluation()))
          .status();
    }
    case CompleteJobRequest::kError: {
      RETURN_IF_ERROR(CheckError(request.error()));
      const bool cancelled = request.error().code() == grpc::StatusCode::CANCELLED;
      return board_
          .Complete(request.token(), cancelled ? JobState::kCancelled : JobState::kFailed, "", "",
                    "", SerializeCanonically(request.error()))
          .status();
    }
    case CompleteJobRequest::OUTCOME_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("outcome: is required, a result or an error");
}

grpc::ServerUnaryReactor* WorkerServiceImpl::CompleteJob(grpc::CallbackServerContext* context,
                                                         const CompleteJobRequest* request,
                                                         google::protobuf::Empty*) {
  return RunUnary(executor_, context, [this, request] { return Complete(*request); });
}

}  // namespace quern
