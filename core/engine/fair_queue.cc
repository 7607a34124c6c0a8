#include "core/engine/fair_queue.h"

#include <algorithm>

namespace quern {

void FairQueue::Add(std::unique_ptr<Sequence> sequence) {
  if (accounts_.size() >= forget_at_) ForgetIdle();
  PrincipalAccount& account = accounts_[sequence->request.principal];
  if (account.waiting.empty()) account.served = std::max(account.served, Floor());
  ++account.num_sequences;
  sequence->account = &account;
  Insert(std::move(sequence));
}

void FairQueue::PutBack(std::unique_ptr<Sequence> sequence) { Insert(std::move(sequence)); }

void FairQueue::Insert(std::unique_ptr<Sequence> sequence) {
  PrincipalAccount* account = sequence->account;
  std::deque<std::unique_ptr<Sequence>>& waiting = account->waiting;
  if (waiting.empty()) active_.push_back(account);
  const auto place = std::upper_bound(
      waiting.begin(), waiting.end(), sequence->order,
      [](int64_t order, const std::unique_ptr<Sequence>& other) { return order < other->order; });
  waiting.insert(place, std::move(sequence));
  ++size_;
}

int FairQueue::FindNext() const {
  int next = -1;
  for (size_t i = 0; i < active_.size(); ++i) {
    const auto key = [&](size_t index) {
      return std::pair(active_[index]->served, active_[index]->waiting.front()->order);
    };
    if (next < 0 || key(i) < key(next)) next = static_cast<int>(i);
  }
  return next;
}

Sequence* FairQueue::Next() const {
  const int next = FindNext();
  return next < 0 ? nullptr : active_[next]->waiting.front().get();
}

std::unique_ptr<Sequence> FairQueue::TakeNext() {
  const int next = FindNext();
  last_ = active_[next];
  return TakeFront(next);
}

std::unique_ptr<Sequence> FairQueue::TakeOlderThan(absl::Time time) {
  const auto oldest = std::min_element(
      active_.begin(), active_.end(), [](const PrincipalAccount* a, const PrincipalAccount* b) {
        return a->waiting.front()->order < b->waiting.front()->order;
      });
  if (oldest == active_.end() || (*oldest)->waiting.front()->submit_time >= time) return nullptr;
  std::unique_ptr<Sequence> sequence = TakeFront(oldest - active_.begin());
  Leave(*sequence);
  return sequence;
}

std::unique_ptr<Sequence> FairQueue::TakeFront(size_t active) {
  std::deque<std::unique_ptr<Sequence>>& waiting = active_[active]->waiting;
  std::unique_ptr<Sequence> sequence = std::move(waiting.front());
  waiting.pop_front();
  DeactivateIfEmpty(active);
  --size_;
  return sequence;
}

void FairQueue::Leave(Sequence& sequence) {
  --sequence.account->num_sequences;
  sequence.account = nullptr;
}

bool FairQueue::DeactivateIfEmpty(size_t active) {
  if (!active_[active]->waiting.empty()) return false;
  active_[active] = active_.back();
  active_.pop_back();
  return true;
}

int64_t FairQueue::Floor() const {
  // With nobody waiting, as if the last one still did: the counter of who runs goes on growing.
  if (active_.empty()) return last_ == nullptr ? 0 : last_->served;
  const auto least = std::min_element(
      active_.begin(), active_.end(),
      [](const PrincipalAccount* a, const PrincipalAccount* b) { return a->served < b->served; });
  return (*least)->served;
}

void FairQueue::ForgetIdle() {
  const int64_t floor = Floor();
  std::erase_if(accounts_, [&](const auto& entry) {
    const PrincipalAccount& account = entry.second;
    return account.num_sequences == 0 && account.served <= floor && &account != last_;
  });
  forget_at_ = std::max<size_t>(64, 2 * accounts_.size());
}

}  // namespace quern
