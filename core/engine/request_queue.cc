#include "core/engine/request_queue.h"

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>

namespace quern {

absl::Status RequestQueue::Push(ServedModel* model, std::unique_ptr<Sequence> sequence) {
  MutexLock lock(&mutex_);
  if (closed_) {
    return absl::UnavailableError("the engine is draining and takes no new requests");
  }
  if (num_places_taken_ >= capacity_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the engine has ", num_places_taken_, " unfinished requests, its limit; try again later"));
  }
  ++num_places_taken_;
  ++num_unended_;
  inbox_.sequences.emplace_back(model, std::move(sequence));
  inbox_filled_.Signal();
  return absl::OkStatus();
}

void RequestQueue::PushLoaded(ServedModel* model) {
  MutexLock lock(&mutex_);
  inbox_.loaded.push_back(model);
  inbox_filled_.Signal();
}

void RequestQueue::PushUnload(ServedModel* model, Event* done) {
  MutexLock lock(&mutex_);
  inbox_.unloads.emplace_back(model, done);
  inbox_filled_.Signal();
}

bool RequestQueue::HasInboxLocked() const {
  return !inbox_.sequences.empty() || !inbox_.loaded.empty() || !inbox_.unloads.empty() ||
         inbox_.end_all || inbox_.stop;
}

Inbox RequestQueue::Take(bool wait) {
  MutexLock lock(&mutex_);
  while (wait && !HasInboxLocked()) inbox_filled_.Wait(&mutex_);
  return std::exchange(inbox_, Inbox());
}

void RequestQueue::ReleasePlaces(int count) {
  MutexLock lock(&mutex_);
  num_places_taken_ -= count;
}

void RequestQueue::MarkEnded(int count) {
  MutexLock lock(&mutex_);
  num_unended_ -= count;
  if (num_unended_ == 0) became_idle_.SignalAll();
}

void RequestQueue::Close() {
  MutexLock lock(&mutex_);
  closed_ = true;
}

bool RequestQueue::WaitUntilIdle(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&mutex_);
  while (num_unended_ > 0) {
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return false;
    became_idle_.WaitWithTimeout(&mutex_, left);
  }
  return true;
}

void RequestQueue::EndAll() {
  MutexLock lock(&mutex_);
  inbox_.end_all = true;
  inbox_filled_.Signal();
}

void RequestQueue::Stop() {
  MutexLock lock(&mutex_);
  closed_ = true;
  inbox_.stop = true;
  inbox_filled_.Signal();
}

int RequestQueue::num_queued() const {
  MutexLock lock(&mutex_);
  return static_cast<int>(inbox_.sequences.size());
}

int RequestQueue::num_unended() const {
  MutexLock lock(&mutex_);
  return num_unended_;
}

}  // namespace quern
