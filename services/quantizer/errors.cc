#include "services/quantizer/errors.h"

#include <absl/strings/cord.h>
#include <absl/strings/match.h>
#include <errno.h>
#include <string.h>

#include "core/base/error_reason.h"

namespace quern {
namespace {

constexpr char kReasonUrl[] = "quern/reason";

// Files report a full disk as RESOURCE_EXHAUSTED, as others report memory; the system's words,
// which the message ends with, tell them apart.
bool IsDiskFull(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status)) return false;
  for (const int error : {ENOSPC, EDQUOT, EFBIG}) {
    if (absl::StrContains(status.message(), strerror(error))) return true;
  }
  return false;
}

}  // namespace

absl::Status WithReason(absl::Status status, absl::string_view reason) {
  if (!status.ok() && !status.GetPayload(kReasonUrl).has_value()) {
    status.SetPayload(kReasonUrl, absl::Cord(reason));
  }
  return status;
}

std::string ReasonOf(const absl::Status& status) {
  if (absl::IsCancelled(status)) return std::string(reason::kCancelled);
  if (IsDiskFull(status)) return std::string(reason::kOutOfDisk);
  if (absl::IsAborted(status)) return std::string(reason::kDiverged);
  if (const auto reason = status.GetPayload(kReasonUrl); reason.has_value()) {
    return std::string(*reason);
  }
  if (absl::IsResourceExhausted(status)) return std::string(reason::kOutOfMemory);
  return std::string(reason::kInternal);
}

absl::Status PlanError(absl::Status status) {
  if (!absl::IsInvalidArgument(status)) return status;
  return WithReason(std::move(status), reason::kInvalidTask);
}

}  // namespace quern
