#include "core/engine/scheduler.h"

#include <algorithm>
#include <utility>

namespace quern {

const std::vector<ScheduledRun>& Scheduler::Plan(absl::Time now) {
  plan_.clear();
  tokens_left_ = limits_.max_step_tokens;
  logits_left_ = limits_.max_logits;
  GrowRunning();
  // A decoding sequence takes one token and one row, and there are no more than max_sequences of
  // them, so each gets its own. Prefills share the rest.
  for (const auto& sequence : running_) {
    if (sequence->num_pending() == 1) Schedule(*sequence);
  }
  for (const auto& sequence : running_) {
    if (sequence->num_pending() > 1) Schedule(*sequence);
  }
  AdmitWaiting(now);
  return plan_;
}

void Scheduler::GrowRunning() {
  // Oldest first, so that the oldest is never preempted and always gets on.
  for (size_t i = 0; i < running_.size(); ++i) {
    while (i < running_.size() && !running_[i]->pages.GrowTo(PagesFor(running_[i]->num_tokens()))) {
      Preempt();
    }
  }
}

void Scheduler::Preempt() {
  std::unique_ptr<Sequence> youngest = std::move(running_.back());
  running_.pop_back();
  youngest->pages.Release();
  youngest->num_computed = 0;
  waiting_.push_front(std::move(youngest));
  ++num_preemptions_;
}

void Scheduler::AdmitWaiting(absl::Time now) {
  while (!waiting_.empty() && num_running() < limits_.max_sequences && tokens_left_ > 0 &&
         logits_left_ > 0) {
    Sequence& sequence = *waiting_.front();
    const bool first_time = sequence.admit_time == absl::InfiniteFuture();
    sequence.num_computed = sequence.pages.TakeCached(sequence.tokens);
    // A page for each one that runs stays free, or the new one would soon be preempted.
    const int missing = PagesFor(sequence.num_tokens()) - sequence.pages.size();
    if ((!running_.empty() && missing + num_running() > pool_->num_free()) ||
        !sequence.pages.GrowTo(PagesFor(sequence.num_tokens()))) {
      sequence.pages.Release();
      sequence.num_computed = 0;
      break;
    }
    if (first_time) {
      sequence.admit_time = now;
      sequence.num_cached = sequence.num_computed;
    }
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    Schedule(sequence);
  }
}

void Scheduler::Schedule(Sequence& sequence) {
  int num_tokens = std::min(sequence.num_pending(), tokens_left_);
  int num_logits = 0;
  if (sequence.scoring()) {
    // Rows that were delivered before a preemption are not wanted again.
    const int delivered = std::max(0, sequence.num_scored - sequence.num_computed);
    num_tokens = std::min(num_tokens, delivered + logits_left_);
    num_logits = std::max(0, num_tokens - delivered);
  } else if (num_tokens == sequence.num_pending()) {
    if (logits_left_ == 0) --num_tokens;
    num_logits = logits_left_ > 0 ? 1 : 0;
  }
  if (num_tokens == 0) return;
  tokens_left_ -= num_tokens;
  logits_left_ -= num_logits;
  plan_.push_back({.sequence = &sequence, .num_tokens = num_tokens, .num_logits = num_logits});
}

}  // namespace quern
