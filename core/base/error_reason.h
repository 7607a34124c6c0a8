#ifndef QUERN_CORE_BASE_ERROR_REASON_H_
#define QUERN_CORE_BASE_ERROR_REASON_H_

// Why a job failed, as programs read it: the one list for the quantizer that reports a reason, the
// services that pass it on, and the metrics that count it. Names are stable; new ones may come.

#include <absl/strings/string_view.h>

#include <algorithm>
#include <array>

namespace quern {

namespace reason {
inline constexpr absl::string_view kBaseInvalid = "BASE_INVALID";
inline constexpr absl::string_view kCalibrationInvalid = "CALIBRATION_INVALID";
inline constexpr absl::string_view kCancelled = "CANCELLED";
inline constexpr absl::string_view kCheckpointChanged = "CHECKPOINT_CHANGED";
inline constexpr absl::string_view kCheckpointDamaged = "CHECKPOINT_DAMAGED";
inline constexpr absl::string_view kCheckpointNotFound = "CHECKPOINT_NOT_FOUND";
inline constexpr absl::string_view kCheckpointUnsupported = "CHECKPOINT_UNSUPPORTED";
inline constexpr absl::string_view kDeviceNotAvailable = "DEVICE_NOT_AVAILABLE";
inline constexpr absl::string_view kDiverged = "DIVERGED";
inline constexpr absl::string_view kEvaluationInvalid = "EVALUATION_INVALID";
inline constexpr absl::string_view kInternal = "INTERNAL";
inline constexpr absl::string_view kInvalidFlags = "INVALID_FLAGS";
inline constexpr absl::string_view kInvalidTask = "INVALID_TASK";
inline constexpr absl::string_view kOutOfDisk = "OUT_OF_DISK";
inline constexpr absl::string_view kOutOfMemory = "OUT_OF_MEMORY";
inline constexpr absl::string_view kPoisoned = "POISONED";
inline constexpr absl::string_view kPublishFailed = "PUBLISH_FAILED";
inline constexpr absl::string_view kQuantizerCrashed = "QUANTIZER_CRASHED";
inline constexpr absl::string_view kQuantizerNotStarted = "QUANTIZER_NOT_STARTED";
inline constexpr absl::string_view kWorkDirectoryInUse = "WORK_DIRECTORY_IN_USE";
}  // namespace reason

// All of them, sorted: what a metric may have as a label.
inline constexpr std::array kErrorReasons = {reason::kBaseInvalid,
                                             reason::kCalibrationInvalid,
                                             reason::kCancelled,
                                             reason::kCheckpointChanged,
                                             reason::kCheckpointDamaged,
                                             reason::kCheckpointNotFound,
                                             reason::kCheckpointUnsupported,
                                             reason::kDeviceNotAvailable,
                                             reason::kDiverged,
                                             reason::kEvaluationInvalid,
                                             reason::kInternal,
                                             reason::kInvalidFlags,
                                             reason::kInvalidTask,
                                             reason::kOutOfDisk,
                                             reason::kOutOfMemory,
                                             reason::kPoisoned,
                                             reason::kPublishFailed,
                                             reason::kQuantizerCrashed,
                                             reason::kQuantizerNotStarted,
                                             reason::kWorkDirectoryInUse};
static_assert(std::is_sorted(kErrorReasons.begin(), kErrorReasons.end()));

}  // namespace quern

#endif  // QUERN_CORE_BASE_ERROR_REASON_H_
