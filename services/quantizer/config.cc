#include "services/quantizer/config.h"

#include <absl/strings/str_cat.h>

#include "core/base/status_macros.h"

namespace quern {
namespace {

absl::Status CheckGiven(absl::string_view flag, const std::string& value) {
  if (!value.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, " is required"));
}

}  // namespace

absl::Status QuantizerConfig::Validate() const {
  RETURN_IF_ERROR(CheckGiven("task", task_path));
  RETURN_IF_ERROR(CheckGiven("work-directory", work_directory));
  if (kind != "quantize" && kind != "tune" && kind != "evaluate") {
    return absl::InvalidArgumentError(
        absl::StrCat("--kind is \"", kind, "\", wanted quantize, tune or evaluate"));
  }
  RETURN_IF_ERROR(CheckGiven("data-root", data_root));
  constexpr int kMaxThreads = 1024;
  if (num_threads < 0 || num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads is ", num_threads, ", wanted 0 to ", kMaxThreads));
  }
  if (activation_memory_mib < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--activation-memory-mib is ", activation_memory_mib, ", wanted 0 or more"));
  }
  if (device != "auto" && device != "cpu" && device != "cuda") {
    return absl::InvalidArgumentError(
        absl::StrCat("--device is \"", device, "\", wanted auto, cpu or cuda"));
  }
  if (kind != "quantize") RETURN_IF_ERROR(CheckGiven("artifact-root", artifact_root));
  return kind == "tune" ? absl::OkStatus() : CheckGiven("model-root", model_root);
}

}  // namespace quern
