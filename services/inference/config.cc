#include "services/inference/config.h"

#include <absl/strings/str_cat.h>

#include "core/base/status_macros.h"
#include "services/common/address.h"

namespace quern {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxKvCacheMib = 1 << 20;  // 1 TiB

}  // namespace

absl::Status InferenceConfig::Validate() const {
  RETURN_IF_ERROR(CheckListenAddress("--listen", listen, allow_insecure_network).status());
  RETURN_IF_ERROR(
      CheckListenAddress("--metrics-listen", metrics_listen, allow_insecure_network).status());
  if (!http_listen.empty()) {
    RETURN_IF_ERROR(
        CheckListenAddress("--http-listen", http_listen, allow_insecure_network).status());
  }
  if (!jobs.empty()) {
    if (const auto address = ParseHostPort(jobs); !address.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--jobs: ", address.status().message()));
    }
  }
  if (cache_directory.empty()) {
    return absl::InvalidArgumentError("--cache-directory must name a directory");
  }
  if (threads < 0 || threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads must be in [0, ", kMaxThreads, "], got ", threads));
  }
  if (kv_cache_mib < 1 || kv_cache_mib > kMaxKvCacheMib) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv-cache-mib must be in [1, ", kMaxKvCacheMib, "], got ", kv_cache_mib));
  }
  return absl::OkStatus();
}

}  // namespace quern
