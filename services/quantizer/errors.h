#ifndef QUERN_SERVICES_QUANTIZER_ERRORS_H_
#define QUERN_SERVICES_QUANTIZER_ERRORS_H_

#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include <string>

namespace quern {

// `status` with a reason attached: UPPER_SNAKE_CASE, stable, for programs that read error events.
// OK stays OK; a reason that is there already stays.
absl::Status WithReason(absl::Status status, absl::string_view reason);

// An error of planning: INVALID_TASK where the task is wrong.
absl::Status PlanError(absl::Status status);

// The reason to report for an error: CANCELLED, OUT_OF_DISK and DIVERGED (ABORTED) by what
// happened, wherever it did; then what WithReason attached; OUT_OF_MEMORY for any other
// RESOURCE_EXHAUSTED; else INTERNAL.
std::string ReasonOf(const absl::Status& status);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_ERRORS_H_
