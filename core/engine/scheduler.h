#ifndef QUERN_CORE_ENGINE_SCHEDULER_H_
#define QUERN_CORE_ENGINE_SCHEDULER_H_

#include <absl/time/time.h>

#include <deque>
#include <memory>
#include <vector>

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
};

// Decides what the next step of one model computes: continuous batching, first come first served.
// Every running sequence in decode gets its token; what is left of the step goes to prefills in
// pieces, and then to waiting sequences, which are admitted when pages for all their tokens are
// free or hold them already. When decode runs out of pages the youngest sequence gives up its own
// and waits to be computed again. Thread-compatible: the engine thread's alone.
class Scheduler {
 public:
  // `pool` outlives this. A sequence of as many tokens as the pool holds always gets through.
  Scheduler(const SchedulerLimits& limits, KvPagePool* pool) : limits_(limits), pool_(pool) {}

  void Add(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }

  // The next step; empty only when there is no sequence. Valid until the next call of anything
  // here. `now` is when those admitted are admitted.
  const std::vector<ScheduledRun>& Plan(absl::Time now);

  // Takes out the sequences for which `ended` is true, pages and all, oldest first.
  template <typename Ended>
  std::vector<std::unique_ptr<Sequence>> Remove(Ended ended) {
    std::vector<std::unique_ptr<Sequence>> removed;
    RemoveFrom(running_, ended, removed);
    RemoveFrom(waiting_, ended, removed);
    return removed;
  }

  template <typename Visit>
  void ForEach(Visit visit) {
    for (const auto& sequence : running_) visit(*sequence);
    for (const auto& sequence : waiting_) visit(*sequence);
  }

  int num_running() const { return static_cast<int>(running_.size()); }
  int num_waiting() const { return static_cast<int>(waiting_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }

 private:
  template <typename Container, typename Ended>
  static void RemoveFrom(Container& from, Ended ended,
                         std::vector<std::unique_ptr<Sequence>>& removed) {
    auto keep = from.begin();
    for (auto it = from.begin(); it != from.end(); ++it) {
      if (ended(**it)) {
        removed.push_back(std::move(*it));
      } else {
        // Moving onto itself would free it.
        if (keep != it) *keep = std::move(*it);
        ++keep;
      }
    }
    from.erase(keep, from.end());
  }

  int PagesFor(int num_tokens) const {
    return (num_tokens + limits_.page_tokens - 1) / limits_.page_tokens;
  }
  // Gives every running sequence pages for its tokens, preempting the youngest while there are too
  // few.
  void GrowRunning();
  void Preempt();
  void AdmitWaiting(absl::Time now);
  // Schedules as many of the pending tokens as what is left of the step allows.
  void Schedule(Sequence& sequence);

  const SchedulerLimits limits_;
  KvPagePool* const pool_;
  // Each in order of arrival, and all that run before all that wait.
  std::deque<std::unique_ptr<Sequence>> running_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<ScheduledRun> plan_;
  int tokens_left_ = 0;
  int logits_left_ = 0;
  int64_t num_preemptions_ = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_SCHEDULER_H_
