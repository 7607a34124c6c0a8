#include "services/inference/config.h"

#include <absl/strings/str_cat.h>

#include "core/base/status_macros.h"
#include "core/engine/model_source.h"
#include "services/common/address.h"

namespace quern {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxKvCacheMib = 1 << 20;  // 1 TiB
constexpr int kMaxSequences = 4096;
constexpr int kMaxStepTokens = 65536;
constexpr int kMaxQueuedRequests = 1'000'000;
constexpr int64_t kMaxQueuedTokens = int64_t{1} << 40;
constexpr absl::Duration kMaxRequestTimeout = absl::Hours(24 * 7);
constexpr int kMaxModelMemoryMib = 1 << 30;  // 1 PiB

}  // namespace

absl::Status InferenceConfig::Validate() const {
  RETURN_IF_ERROR(CheckListenAddress("--listen", listen, security).status());
  RETURN_IF_ERROR(CheckListenAddress("--metrics-listen", metrics_listen, security).status());
  if (!http_listen.empty()) {
    RETURN_IF_ERROR(CheckListenAddress("--http-listen", http_listen, security).status());
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
  if (max_sequences < 1 || max_sequences > kMaxSequences) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-sequences must be in [1, ", kMaxSequences, "], got ", max_sequences));
  }
  if (max_step_tokens < max_sequences || max_step_tokens > kMaxStepTokens) {
    return absl::InvalidArgumentError(absl::StrCat("--max-step-tokens must be in [", max_sequences,
                                                   " (--max-sequences: each takes one), ",
                                                   kMaxStepTokens, "], got ", max_step_tokens));
  }
  if (max_queued_requests < 0 || max_queued_requests > kMaxQueuedRequests) {
    return absl::InvalidArgumentError(absl::StrCat("--max-queued-requests must be in [0, ",
                                                   kMaxQueuedRequests, "], got ",
                                                   max_queued_requests));
  }
  if (max_queued_tokens < 1 || max_queued_tokens > kMaxQueuedTokens) {
    return absl::InvalidArgumentError(absl::StrCat("--max-queued-tokens must be in [1, ",
                                                   kMaxQueuedTokens, "], got ", max_queued_tokens));
  }
  if (max_queue_wait < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat("--max-queue-wait must be 0 or more, got ",
                                                   absl::FormatDuration(max_queue_wait)));
  }
  if (request_timeout < absl::Seconds(1) || request_timeout > kMaxRequestTimeout) {
    return absl::InvalidArgumentError(
        absl::StrCat("--request-timeout must be in [1s, ", absl::FormatDuration(kMaxRequestTimeout),
                     "], got ", absl::FormatDuration(request_timeout)));
  }
  if (model_memory_mib < 0 || model_memory_mib > kMaxModelMemoryMib) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--model-memory-mib must be in [0, ", kMaxModelMemoryMib, "], got ", model_memory_mib));
  }
  if (idle_model_timeout < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--idle-model-timeout must be 0 (never) or more, got ",
                     absl::FormatDuration(idle_model_timeout)));
  }
  if (const auto type = ParseKvCacheType(kv_cache_type); !type.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--kv-cache-type: ", type.status().message()));
  }
  return absl::OkStatus();
}

}  // namespace quern
