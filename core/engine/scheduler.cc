#include "core/engine/scheduler.h"

#include <tuple>

namespace quern {
namespace {

// Whether `a` goes before `b` where both want a piece of a step.
bool IsBefore(const Sequence& a, const Sequence& b) {
  const auto key = [](const Sequence& sequence) {
    return std::tuple(-static_cast<int>(sequence.priority), sequence.account->served,
                      sequence.order);
  };
  return key(a) < key(b);
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits, KvPagePool* pool)
    : limits_(limits), pool_(pool) {
  running_.reserve(limits.max_sequences);
  plan_.reserve(limits.max_sequences);
  prefills_.reserve(limits.max_sequences);
}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  sequence->order = next_order_++;
  FairQueue& queue = QueueOf(*sequence);
  queue.Add(std::move(sequence));
}

int Scheduler::num_waiting() const {
  int num_waiting = 0;
  for (const FairQueue& queue : waiting_) num_waiting += queue.size();
  return num_waiting;
}

const std::vector<ScheduledRun>& Scheduler::Plan(absl::Time now) {
  plan_.clear();
  tokens_left_ = limits_.max_step_tokens;
  logits_left_ = limits_.max_logits;
  for (const auto& sequence : running_) ChargeOutput(*sequence);
  Age(now);
  GrowRunning();
  // A decoding sequence takes one token and one row, and there are no more than max_sequences of
  // them, so each gets its own. Prefills share the rest.
  for (const auto& sequence : running_) {
    if (sequence->num_pending() == 1) Schedule(*sequence);
  }
  AddGuesses();
  SchedulePrefills(now);
  return plan_;
}

void Scheduler::ChargeOutput(Sequence& sequence) {
  const int num_new = sequence.num_output_tokens() - sequence.num_charged_output;
  sequence.account->served += FairQueue::kOutputTokenWeight * num_new;
  sequence.num_charged_output += num_new;
}

void Scheduler::Age(absl::Time now) {
  for (int priority = 0; priority < kNumPriorities - 1; ++priority) {
    while (auto sequence = waiting_[priority].TakeOlderThan(now - kPriorityAgeing)) {
      sequence->priority = Priority::kHigh;
      waiting_.back().Add(std::move(sequence));
    }
  }
}

void Scheduler::GrowRunning() {
  // From the top, so that the oldest of the highest priority is never preempted and always gets on.
  for (size_t i = 0; i < running_.size(); ++i) {
    while (i < running_.size() && !running_[i]->pages.GrowTo(PagesFor(running_[i]->num_tokens()))) {
      Preempt();
    }
  }
}

void Scheduler::Preempt() {
  std::unique_ptr<Sequence> last = std::move(running_.back());
  running_.pop_back();
  last->num_lost = last->num_computed;
  last->ReleasePages();
  FairQueue& queue = QueueOf(*last);
  queue.PutBack(std::move(last));
  ++num_preemptions_;
}

void Scheduler::AddGuesses() {
  for (ScheduledRun& run : plan_) {
    Sequence& sequence = *run.sequence;
    int guesses = std::min({sequence.num_guesses(), tokens_left_, logits_left_});
    // They take no pages from anybody.
    if (guesses > 0 && !sequence.pages.GrowTo(PagesFor(sequence.num_tokens() + guesses))) {
      guesses =
          std::min(guesses, sequence.pages.size() * limits_.page_tokens - sequence.num_tokens());
    }
    if (guesses <= 0) continue;
    run.num_guesses = guesses;
    run.num_tokens += guesses;
    run.num_logits += guesses;
    tokens_left_ -= guesses;
    logits_left_ -= guesses;
  }
}

void Scheduler::SchedulePrefills(absl::Time now) {
  prefills_.clear();
  for (const auto& sequence : running_) {
    if (sequence->num_pending() > 1) prefills_.push_back(sequence.get());
  }
  std::sort(prefills_.begin(), prefills_.end(),
            [](const Sequence* a, const Sequence* b) { return IsBefore(*a, *b); });
  auto prefill = prefills_.begin();
  bool blocked = false;
  while (tokens_left_ > 0) {
    // Anew each time: what was scheduled was charged.
    Sequence* waiting = blocked || logits_left_ == 0 ? nullptr : NextWaiting();
    if (prefill != prefills_.end() && (waiting == nullptr || IsBefore(**prefill, *waiting))) {
      Schedule(**prefill++);
    } else if (waiting != nullptr) {
      // Nobody overtakes one that finds no pages: it would wait for ever.
      blocked = !Admit(*waiting, now);
    } else {
      break;
    }
  }
}

Sequence* Scheduler::NextWaiting() const {
  for (int priority = kNumPriorities - 1; priority >= 0; --priority) {
    if (Sequence* next = waiting_[priority].Next(); next != nullptr) return next;
  }
  return nullptr;
}

bool Scheduler::Admit(Sequence& sequence, absl::Time now) {
  if (num_running() >= limits_.max_sequences) return false;
  sequence.num_computed = sequence.pages.TakeCached(sequence.tokens);
  // A page for each one that runs stays free, or the new one would soon be preempted.
  const int missing = PagesFor(sequence.num_tokens()) - sequence.pages.size();
  if ((!running_.empty() && missing + num_running() > pool_->num_free()) ||
      !sequence.pages.GrowTo(PagesFor(sequence.num_tokens()))) {
    sequence.pages.Release();
    sequence.num_computed = 0;
    short_of_pages_ = true;
    return false;
  }
  short_of_pages_ = false;
  std::unique_ptr<Sequence> taken = QueueOf(sequence).TakeNext();
  if (sequence.admit_time == absl::InfiniteFuture()) {
    sequence.admit_time = now;
    sequence.num_cached = sequence.num_computed;
    sequence.num_charged_prompt = sequence.num_cached;
  } else {
    sequence.recomputed_tokens += std::max(0, sequence.num_lost - sequence.num_computed);
  }
  const auto place = std::find_if(running_.begin(), running_.end(), [&](const auto& other) {
    return std::pair(-static_cast<int>(sequence.priority), sequence.order) <
           std::pair(-static_cast<int>(other->priority), other->order);
  });
  running_.insert(place, std::move(taken));
  Schedule(sequence);
  return true;
}

void Scheduler::Schedule(Sequence& sequence) {
  int num_tokens = std::min(sequence.num_pending(), tokens_left_);
  int num_logits = 0;
  if (sequence.wants_prompt_logits()) {
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
  // At once, so that who is next in this very step takes it into account; what is done again after
  // a preemption is free.
  const int prompt_end = std::min(sequence.num_computed + num_tokens, sequence.num_prompt_tokens);
  if (prompt_end > sequence.num_charged_prompt) {
    sequence.account->served +=
        FairQueue::kPromptTokenWeight * (prompt_end - sequence.num_charged_prompt);
    sequence.num_charged_prompt = prompt_end;
  }
  plan_.push_back({.sequence = &sequence, .num_tokens = num_tokens, .num_logits = num_logits});
}

}  // namespace quern
