#ifndef QUERN_CORE_BASE_CLOCK_H_
#define QUERN_CORE_BASE_CLOCK_H_

#include <absl/time/clock.h>
#include <absl/time/time.h>

namespace quern {

// Where time comes from; passed to constructors so that tests own it. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() = 0;
};

class SystemClock final : public Clock {
 public:
  absl::Time Now() override { return absl::Now(); }
};

}  // namespace quern

#endif  // QUERN_CORE_BASE_CLOCK_H_
