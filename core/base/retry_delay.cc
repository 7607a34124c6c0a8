#include "core/base/retry_delay.h"

#include <absl/strings/cord.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>

#include <cstdint>
#include <string>

namespace quern {
namespace {

constexpr char kRetryDelayPayload[] = "quern/retry-delay-nanos";

}  // namespace

void SetRetryDelay(absl::Duration delay, absl::Status* status) {
  status->SetPayload(kRetryDelayPayload, absl::Cord(absl::StrCat(absl::ToInt64Nanoseconds(delay))));
}

std::optional<absl::Duration> RetryDelayOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryDelayPayload);
  int64_t nanos = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &nanos)) {
    return std::nullopt;
  }
  return absl::Nanoseconds(nanos);
}

}  // namespace quern
