#include "services/jobs/watch_reactor.h"

#include <absl/base/thread_annotations.h>
#include <absl/strings/str_cat.h>

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "services/common/status.h"
#include "services/jobs/job_messages.h"
#include "services/jobs/request_fields.h"

namespace quern {
namespace {

using quantization::v1::JobEvent;

constexpr int kBatchEvents = 64;

class WatchReactor final : public grpc::ServerWriteReactor<JobEvent> {
 public:
  // The RPC holds the reactor until OnDone; steps under way hold it too.
  static WatchReactor* Start(JobBoard& board, Executor& executor, const std::string& name,
                             int64_t after_sequence) {
    auto reactor = std::make_shared<WatchReactor>(board, executor, name, after_sequence);
    WatchReactor* raw = reactor.get();
    MutexLock lock(&raw->mutex_);
    raw->self_ = std::move(reactor);
    raw->ScheduleStep();
    return raw;
  }

  WatchReactor(JobBoard& board, Executor& executor, std::string name, int64_t after_sequence)
      : board_(board),
        executor_(executor),
        name_(std::move(name)),
        after_sequence_(after_sequence) {}

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) cancelled_ = true;
    ScheduleStep();
  }

  void OnCancel() override {
    MutexLock lock(&mutex_);
    cancelled_ = true;
    ScheduleStep();
  }

  void OnDone() override {
    int64_t watcher = 0;
    std::shared_ptr<WatchReactor> self;
    {
      MutexLock lock(&mutex_);
      watcher = watcher_;
      self = std::move(self_);
    }
    if (watcher != 0) board_.RemoveWatcher(watcher);
  }

