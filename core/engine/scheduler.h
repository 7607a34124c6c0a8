#ifndef QUERN_CORE_ENGINE_SCHEDULER_H_
#define QUERN_CORE_ENGINE_SCHEDULER_H_

#include <absl/time/time.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "core/engine/fair_queue.h"
#include "core/engine/sequence.h"

namespace quern {

struct SchedulerLimits {
  int max_step_tokens = 0;
  int max_sequences = 0;
  int max_logits = 0;  // rows of logits of a step, at least max_sequences
  int page_tokens = 0;
};

// What one sequence does in a step: its next `num_tokens` pending tokens, of which the last
// `num_logits` give logits.
struct ScheduledRun {
  Sequence* sequence = nullptr;
  int num_tokens = 0;
  int num_logits = 0;
  int num_guesses = 0;  // of num_tokens, and as many of num_logits: see Sequence::draft
};

// Decides what the next step of one model computes: continuous batching. Every running sequence in
// decode gets its token. What is left of the step goes to prefills, in pieces: those that run and
// those that wait, which are admitted when pages for all their tokens are free or hold them
// already. Among them higher priority goes first, then the principal that was served least, then
// who came first (see FairQueue). When decode runs out of pages the youngest sequence of the lowest
// priority gives up its own and waits to be computed again. Thread-compatible: the engine thread's
// alone.
class Scheduler {
 public:
  // `pool` outlives this. A sequence of as many tokens as the pool holds always gets through.
  Scheduler(const SchedulerLimits& limits, KvPagePool* pool);

  void Add(std::unique_ptr<Sequence> sequence);

  // The next step; empty only when there is no sequence. Valid until the next call of anything
  // here. `now` is when those admitted are admitted.
  const std::vector<ScheduledRun>& Plan(absl::Time now);

  // Takes out the sequences for which `ended` is true, pages and all, in order of arrival.
  template <typename Ended>
  std::vector<std::unique_ptr<Sequence>> Remove(Ended ended) {
    std::vector<std::unique_ptr<Sequence>> removed;
    auto keep = running_.begin();
    for (auto it = running_.begin(); it != running_.end(); ++it) {
      if (ended(**it)) {
        ChargeOutput(**it);
        FairQueue::Leave(**it);
        removed.push_back(std::move(*it));
      } else {
        // Moving onto itself would free it.
        if (keep != it) *keep = std::move(*it);
        ++keep;
      }
    }
    running_.erase(keep, running_.end());
    for (FairQueue& queue : waiting_) queue.Remove(ended, removed);
    std::sort(removed.begin(), removed.end(),
              [](const auto& a, const auto& b) { return a->order < b->order; });
    return removed;
  }

  template <typename Visit>
  void ForEachRunning(Visit visit) const {
    for (const auto& sequence : running_) visit(*sequence);
  }
  template <typename Visit>
  void ForEachWaiting(Visit visit) const {
    for (const FairQueue& queue : waiting_) queue.ForEach(visit);
  }

  int num_running() const { return static_cast<int>(running_.size()); }
  int num_waiting() const;
  // How many of those that wait, or come, the next step may admit.
  int num_free_places() const {
    return short_of_pages_ && num_waiting() > 0 ? 0 : limits_.max_sequences - num_running();
  }
  // Those in decode, oldest first of each priority.
  template <typename Visit>
  void ForEachDecoding(Visit visit) {
    for (const auto& sequence : running_) {
      if (sequence->num_pending() == 1 && !sequence->wants_prompt_logits()) visit(*sequence);
    }
  }
  int64_t num_preemptions() const { return num_preemptions_; }

 private:
  int PagesFor(int num_tokens) const {
    return (num_tokens + limits_.page_tokens - 1) / limits_.page_tokens;
  }
  FairQueue& QueueOf(const Sequence& sequence) {
    return waiting_[static_cast<int>(sequence.priority)];
  }
  // Charges what the sequence was given since the last time.
  static void ChargeOutput(Sequence& sequence);
  // Raises those that have waited for long to the highest priority.
  void Age(absl::Time now);
  // Gives every running sequence pages for its tokens, preempting while there are too few.
  void GrowRunning();
  void Preempt();
  // Adds the guesses of the decoding sequences, as far as there is room.
  void AddGuesses();
  // Shares what is left of the step among prefills.
  void SchedulePrefills(absl::Time now);
  // Whose turn it is of those that wait; null when none does.
  Sequence* NextWaiting() const;
  // Admits it and schedules its first piece; false when there is no place or too few pages.
  bool Admit(Sequence& sequence, absl::Time now);
  // Schedules as many of the pending tokens as what is left of the step allows.
  void Schedule(Sequence& sequence);

  const SchedulerLimits limits_;
  KvPagePool* const pool_;
  // By priority, then order of arrival: the last is preempted first.
  std::vector<std::unique_ptr<Sequence>> running_;
  std::array<FairQueue, kNumPriorities> waiting_;
  int64_t next_order_ = 0;
  std::vector<ScheduledRun> plan_;
  std::vector<Sequence*> prefills_;  // of one Plan; kept for its memory
  int tokens_left_ = 0;
  int logits_left_ = 0;
  bool short_of_pages_ = false;  // the latest one that waits and was looked at found too few
  int64_t num_preemptions_ = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_SCHEDULER_H_
