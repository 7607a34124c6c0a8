#ifndef QUERN_SERVICES_JOBS_JOB_BOARD_H_
#define QUERN_SERVICES_JOBS_JOB_BOARD_H_

#include <absl/base/thread_annotations.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/base/clock.h"
#include "core/base/mutex.h"
#include "core/store/job_store.h"
#include "services/jobs/metrics.h"

namespace quern {

struct JobBoardOptions {
  absl::Duration lease_duration = absl::Seconds(30);
  absl::Duration reap_interval = absl::Seconds(1);
};

// The job store, with everybody told who waits for a change: watchers of a job, workers that wait
// for one. Every change of a job goes through here, and is counted here. A thread of its own
// expires leases. Thread-safe; callbacks run on whichever thread made the change and must not
// block, so they hand on to an executor.
class JobBoard {
 public:
  // All must outlive the board.
  JobBoard(JobStore& store, JobsMetrics& metrics, Clock& clock, const JobBoardOptions& options);
  ~JobBoard();
  JobBoard(const JobBoard&) = delete;
  JobBoard& operator=(const JobBoard&) = delete;

  // For reading; changes go through the functions below.
  JobStore& store() { return store_; }
  absl::Duration lease_duration() const { return options_.lease_duration; }

  absl::StatusOr<JobRecord> Create(const std::string& spec, const std::string& request_id,
                                   const std::string& request_digest);
  absl::StatusOr<std::optional<JobRecord>> FindRequest(const std::string& request_id,
                                                       const std::string& request_digest);
  absl::StatusOr<JobRecord> Cancel(const std::string& id);
  absl::Status Delete(const std::string& id);
  absl::StatusOr<std::optional<LeaseGrant>> Lease(const std::string& worker,
                                                  const std::string& device,
                                                  const std::string& request_id);
  absl::StatusOr<JobStore::Renewal> Renew(const std::string& token, const std::string& progress,
                                          int64_t progress_mark,
                                          const std::vector<std::string>& log_lines);
  absl::Status Release(const std::string& token);
  absl::StatusOr<JobRecord> CheckLease(const std::string& token);
  absl::StatusOr<JobRecord> Complete(const std::string& token, JobState state,
                                     const std::string& artifact,
                                     const std::string& artifact_record,
                                     const std::string& evaluation, const std::string& error);

  // Calls `changed` after every change of job `id` until RemoveWatcher; also once at Stop. A call
  // may still be on its way when RemoveWatcher returns.
  int64_t AddWatcher(const std::string& id, std::function<void()> changed)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void RemoveWatcher(int64_t watcher) ABSL_LOCKS_EXCLUDED(mutex_);

  // Grows whenever a job is queued. Read it before looking for one.
  int64_t queue_version() ABSL_LOCKS_EXCLUDED(mutex_);
  // Calls `wake` once: when a job was queued after `seen_version`, after `timeout`, or at Stop.
  void WaitForQueued(int64_t seen_version, absl::Duration timeout, std::function<void()> wake)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Ends all waiting, now and from now on; the service shuts down.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);
  bool stopping() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Watcher {
    std::string job;
    std::function<void()> changed;
  };
  struct Waiter {
    absl::Time deadline;  // of the system's monotonic clock, as MonotonicNow gives it
    std::function<void()> wake;
  };

  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  void Reap();
  void Notify(const JobRecord& job) ABSL_LOCKS_EXCLUDED(mutex_);
  // Counts a refused write; returns `status`.
  absl::Status CountFenced(absl::Status status);

  JobStore& store_;
  JobsMetrics& metrics_;
  Clock& clock_;
  const JobBoardOptions options_;
  Mutex mutex_;
  CondVar changed_;
  std::map<int64_t, Watcher> watchers_ ABSL_GUARDED_BY(mutex_);
  std::vector<Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  int64_t next_watcher_ ABSL_GUARDED_BY(mutex_) = 1;
  int64_t queue_version_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_JOB_BOARD_H_
