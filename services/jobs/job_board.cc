#include "services/jobs/job_board.h"

#include <absl/time/clock.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/base/log.h"
#include "core/base/status_macros.h"

namespace quern {
namespace {

// Deadlines of waiting must not follow the wall clock when somebody sets it.
absl::Time MonotonicNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace

JobBoard::JobBoard(JobStore& store, JobsMetrics& metrics, Clock& clock,
                   const JobBoardOptions& options)
    : store_(store), metrics_(metrics), clock_(clock), options_(options) {
  thread_ = std::thread([this] { Run(); });
}

JobBoard::~JobBoard() {
  Stop();
  thread_.join();
}

absl::StatusOr<JobRecord> JobBoard::Create(const std::string& spec, const std::string& request_id,
                                           const std::string& request_digest) {
  StoreTimer timer(metrics_, "create", "sqlite");
  ASSIGN_OR_RETURN(JobRecord job, store_.Create(spec, request_id, request_digest));
  LOG(INFO) << "job queued job=" << job.id;
  Notify(job);
  return job;
}

absl::StatusOr<std::optional<JobRecord>> JobBoard::FindRequest(const std::string& request_id,
                                                               const std::string& request_digest) {
  ASSIGN_OR_RETURN(std::optional<JobRecord> job, store_.FindRequest(request_id, request_digest));
  if (job.has_value()) metrics_.dedupe_hits_total.Increment();
  return job;
}

absl::StatusOr<JobRecord> JobBoard::Cancel(const std::string& id) {
  ASSIGN_OR_RETURN(const JobRecord before, store_.Get(id));
  StoreTimer timer(metrics_, "cancel", "sqlite");
  ASSIGN_OR_RETURN(JobRecord job, store_.Cancel(id));
  if (job.state != before.state) {
    LOG(INFO) << "job cancel asked job=" << id;
    if (job.state == JobState::kCancelled) metrics_.CountFinished(job);
    Notify(job);
  }
  return job;
}

absl::Status JobBoard::Delete(const std::string& id) {
  StoreTimer timer(metrics_, "delete", "sqlite");
  RETURN_IF_ERROR(store_.Delete(id));
  LOG(INFO) << "job deleted job=" << id;
  JobRecord job;
  job.id = id;
  job.state = JobState::kCancelled;
  Notify(job);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<LeaseGrant>> JobBoard::Lease(const std::string& worker,
                                                          const std::string& device,
                                                          const std::string& request_id) {
  metrics_.MarkWorker(worker, device, clock_.Now());
  StoreTimer timer(metrics_, "lease", "sqlite");
  ASSIGN_OR_RETURN(std::optional<LeaseGrant> grant,
                   store_.Lease(worker, request_id, options_.lease_duration));
  if (grant.has_value()) {
    const JobRecord& job = grant->job;
    LOG(INFO) << "lease granted job=" << job.id << " worker=" << worker
              << " attempt=" << job.attempt_count << " fence=" << job.fence;
    if (job.attempt_count == 1) {
      metrics_.job_queue_seconds.Observe(absl::ToDoubleSeconds(job.start_time - job.create_time));
    }
    Notify(job);
  }
  return grant;
}

absl::Status JobBoard::CountFenced(absl::Status status) {
  if (absl::IsAborted(status)) metrics_.fenced_writes_total.Increment();
  return status;
}

absl::StatusOr<JobStore::Renewal> JobBoard::Renew(const std::string& token,
                                                  const std::string& progress,
                                                  int64_t progress_mark,
                                                  const std::vector<std::string>& log_lines) {
  StoreTimer timer(metrics_, "renew", "sqlite");
  absl::StatusOr<JobStore::Renewal> renewal =
      store_.Renew(token, progress, progress_mark, log_lines, options_.lease_duration);
  if (!renewal.ok()) return CountFenced(renewal.status());
  absl::StatusOr<JobRecord> job = store_.CheckLease(token);
  // Ended between the two calls: that change notifies by itself.
  if (job.ok()) Notify(*job);
  return renewal;
}

absl::Status JobBoard::Release(const std::string& token) {
  StoreTimer timer(metrics_, "release", "sqlite");
  absl::StatusOr<JobRecord> job = store_.Release(token);
  if (!job.ok()) return CountFenced(job.status());
  LOG(INFO) << "lease released job=" << job->id << " worker=" << job->lease_owner;
  if (IsTerminal(job->state)) metrics_.CountFinished(*job);
  Notify(*job);
  return absl::OkStatus();
}

absl::StatusOr<JobRecord> JobBoard::CheckLease(const std::string& token) {
  absl::StatusOr<JobRecord> job = store_.CheckLease(token);
  if (!job.ok()) return CountFenced(job.status());
  return job;
}

absl::StatusOr<JobRecord> JobBoard::Complete(const std::string& token, JobState state,
                                             const std::string& artifact,
                                             const std::string& artifact_record,
                                             const std::string& evaluation,
                                             const std::string& error) {
  // A repeated call is answered too, but its end was counted.
  const bool first = store_.CheckLease(token).ok();
  StoreTimer timer(metrics_, "complete", "sqlite");
  absl::StatusOr<JobRecord> job =
      store_.Complete(token, state, artifact, artifact_record, evaluation, error);
  if (!job.ok()) return CountFenced(job.status());
  if (first) {
    LOG(INFO) << "job ended job=" << job->id << " state=" << static_cast<int>(job->state)
              << " artifact=" << job->artifact;
    metrics_.CountFinished(*job);
    Notify(*job);
  }
  return job;
}

int64_t JobBoard::AddWatcher(const std::string& id, std::function<void()> changed) {
  MutexLock lock(&mutex_);
  const int64_t watcher = next_watcher_++;
  watchers_[watcher] = {id, std::move(changed)};
  return watcher;
}

void JobBoard::RemoveWatcher(int64_t watcher) {
  MutexLock lock(&mutex_);
  watchers_.erase(watcher);
}

int64_t JobBoard::queue_version() {
  MutexLock lock(&mutex_);
  return queue_version_;
}

void JobBoard::WaitForQueued(int64_t seen_version, absl::Duration timeout,
                             std::function<void()> wake) {
  {
    MutexLock lock(&mutex_);
    if (!stopping_ && queue_version_ == seen_version && timeout > absl::ZeroDuration()) {
      waiters_.push_back({MonotonicNow() + timeout, std::move(wake)});
      changed_.SignalAll();
      return;
    }
  }
  wake();
}

void JobBoard::Notify(const JobRecord& job) {
  std::vector<std::function<void()>> calls;
  {
    MutexLock lock(&mutex_);
    for (const auto& [key, watcher] : watchers_) {
      if (watcher.job == job.id) calls.push_back(watcher.changed);
    }
    if (job.state == JobState::kQueued) {
      ++queue_version_;
      for (Waiter& waiter : waiters_) calls.push_back(std::move(waiter.wake));
      waiters_.clear();
    }
  }
  for (const std::function<void()>& call : calls) call();
}

void JobBoard::Stop() {
  std::vector<std::function<void()>> calls;
  {
    MutexLock lock(&mutex_);
    if (stopping_) return;
    stopping_ = true;
    for (const auto& [key, watcher] : watchers_) calls.push_back(watcher.changed);
    for (Waiter& waiter : waiters_) calls.push_back(std::move(waiter.wake));
    waiters_.clear();
  }
  changed_.SignalAll();
  for (const std::function<void()>& call : calls) call();
}

bool JobBoard::stopping() {
  MutexLock lock(&mutex_);
  return stopping_;
}

void JobBoard::Run() {
  absl::Time next_reap = MonotonicNow();
  while (true) {
    std::vector<std::function<void()>> calls;
    {
      MutexLock lock(&mutex_);
      if (stopping_) return;
      absl::Time wake_time = next_reap;
      for (const Waiter& waiter : waiters_) wake_time = std::min(wake_time, waiter.deadline);
      const absl::Duration left = wake_time - MonotonicNow();
      if (left > absl::ZeroDuration()) changed_.WaitWithTimeout(&mutex_, left);
      if (stopping_) return;
      const absl::Time now = MonotonicNow();
      std::erase_if(waiters_, [&](Waiter& waiter) {
        if (waiter.deadline > now) return false;
        calls.push_back(std::move(waiter.wake));
        return true;
      });
    }
    for (const std::function<void()>& call : calls) call();
    if (MonotonicNow() >= next_reap) {
      Reap();
      next_reap = MonotonicNow() + options_.reap_interval;
    }
  }
}

void JobBoard::Reap() {
  absl::StatusOr<std::vector<JobRecord>> expired = store_.ExpireLeases();
  if (!expired.ok()) {
    LOG(ERROR) << "leases not expired: " << expired.status().message();
    return;
  }
  for (const JobRecord& job : *expired) {
    LOG(WARNING) << "lease expired job=" << job.id << " worker=" << job.lease_owner
                 << " attempt=" << job.attempt_count << " state=" << static_cast<int>(job.state);
    metrics_.leases_expired_total.Increment();
    if (job.state == JobState::kQueued) metrics_.job_retries_total.Increment();
    if (IsTerminal(job.state)) metrics_.CountFinished(job);
    Notify(job);
  }
  metrics_.ForgetWorkers(clock_.Now());
}

}  // namespace quern
