#ifndef QUERN_TESTS_SUPPORT_EVENTUALLY_H_
#define QUERN_TESTS_SUPPORT_EVENTUALLY_H_

#include <absl/functional/function_ref.h>
#include <absl/time/clock.h>
#include <absl/time/time.h>

namespace quern {

// Between two looks at something that another thread or process brings about: long enough to leave
// it the processor, short enough not to be noticed.
inline void PauseBetweenLooks() { absl::SleepFor(absl::Milliseconds(1)); }

// Whether `condition` came true within `limit`, which only a failing test reaches.
inline bool Eventually(absl::FunctionRef<bool()> condition,
                       absl::Duration limit = absl::Minutes(2)) {
  const absl::Time deadline = absl::Now() + limit;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    PauseBetweenLooks();
  }
  return true;
}

}  // namespace quern

#endif  // QUERN_TESTS_SUPPORT_EVENTUALLY_H_
