#ifndef QUERN_SERVICES_WORKER_JOB_SESSION_H_
#define QUERN_SERVICES_WORKER_JOB_SESSION_H_

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <quern/worker/v1/worker_service.grpc.pb.h>

#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "core/base/mutex.h"
#include "services/worker/metrics.h"
#include "services/worker/quantizer_runner.h"

namespace quern {

struct JobSessionOptions {
  // Renewals that carry progress come at most this often.
  absl::Duration min_renew_interval = absl::Seconds(1);
  // Between tries of a call that failed for now; grows by half each time, with jitter.
  absl::Duration min_backoff = absl::Milliseconds(200);
  absl::Duration max_backoff = absl::Seconds(5);
  absl::Duration rpc_timeout = absl::Seconds(10);
};

// Time since boot, suspended time included: what a lease is measured by.
absl::Duration BootTime();

// One leased job on this worker, from the grant to its end: runs the quantizer, renews the lease,
// publishes the result. Used by one thread; Drain may be called from any.
class JobSession final : public QuantizerObserver {
 public:
  enum class End {
    kCompleted,  // the job has ended, and quern-jobs knows
    kReleased,   // given back to the queue
    kLost,       // the lease was lost; nothing was published
  };

  // `granted_at`: BootTime just before the lease was asked for. The rest must outlive the session.
  JobSession(const JobSessionOptions& options, const worker::v1::Lease& lease,
             absl::Duration granted_at, std::string work_directory,
             worker::v1::WorkerService::StubInterface& stub, WorkerMetrics& metrics);

  // Returns when the job has ended for this worker and nothing of it runs any more.
  End Run(QuantizerRunner& runner) ABSL_LOCKS_EXCLUDED(mutex_);

  // Stops the quantizer and gives the job back; a result that is there already is published.
  void Drain() ABSL_LOCKS_EXCLUDED(mutex_);

  // The device that the quantizer reported, if any.
  std::optional<worker::v1::WorkerCapabilities> device() ABSL_LOCKS_EXCLUDED(mutex_);

  // Of the run's thread.
  void OnDevice(const worker::v1::WorkerCapabilities& device) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnProgress(const quantization::v1::Progress& progress) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnLog(const std::string& line) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnRestart() override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnEnd(QuantizerOutcome outcome) override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Until the quantizer has ended: its outcome, or ABORTED when the lease was lost.
  absl::StatusOr<QuantizerOutcome> Follow(QuantizerRun& run) ABSL_LOCKS_EXCLUDED(mutex_);
  // Renews when it is due. ABORTED when the lease was lost; failures that may pass are OK.
  absl::Status RenewIfDue() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Renew() ABSL_LOCKS_EXCLUDED(mutex_);
  bool RenewIsDue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  End Conclude(QuantizerOutcome outcome);
  End Publish(const QuantizerResult& result);
  End Complete(const worker::v1::CompleteJobRequest& request);
  End Release();
  absl::Status CompleteOnce(const worker::v1::CompleteJobRequest& request);
  End CompleteWithError(const quantization::v1::JobError& error);
  // Waits before the next try, renewing meanwhile. ABORTED when the lease was lost, CANCELLED when
  // the worker drains.
  absl::Status BackOff(absl::Duration& backoff) ABSL_LOCKS_EXCLUDED(mutex_);

  const JobSessionOptions options_;
  const worker::v1::Lease lease_;
  const std::string work_directory_;
  worker::v1::WorkerService::StubInterface& stub_;
  WorkerMetrics& metrics_;

  Mutex mutex_;
  CondVar changed_;
  absl::Duration ttl_ ABSL_GUARDED_BY(mutex_);
  absl::Duration acknowledged_ ABSL_GUARDED_BY(mutex_);  // when the last renewal was sent
  absl::Duration tried_ ABSL_GUARDED_BY(mutex_);         // the same, answered or not
  std::optional<quantization::v1::Progress> progress_ ABSL_GUARDED_BY(mutex_);  // not sent yet
  std::deque<std::string> log_lines_ ABSL_GUARDED_BY(mutex_);                   // not sent yet
  std::optional<QuantizerOutcome> outcome_ ABSL_GUARDED_BY(mutex_);
  std::optional<worker::v1::WorkerCapabilities> device_ ABSL_GUARDED_BY(mutex_);
  bool cancel_requested_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace quern

#endif  // QUERN_SERVICES_WORKER_JOB_SESSION_H_