 private:
  // One step at a time, on the executor; what happens meanwhile asks for one more.
  void ScheduleStep() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finished_) return;
    if (step_scheduled_) {
      step_again_ = true;
      return;
    }
    step_scheduled_ = true;
    executor_.Post([self = self_] { self->Step(); });
  }

  void Step() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::Status status = Fill();
    MutexLock lock(&mutex_);
    step_scheduled_ = false;
    if (finished_) return;
    if (writing_) {
      // OnWriteDone comes and goes on.
    } else if (cancelled_) {
      End(absl::CancelledError("the watch was cancelled"));
    } else if (!status.ok()) {
      End(std::move(status));
    } else if (!pending_.empty()) {
      current_ = std::move(pending_.front());
      pending_.pop_front();
      writing_ = true;
      StartWrite(&current_);
    } else if (ended_) {
      End(absl::OkStatus());
    } else if (board_.stopping()) {
      End(absl::UnavailableError(
          "the service is shutting down; watch again after the last sequence number"));
    }
    if (step_again_) {
      step_again_ = false;
      ScheduleStep();
    }
  }

  void End(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    finished_ = true;
    Finish(ToGrpcStatus(status));
  }

  // Reads the next events when none is pending. Only steps touch what it uses, and they come one
  // after the other; the lock is for the eyes of OnDone.
  absl::Status Fill() ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      MutexLock lock(&mutex_);
      if (finished_ || cancelled_ || writing_ || ended_ || !pending_.empty()) {
        return absl::OkStatus();
      }
    }
    if (id_.empty()) RETURN_IF_ERROR(Begin());
    ASSIGN_OR_RETURN(const JobRecord job, board_.store().Get(id_));
    ASSIGN_OR_RETURN(const std::vector<JobEventRecord> events,
                     board_.store().Events(id_, after_sequence_, kBatchEvents));
    MutexLock lock(&mutex_);
    for (size_t i = 0; i < events.size(); ++i) {
      const bool overtaken = following_ && events[i].kind == JobEventRecord::Kind::kProgress &&
                             i + 1 < events.size() &&
                             events[i + 1].kind == JobEventRecord::Kind::kProgress;
      after_sequence_ = events[i].sequence;
      if (overtaken) continue;
      ASSIGN_OR_RETURN(JobEvent event, EventFromRecord(job, events[i]));
      pending_.push_back(std::move(event));
      if (events[i].kind == JobEventRecord::Kind::kState) {
        ASSIGN_OR_RETURN(const JobState state, StateOfEvent(events[i]));
        ended_ = IsTerminal(state);
      }
    }
    if (events.empty()) {
      following_ = true;
      // Everything was sent before, in an earlier watch.
      ended_ = IsTerminal(job.state);
    }
    return absl::OkStatus();
  }

  // Checks the request, registers for changes, and sends the job as it was at `after_sequence_`.
  absl::Status Begin() ABSL_LOCKS_EXCLUDED(mutex_) {
    ASSIGN_OR_RETURN(const std::string id, ParseJobName("name", name_));
    if (after_sequence_ < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("after_sequence: found ", after_sequence_, ", wanted 0 or more"));
    }
    ASSIGN_OR_RETURN(const JobRecord job, board_.store().Get(id));
    if (after_sequence_ > job.last_sequence) {
      return absl::InvalidArgumentError(absl::StrCat("after_sequence: found ", after_sequence_,
                                                     ", the job's last event is ",
                                                     job.last_sequence));
    }
    id_ = id;
    // Before the first look at the events, so that none is missed.
    const int64_t watcher = board_.AddWatcher(id, [weak = WeakSelf()] {
      if (std::shared_ptr<WatchReactor> self = weak.lock()) self->OnChange();
    });
    JobEvent first;
    if (after_sequence_ > 0) {
      ASSIGN_OR_RETURN(first, EventAt(job));
    }
    MutexLock lock(&mutex_);
    watcher_ = watcher;
    // The RPC may have ended meanwhile, before OnDone could know of the watcher.
    if (self_ == nullptr) board_.RemoveWatcher(watcher);
    if (after_sequence_ > 0) pending_.push_back(std::move(first));
    return absl::OkStatus();
  }

  // The job in the state that event `after_sequence_` left it in.
  absl::StatusOr<JobEvent> EventAt(const JobRecord& job) {
    JobEvent first;
    JobState state = JobState::kQueued;
    int64_t sequence = 0;
    while (sequence < after_sequence_) {
      ASSIGN_OR_RETURN(const std::vector<JobEventRecord> events,
                       board_.store().Events(id_, sequence, kBatchEvents));
      for (const JobEventRecord& event : events) {
        sequence = event.sequence;
        if (sequence > after_sequence_) break;
        *first.mutable_time() = ToTimestamp(event.time);
        if (event.kind != JobEventRecord::Kind::kState) continue;
        ASSIGN_OR_RETURN(state, StateOfEvent(event));
      }
      if (events.empty()) break;
    }
    first.set_sequence(after_sequence_);
    ASSIGN_OR_RETURN(*first.mutable_job(), JobInState(job, state));
    return first;
  }

  void OnChange() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    if (self_ != nullptr) ScheduleStep();
  }

  std::weak_ptr<WatchReactor> WeakSelf() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    return self_;
  }

  JobBoard& board_;
  Executor& executor_;
  const std::string name_;
  // Used by steps only.
  std::string id_;
  int64_t after_sequence_;
  bool following_ = false;  // all that was stored has been sent

  Mutex mutex_;
  std::shared_ptr<WatchReactor> self_ ABSL_GUARDED_BY(mutex_);
  int64_t watcher_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<JobEvent> pending_ ABSL_GUARDED_BY(mutex_);
  JobEvent current_ ABSL_GUARDED_BY(mutex_);
  bool step_scheduled_ ABSL_GUARDED_BY(mutex_) = false;
  bool step_again_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;  // pending_ holds the last events
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

grpc::ServerWriteReactor<JobEvent>* StartWatch(
    JobBoard& board, Executor& executor,
    const quantization::v1::WatchQuantizationJobRequest& request) {
  return WatchReactor::Start(board, executor, request.name(), request.after_sequence());
}

}  // namespace quern
