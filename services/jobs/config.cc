#include "services/jobs/config.h"

#include <absl/strings/str_cat.h>
#include <sys/stat.h>

#include "core/base/status_macros.h"

namespace quern {
namespace {

absl::Status CheckDirectory(const char* flag, const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError(absl::StrCat(flag, " is required"));
  struct stat info;
  if (stat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(flag, ": ", path, " is no directory"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status JobsConfig::Validate() const {
  RETURN_IF_ERROR(CheckListenAddress("--listen", listen, security).status());
  RETURN_IF_ERROR(CheckListenAddress("--metrics-listen", metrics_listen, security).status());
  if (data_directory.empty()) return absl::InvalidArgumentError("--data-directory is required");
  if (lease_duration <= absl::ZeroDuration() || lease_duration > absl::Hours(1)) {
    return absl::InvalidArgumentError(absl::StrCat("--lease-seconds: found ",
                                                   absl::FormatDuration(lease_duration),
                                                   ", wanted 1 to 3600 seconds"));
  }
  RETURN_IF_ERROR(CheckDirectory("--model-root", model_root));
  RETURN_IF_ERROR(CheckDirectory("--data-root", data_root));
  return absl::OkStatus();
}

}  // namespace quern
