#ifndef QUERN_CORE_ENGINE_FAIR_QUEUE_H_
#define QUERN_CORE_ENGINE_FAIR_QUEUE_H_

#include <absl/time/time.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/engine/sequence.h"

namespace quern {

// What one principal was served at one priority, and what it has waiting there.
struct PrincipalAccount {
  int64_t served = 0;                             // weighted tokens; the virtual token counter
  int num_sequences = 0;                          // that wait, or run since they were taken
  std::deque<std::unique_ptr<Sequence>> waiting;  // by Sequence::order
};

// The sequences of one priority that wait, and whose turn it is. Principals get equal shares of the
// tokens, each its own requests first come first served: the next is of the principal that was
// served least. One that comes back after a pause is lifted to the least of those that wait, so
// that nobody saves up. This is the virtual token counter of Sheng et al., "Fairness in Serving
// Large Language Models", OSDI 2024, algorithm 2; tokens of the prompt found in the prefix cache
// are free. With one principal it is first come first served.
//
// Taking the next one looks at each principal that has something waiting. Nothing here allocates
// but Add and PutBack. Thread-compatible: the engine thread's alone.
class FairQueue {
 public:
  // As in the paper: a token of the answer takes a share of a step of its own.
  static constexpr int64_t kPromptTokenWeight = 1;
  static constexpr int64_t kOutputTokenWeight = 2;

  FairQueue() = default;
  FairQueue(const FairQueue&) = delete;
  FairQueue& operator=(const FairQueue&) = delete;

  // A sequence that comes to this priority, from outside or from a lower one.
  void Add(std::unique_ptr<Sequence> sequence);
  // One that was taken and must wait again.
  void PutBack(std::unique_ptr<Sequence> sequence);
  // Whose turn it is; null when none waits.
  Sequence* Next() const;
  // Takes out what Next returned.
  std::unique_ptr<Sequence> TakeNext();
  // Takes out the one that came first, with its account, when it came before `time`; else null.
  std::unique_ptr<Sequence> TakeOlderThan(absl::Time time);
  // A sequence that was taken has ended.
  static void Leave(Sequence& sequence);

  // Takes out those that wait and for which `ended` is true.
  template <typename Ended>
  void Remove(Ended ended, std::vector<std::unique_ptr<Sequence>>& removed) {
    for (size_t i = 0; i < active_.size();) {
      std::deque<std::unique_ptr<Sequence>>& waiting = active_[i]->waiting;
      auto keep = waiting.begin();
      for (auto it = waiting.begin(); it != waiting.end(); ++it) {
        if (ended(**it)) {
          Leave(**it);
          removed.push_back(std::move(*it));
          --size_;
        } else {
          // Moving onto itself would free it.
          if (keep != it) *keep = std::move(*it);
          ++keep;
        }
      }
      waiting.erase(keep, waiting.end());
      if (!DeactivateIfEmpty(i)) ++i;
    }
  }

  template <typename Visit>
  void ForEach(Visit visit) const {
    for (const PrincipalAccount* account : active_) {
      for (const auto& sequence : account->waiting) visit(*sequence);
    }
  }

  int size() const { return size_; }
  // Principals that are remembered.
  size_t num_accounts() const { return accounts_.size(); }

 private:
  // Index into active_, or -1.
  int FindNext() const;
  std::unique_ptr<Sequence> TakeFront(size_t active);
  void Insert(std::unique_ptr<Sequence> sequence);
  bool DeactivateIfEmpty(size_t active);
  // What a principal is lifted to that begins to wait.
  int64_t Floor() const;
  // Forgets those that would be lifted anyway.
  void ForgetIdle();

  std::map<std::string, PrincipalAccount, std::less<>> accounts_;
  std::vector<PrincipalAccount*> active_;   // those with something waiting, in no order
  const PrincipalAccount* last_ = nullptr;  // of the latest one taken
  size_t forget_at_ = 64;                   // so many accounts
  int size_ = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_FAIR_QUEUE_H_
