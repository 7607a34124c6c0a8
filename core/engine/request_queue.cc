#include "core/engine/request_queue.h"

#include <absl/time/clock.h>

#include <string>

#include "core/base/status_macros.h"

namespace quern {

absl::Status RequestQueue::CheckLocked(const ServedModel* model, absl::string_view principal,
                                       Priority priority, int64_t tokens) const {
  if (closed_) {
    return absl::UnavailableError("the engine is draining and takes no new requests");
  }
  const auto found = loads_.find(model);
  if (found == loads_.end()) return admission_.Check(principal, Priority::kLow, tokens, {});
  EngineLoad load = found->second;
  for (const auto& [its_model, sequence] : inbox_.sequences) {
    if (its_model == model) load.AddWaiting(sequence->priority, sequence->num_prompt_tokens);
  }
  return admission_.Check(principal, priority, tokens, load);
}

absl::Status RequestQueue::Check(const ServedModel* model, absl::string_view principal,
                                 Priority priority, int64_t tokens) const {
  MutexLock lock(&mutex_);
  return CheckLocked(model, principal, priority, tokens);
}

absl::Status RequestQueue::Push(ServedModel* model, std::unique_ptr<Sequence> sequence) {
  const std::string& principal = sequence->request.principal;
  MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckLocked(model, principal, sequence->priority, sequence->queue_tokens));
  admission_.Enter(principal, sequence->queue_tokens);
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

void RequestQueue::SetLoad(const ServedModel* model, const EngineLoad& load) {
  MutexLock lock(&mutex_);
  loads_[model] = load;
}

void RequestQueue::ForgetLoad(const ServedModel* model) {
  MutexLock lock(&mutex_);
  loads_.erase(model);
}

void RequestQueue::ReleasePlaces(absl::Span<const EndedSequence> ended) {
  MutexLock lock(&mutex_);
  for (const EndedSequence& one : ended) {
    admission_.Leave(one.sequence->request.principal, one.sequence->queue_tokens,
                     one.sequence->work_tokens);
  }
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

int64_t RequestQueue::num_tokens() const {
  MutexLock lock(&mutex_);
  return admission_.num_tokens();
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
