#include "services/worker/job_session.h"

#include <absl/random/random.h>
#include <absl/strings/str_cat.h>
#include <grpcpp/grpcpp.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "core/base/error_reason.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "services/common/status.h"
#include "services/worker/artifact_uploader.h"
#include "services/worker/quantizer_events.h"

namespace quern {
namespace {

using quantization::v1::JobError;
using quantization::v1::Progress;
using worker::v1::CompleteJobRequest;

// Of lines that wait for the next renewal; quern-jobs takes 64 KiB and 1024 lines a call.
constexpr size_t kMaxWaitingLines = 512;
constexpr size_t kMaxSentLogBytes = 60 << 10;
constexpr int kMaxStagings = 3;

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

// Errors that may pass by themselves.
bool IsTransient(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsResourceExhausted(status) || absl::IsCancelled(status) || absl::IsUnknown(status);
}

absl::Status LeaseLost() { return absl::AbortedError("the lease was lost"); }

void SetDeadline(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
}

}  // namespace

absl::Duration BootTime() {
  timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return absl::DurationFromTimespec(now);
}

JobSession::JobSession(const JobSessionOptions& options, const worker::v1::Lease& lease,
                       absl::Duration granted_at, std::string work_directory,
                       worker::v1::WorkerService::StubInterface& stub, WorkerMetrics& metrics)
    : options_(options),
      lease_(lease),
      work_directory_(std::move(work_directory)),
      stub_(stub),
      metrics_(metrics),
      ttl_(FromProto(lease.duration())),
      acknowledged_(granted_at),
      tried_(granted_at) {}

JobSession::End JobSession::Run(QuantizerRunner& runner) {
  metrics_.StartJob();
  QuantizerJob job;
  job.id = lease_.job().name();
  // What was resolved at submit is resolved again, from the same task, by the run itself.
  if (lease_.job().has_tune()) {
    *job.task.mutable_tune() = lease_.job().tune();
    job.task.mutable_tune()->clear_resolved();
  } else if (lease_.job().has_evaluate()) {
    *job.task.mutable_evaluate() = lease_.job().evaluate();
  } else {
    *job.task.mutable_quantize() = lease_.job().quantize();
    job.task.mutable_quantize()->clear_resolved();
  }
  job.work_directory = work_directory_;
  absl::StatusOr<QuantizerOutcome> outcome = LeaseLost();
  {
    // Gone at the end of this block, whatever the outcome: killed, if it still runs.
    const std::unique_ptr<QuantizerRun> run = runner.Start(job, *this);
    outcome = Follow(*run);
    if (!outcome.ok()) run->Kill();
  }
  End end = End::kLost;
  if (outcome.ok()) end = Conclude(*std::move(outcome));
  if (end == End::kLost) metrics_.leases_lost_total.Increment();
  metrics_.EndJob();
  return end;
}

absl::StatusOr<QuantizerOutcome> JobSession::Follow(QuantizerRun& run) {
  bool stopped = false;
  while (true) {
    bool stop = false;
    {
      MutexLock lock(&mutex_);
      while (!outcome_.has_value() && !RenewIsDue() &&
             (stopped || !(draining_ || cancel_requested_))) {
        // Progress may be due sooner than the renewal that keeps the lease.
        const absl::Duration interval = progress_.has_value() || !log_lines_.empty()
                                            ? std::min(options_.min_renew_interval, ttl_ / 3)
                                            : ttl_ / 3;
        changed_.WaitWithTimeout(&mutex_,
                                 std::max(tried_ + interval - BootTime(), absl::Milliseconds(1)));
      }
      if (outcome_.has_value()) return *std::move(outcome_);
      stop = !stopped && (draining_ || cancel_requested_);
    }
    if (stop) {
      run.Stop();
      stopped = true;
    }
    RETURN_IF_ERROR(RenewIfDue());
  }
}

bool JobSession::RenewIsDue() {
  const absl::Duration since = BootTime() - tried_;
  if (since >= ttl_ / 3) return true;
  return since >= options_.min_renew_interval && (progress_.has_value() || !log_lines_.empty());
}

absl::Status JobSession::RenewIfDue() {
  {
    MutexLock lock(&mutex_);
    if (!RenewIsDue()) return absl::OkStatus();
  }
  const absl::Status status = Renew();
  if (absl::IsAborted(status) || absl::IsNotFound(status)) return LeaseLost();
  MutexLock lock(&mutex_);
  if (status.ok()) return absl::OkStatus();
  LOG(WARNING) << "lease not renewed job=" << lease_.job().name() << ": " << status.message();
  // Nobody may still hold the lease for us: another worker may have the job by now.
  if (BootTime() - acknowledged_ >= ttl_) return LeaseLost();
  return absl::OkStatus();
}

absl::Status JobSession::Renew() {
  worker::v1::RenewLeaseRequest request;
  request.set_token(lease_.token());
  absl::Duration timeout;
  const absl::Duration now = BootTime();
  size_t sent_lines = 0;
  {
    MutexLock lock(&mutex_);
    tried_ = now;
    timeout = std::min(options_.rpc_timeout, std::max(ttl_ / 3, absl::Milliseconds(100)));
    if (progress_.has_value()) *request.mutable_progress() = *progress_;
    size_t bytes = 0;
    for (const std::string& line : log_lines_) {
      bytes += line.size();
      if (bytes > kMaxSentLogBytes) break;
      request.add_log_lines(line);
      ++sent_lines;
    }
  }
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  worker::v1::RenewLeaseResponse response;
  const absl::Status status = FromGrpcStatus(stub_.RenewLease(&context, request, &response));
  MutexLock lock(&mutex_);
  // What quern-jobs refuses as wrong would be refused again: better renew without it.
  if (status.ok() || absl::IsInvalidArgument(status)) {
    log_lines_.erase(log_lines_.begin(), log_lines_.begin() + static_cast<ptrdiff_t>(std::min(
                                                                  sent_lines, log_lines_.size())));
    // Newer progress may have come during the call.
    if (progress_.has_value() && request.has_progress() &&
        progress_->SerializeAsString() == request.progress().SerializeAsString()) {
      progress_.reset();
    }
  }
  RETURN_IF_ERROR(status);
  acknowledged_ = now;
  if (response.has_duration()) ttl_ = FromProto(response.duration());
  if (response.cancel_requested() && !cancel_requested_) {
    LOG(INFO) << "cancel requested job=" << lease_.job().name();
    cancel_requested_ = true;
  }
  return absl::OkStatus();
}

JobSession::End JobSession::Conclude(QuantizerOutcome outcome) {
  if (outcome.result.has_value()) return Publish(*outcome.result);
  if (outcome.error.code() == static_cast<int>(absl::StatusCode::kCancelled)) {
    bool cancel_requested = false;
    {
      MutexLock lock(&mutex_);
      cancel_requested = cancel_requested_;
    }
    if (!cancel_requested) return Release();
  }
  LOG(INFO) << "job failed job=" << lease_.job().name() << " reason=" << outcome.error.reason()
            << ": " << outcome.error.message();
  return CompleteWithError(outcome.error);
}

JobSession::End JobSession::Publish(const QuantizerResult& result) {
  Progress publishing;
  publishing.set_stage(Progress::PUBLISHING);
  OnProgress(publishing);
  absl::Duration backoff = options_.min_backoff;
  int stagings = 0;
  while (true) {
    // An evaluation has none.
    absl::StatusOr<std::string> artifact = std::string();
    if (!result.directory.empty()) {
      artifact =
          UploadArtifact(stub_, lease_.token(), result.directory, [this] { return RenewIfDue(); });
    }
    absl::Status status = artifact.status();
    if (status.ok()) {
      CompleteJobRequest request;
      request.set_token(lease_.token());
      request.mutable_result()->set_artifact(*artifact);
      *request.mutable_result()->mutable_evaluation() = result.evaluation;
      status = CompleteOnce(request);
      if (status.ok()) {
        LOG(INFO) << "job published job=" << lease_.job().name() << " artifact=" << *artifact;
        return End::kCompleted;
      }
      // A restart of quern-jobs removes blobs that are not published yet.
      if (absl::IsFailedPrecondition(status) && ++stagings < kMaxStagings) continue;
    }
    if (absl::IsAborted(status)) return End::kLost;
    LOG(WARNING) << "not published job=" << lease_.job().name() << ": " << status.ToString();
    if (!IsTransient(status)) {
      JobError error;
      error.set_code(static_cast<int>(absl::StatusCode::kInternal));
      error.set_reason(std::string(reason::kPublishFailed));
      error.set_message(
          CleanText(absl::StrCat("the artifact was refused: ", status.ToString()), 4096));
      return CompleteWithError(error);
    }
    status = BackOff(backoff);
    if (absl::IsCancelled(status)) return Release();
    if (!status.ok()) return End::kLost;
  }
}

JobSession::End JobSession::CompleteWithError(const JobError& error) {
  CompleteJobRequest request;
  request.set_token(lease_.token());
  *request.mutable_error() = error;
  return Complete(request);
}

absl::Status JobSession::CompleteOnce(const CompleteJobRequest& request) {
  grpc::ClientContext context;
  SetDeadline(context, options_.rpc_timeout);
  google::protobuf::Empty response;
  return FromGrpcStatus(stub_.CompleteJob(&context, request, &response));
}

JobSession::End JobSession::Complete(const CompleteJobRequest& request) {
  absl::Duration backoff = options_.min_backoff;
  while (true) {
    const absl::Status status = CompleteOnce(request);
    if (status.ok()) return End::kCompleted;
    LOG(WARNING) << "job not completed job=" << lease_.job().name() << ": " << status.ToString();
    if (!IsTransient(status)) return End::kLost;
    const absl::Status waited = BackOff(backoff);
    if (absl::IsCancelled(waited)) return Release();
    if (!waited.ok()) return End::kLost;
  }
}

JobSession::End JobSession::Release() {
  worker::v1::ReleaseLeaseRequest request;
  request.set_token(lease_.token());
  grpc::ClientContext context;
  SetDeadline(context, options_.rpc_timeout);
  google::protobuf::Empty response;
  const absl::Status status = FromGrpcStatus(stub_.ReleaseLease(&context, request, &response));
  if (status.ok()) return End::kReleased;
  // The lease runs out by itself; this only counts as an attempt.
  LOG(WARNING) << "lease not released job=" << lease_.job().name() << ": " << status.message();
  return End::kLost;
}

absl::Status JobSession::BackOff(absl::Duration& backoff) {
  thread_local absl::BitGen random;
  const absl::Duration until = BootTime() + backoff * absl::Uniform(random, 0.5, 1.0);
  backoff = std::min(backoff * 1.5, options_.max_backoff);
  while (true) {
    RETURN_IF_ERROR(RenewIfDue());
    MutexLock lock(&mutex_);
    if (draining_) return absl::CancelledError("the worker shuts down");
    const absl::Duration left = until - BootTime();
    if (left <= absl::ZeroDuration()) return absl::OkStatus();
    const absl::Duration renew = tried_ + ttl_ / 3 - BootTime();
    // At least a little while, or a renewal that is overdue would be tried without a pause; `left`
    // may be less than that.
    changed_.WaitWithTimeout(&mutex_, std::min(std::max(renew, absl::Milliseconds(1)), left));
  }
}

void JobSession::Drain() {
  MutexLock lock(&mutex_);
  draining_ = true;
  changed_.SignalAll();
}

std::optional<worker::v1::WorkerCapabilities> JobSession::device() {
  MutexLock lock(&mutex_);
  return device_;
}

void JobSession::OnDevice(const worker::v1::WorkerCapabilities& device) {
  metrics_.SetDevice(device.device() == worker::v1::WorkerCapabilities::CUDA ? "cuda" : "cpu");
  MutexLock lock(&mutex_);
  device_ = device;
}

void JobSession::OnProgress(const Progress& progress) {
  metrics_.Progress(progress);
  MutexLock lock(&mutex_);
  progress_ = progress;
  changed_.SignalAll();
}

void JobSession::OnLog(const std::string& line) {
  MutexLock lock(&mutex_);
  // The newest lines tell most.
  if (log_lines_.size() >= kMaxWaitingLines) log_lines_.pop_front();
  log_lines_.push_back(line);
  changed_.SignalAll();
}

void JobSession::OnRestart() {
  metrics_.quantizer_restarts_total.Increment();
  OnLog("the quantizer crashed and is started again from its last finished block");
}

void JobSession::OnEnd(QuantizerOutcome outcome) {
  MutexLock lock(&mutex_);
  outcome_ = std::move(outcome);
  changed_.SignalAll();
}

}  // namespace quern
