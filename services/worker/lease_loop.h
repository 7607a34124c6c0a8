#ifndef QUERN_SERVICES_WORKER_LEASE_LOOP_H_
#define QUERN_SERVICES_WORKER_LEASE_LOOP_H_

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <grpcpp/grpcpp.h>
#include <quern/worker/v1/worker_service.grpc.pb.h>

#include <memory>
#include <optional>
#include <string>

#include "core/base/file.h"
#include "core/base/mutex.h"
#include "services/worker/job_session.h"
#include "services/worker/metrics.h"
#include "services/worker/quantizer_runner.h"

namespace quern {

struct LeaseLoopOptions {
  std::string name;
  std::string work_directory;
  // How long quern-jobs may hold a call that finds no job.
  absl::Duration wait = absl::Seconds(20);
  JobSessionOptions session;
};

// What a worker does: takes a job, sees it to its end, takes the next, until it drains. Each job
// has a directory of its own below the work directory, so that a job that comes back to this
// machine goes on where it stopped; the directory goes when the job has ended.
class LeaseLoop {
 public:
  // The others must outlive the loop. FAILED_PRECONDITION when another worker has the directory.
  static absl::StatusOr<std::unique_ptr<LeaseLoop>> Create(
      const LeaseLoopOptions& options, const std::shared_ptr<grpc::ChannelInterface>& channel,
      QuantizerRunner& runner, WorkerMetrics& metrics);

  // Returns after Drain, when the job at hand was given back or published.
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);

  // Ends Run soon. From any thread, more than once.
  void Drain() ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether quern-jobs answered the last time.
  absl::Status Ready() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  LeaseLoop(const LeaseLoopOptions& options,
            std::unique_ptr<worker::v1::WorkerService::StubInterface> stub, FileDescriptor lock,
            QuantizerRunner& runner, WorkerMetrics& metrics);

  // A lease, or nothing when there was no job in time.
  absl::StatusOr<std::optional<worker::v1::Lease>> AskForLease(const std::string& request_id)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void RunJob(const worker::v1::Lease& lease, absl::Duration granted_at)
      ABSL_LOCKS_EXCLUDED(mutex_);
  bool draining() ABSL_LOCKS_EXCLUDED(mutex_);

  const LeaseLoopOptions options_;
  const std::unique_ptr<worker::v1::WorkerService::StubInterface> stub_;
  const FileDescriptor lock_;  // flock of the work directory
  QuantizerRunner& runner_;
  WorkerMetrics& metrics_;
  worker::v1::WorkerCapabilities capabilities_;

  Mutex mutex_;
  CondVar changed_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status last_answer_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* waiting_call_ ABSL_GUARDED_BY(mutex_) = nullptr;
  JobSession* session_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace quern

#endif  // QUERN_SERVICES_WORKER_LEASE_LOOP_H_
