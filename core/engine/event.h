#ifndef QUERN_CORE_ENGINE_EVENT_H_
#define QUERN_CORE_ENGINE_EVENT_H_

#include "core/base/mutex.h"

namespace quern {

// Something that happens once. Thread-safe.
class Event {
 public:
  // Under the lock to the end: the waiter may destroy this as soon as Wait returns.
  void Notify() {
    MutexLock lock(&mutex_);
    happened_ = true;
    condition_.SignalAll();
  }
  void Wait() {
    MutexLock lock(&mutex_);
    while (!happened_) condition_.Wait(&mutex_);
  }

 private:
  Mutex mutex_;
  CondVar condition_;
  bool happened_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_EVENT_H_
