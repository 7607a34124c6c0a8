#ifndef QUERN_TESTS_SUPPORT_FAKE_CLOCK_H_
#define QUERN_TESTS_SUPPORT_FAKE_CLOCK_H_

#include <absl/time/time.h>

#include "core/base/clock.h"
#include "core/base/mutex.h"

namespace quern {

// A clock that stands still until told otherwise. Thread-safe.
class FakeClock final : public Clock {
 public:
  absl::Time Now() override {
    MutexLock lock(&mutex_);
    return now_;
  }
  void Advance(absl::Duration duration) {
    MutexLock lock(&mutex_);
    now_ += duration;
  }

 private:
  Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_) = absl::FromUnixSeconds(1'700'000'000);
};

}  // namespace quern

#endif  // QUERN_TESTS_SUPPORT_FAKE_CLOCK_H_
