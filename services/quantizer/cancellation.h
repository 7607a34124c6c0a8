#ifndef QUERN_SERVICES_QUANTIZER_CANCELLATION_H_
#define QUERN_SERVICES_QUANTIZER_CANCELLATION_H_

#include <absl/status/status.h>

#include <atomic>
#include <functional>

#include "core/base/mutex.h"

namespace quern {

// Whether the run is to stop. Training asks between steps; what blocks elsewhere (an engine that
// samples) registers how to interrupt it. Thread-safe.
class Cancellation {
 public:
  // Sets the flag and calls the registered function, if any. May block until that has returned.
  void Request() ABSL_LOCKS_EXCLUDED(mutex_);
  bool requested() const { return requested_; }
  // CANCELLED once requested.
  absl::Status Check() const;

  // While it lives, Request calls `interrupt`; at once when it was requested before. One at a time.
  class Scope {
   public:
    Scope(Cancellation& cancellation, std::function<void()> interrupt);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Cancellation& cancellation_;
  };

 private:
  std::atomic<bool> requested_ = false;
  Mutex mutex_;
  std::function<void()> interrupt_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_CANCELLATION_H_
