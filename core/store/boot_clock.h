#ifndef QUERN_CORE_STORE_BOOT_CLOCK_H_
#define QUERN_CORE_STORE_BOOT_CLOCK_H_

#include <absl/time/clock.h>
#include <absl/time/time.h>
#include <time.h>

#include "core/base/clock.h"

namespace quern {

// The wall clock as it was at construction, advanced by CLOCK_BOOTTIME: it counts suspended time
// and does not jump when somebody sets the clock. Leases run on it.
class BootClock final : public Clock {
 public:
  BootClock() : offset_(absl::Now() - SinceBoot()) {}
  absl::Time Now() override { return offset_ + SinceBoot(); }

 private:
  static absl::Duration SinceBoot() {
    timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return absl::DurationFromTimespec(now);
  }
  const absl::Time offset_;
};

}  // namespace quern

#endif  // QUERN_CORE_STORE_BOOT_CLOCK_H_
