#ifndef QUERN_CORE_BASE_RETRY_DELAY_H_
#define QUERN_CORE_BASE_RETRY_DELAY_H_

// How long to wait before a refused request is worth another try: part of the status, so that each
// front can say it in its own way.

#include <absl/status/status.h>
#include <absl/time/time.h>

#include <optional>

namespace quern {

// `status` must not be OK.
void SetRetryDelay(absl::Duration delay, absl::Status* status);

// None when nobody set it.
std::optional<absl::Duration> RetryDelayOf(const absl::Status& status);

}  // namespace quern

#endif  // QUERN_CORE_BASE_RETRY_DELAY_H_
