#include "services/worker/lease_loop.h"

#include <absl/random/random.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "services/common/status.h"
#include "services/worker/capabilities.h"

namespace quern {
namespace {

// A random UUID, version 4.
std::string MakeRequestId() {
  uint8_t b[16];
  CHECK(getrandom(b, sizeof(b), 0) == sizeof(b));
  b[6] = static_cast<uint8_t>((b[6] & 0x0f) | 0x40);
  b[8] = static_cast<uint8_t>((b[8] & 0x3f) | 0x80);
  return absl::StrFormat("%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
                         b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11],
                         b[12], b[13], b[14], b[15]);
}

absl::StatusOr<FileDescriptor> LockDirectory(const std::string& directory) {
  const std::string path = directory + "/lock";
  FileDescriptor fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (fd.get() < 0) return absl::ErrnoToStatus(errno, absl::StrCat("opening ", path));
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return absl::ErrnoToStatus(errno, absl::StrCat("locking ", path));
    return absl::FailedPreconditionError(absl::StrCat(
        "work directory ", directory, " is in use by another worker; choose another one"));
  }
  return fd;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LeaseLoop>> LeaseLoop::Create(
    const LeaseLoopOptions& options, const std::shared_ptr<grpc::ChannelInterface>& channel,
    QuantizerRunner& runner, WorkerMetrics& metrics) {
  RETURN_IF_ERROR(CreateDirectories(options.work_directory));
  ASSIGN_OR_RETURN(FileDescriptor lock, LockDirectory(options.work_directory));
  return std::unique_ptr<LeaseLoop>(new LeaseLoop(
      options, worker::v1::WorkerService::NewStub(channel), std::move(lock), runner, metrics));
}

LeaseLoop::LeaseLoop(const LeaseLoopOptions& options,
                     std::unique_ptr<worker::v1::WorkerService::StubInterface> stub,
                     FileDescriptor lock, QuantizerRunner& runner, WorkerMetrics& metrics)
    : options_(options),
      stub_(std::move(stub)),
      lock_(std::move(lock)),
      runner_(runner),
      metrics_(metrics),
      capabilities_(ReadCpuCapabilities()),
      last_answer_(absl::UnavailableError("quern-jobs has not answered yet")) {
  metrics_.SetDevice("cpu");
}

void LeaseLoop::Run() {
  absl::BitGen random;
  absl::Duration backoff = options_.session.min_backoff;
  // Kept while calls fail: if the answer was lost, the same id gets the same lease.
  std::string request_id = MakeRequestId();
  while (!draining()) {
    const absl::Duration asked_at = BootTime();
    absl::StatusOr<std::optional<worker::v1::Lease>> lease = AskForLease(request_id);
    {
      MutexLock lock(&mutex_);
      last_answer_ = lease.status();
      if (!lease.ok() && !draining_) {
        LOG(WARNING) << "no answer from quern-jobs: " << lease.status().ToString();
        changed_.WaitWithTimeout(&mutex_, backoff * absl::Uniform(random, 0.5, 1.0));
        backoff = std::min(backoff * 1.5, options_.session.max_backoff);
      }
    }
    if (!lease.ok()) continue;
    backoff = options_.session.min_backoff;
    if (!lease->has_value()) continue;
    RunJob(**lease, asked_at);
    request_id = MakeRequestId();
  }
}

absl::StatusOr<std::optional<worker::v1::Lease>> LeaseLoop::AskForLease(
    const std::string& request_id) {
  worker::v1::LeaseJobRequest request;
  request.set_worker(options_.name);
  *request.mutable_capabilities() = capabilities_;
  request.set_request_id(request_id);
  grpc::ClientContext context;
  {
    MutexLock lock(&mutex_);
    if (draining_) return std::nullopt;
    waiting_call_ = &context;
    // Until quern-jobs has answered, an answer at once: it makes this worker ready.
    const absl::Duration wait = last_answer_.ok() ? options_.wait : absl::ZeroDuration();
    request.mutable_wait_duration()->set_seconds(absl::ToInt64Seconds(wait));
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoMilliseconds(wait + options_.session.rpc_timeout));
  }
  worker::v1::LeaseJobResponse response;
  const grpc::Status status = stub_->LeaseJob(&context, request, &response);
  {
    MutexLock lock(&mutex_);
    waiting_call_ = nullptr;
  }
  RETURN_IF_ERROR(FromGrpcStatus(status));
  if (!response.has_lease()) return std::nullopt;
  return std::move(*response.mutable_lease());
}

void LeaseLoop::RunJob(const worker::v1::Lease& lease, absl::Duration granted_at) {
  // "quantizationJobs/{id}": the id is checked before it becomes part of a path.
  const std::string& name = lease.job().name();
  const std::string id = name.substr(name.find('/') + 1);
  const bool safe =
      !id.empty() && id.size() <= 63 &&
      id.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos;
  if (!safe) {
    LOG(ERROR) << "lease of a job with an unusable name job=" << name;
    return;
  }
  const std::string directory = absl::StrCat(options_.work_directory, "/", id);
  const absl::Status made = CreateDirectories(directory);
  if (!made.ok()) LOG(ERROR) << "no work directory job=" << name << ": " << made.message();
  LOG(INFO) << "lease taken job=" << name << " worker=" << options_.name
            << " attempt=" << lease.job().attempt_count();
  JobSession session(options_.session, lease, granted_at, directory, *stub_, metrics_);
  {
    MutexLock lock(&mutex_);
    session_ = &session;
    if (draining_) session.Drain();
  }
  const JobSession::End end = session.Run(runner_);
  {
    MutexLock lock(&mutex_);
    session_ = nullptr;
  }
  if (session.device().has_value()) capabilities_ = *session.device();
  if (end != JobSession::End::kCompleted) {
    LOG(WARNING) << (end == JobSession::End::kLost ? "lease lost job=" : "job given back job=")
                 << name;
    return;
  }
  const absl::Status removed = RemoveTree(directory);
  if (!removed.ok()) LOG(WARNING) << "work directory stays: " << removed.message();
}

void LeaseLoop::Drain() {
  MutexLock lock(&mutex_);
  draining_ = true;
  if (waiting_call_ != nullptr) waiting_call_->TryCancel();
  if (session_ != nullptr) session_->Drain();
  changed_.SignalAll();
}

bool LeaseLoop::draining() {
  MutexLock lock(&mutex_);
  return draining_;
}

absl::Status LeaseLoop::Ready() {
  MutexLock lock(&mutex_);
  if (draining_) return absl::UnavailableError("shutting down");
  return last_answer_;
}

}  // namespace quern
