// Validation of what callers and operators hand in.

#include <absl/strings/str_cat.h>

#include <cmath>

#include "core/engine/engine.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

absl::Status OutOfRange(absl::string_view field, const auto& found, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", found, ", wanted ", wanted));
}

}  // namespace

absl::Status EngineOptions::Validate() const {
  if (num_threads < 1 || num_threads > 1024) {
    return OutOfRange("num_threads", num_threads, "1 to 1024");
  }
  if (page_tokens < 1 || page_tokens > 1024) {
    return OutOfRange("page_tokens", page_tokens, "1 to 1024");
  }
  if (kv_cache_bytes < 1) return OutOfRange("kv_cache_bytes", kv_cache_bytes, "more than 0");
  if (max_sequences < 1 || max_sequences > 4096) {
    return OutOfRange("max_sequences", max_sequences, "1 to 4096");
  }
  if (max_step_tokens < max_sequences || max_step_tokens > 65536) {
    return OutOfRange(
        "max_step_tokens", max_step_tokens,
        absl::StrCat("max_sequences (", max_sequences, ", one token for each) to 65536"));
  }
  if (max_queued_requests < 0 || max_queued_requests > 1000000) {
    return OutOfRange("max_queued_requests", max_queued_requests, "0 to 1000000");
  }
  if (!kernels.empty() && kernels::FindKernels(kernels) == nullptr) {
    return OutOfRange("kernels", absl::StrCat("'", kernels, "'"),
                      "a table that this CPU can run, such as scalar or avx2, or nothing");
  }
  return absl::OkStatus();
}

absl::Status SamplingParams::Validate() const {
  // Written so that NaN fails.
  if (!(temperature >= 0 && temperature <= 100)) {
    return OutOfRange("temperature", temperature, "0 to 100");
  }
  if (top_k < 0) return OutOfRange("top_k", top_k, "0 (no limit) or more");
  if (!(top_p > 0 && top_p <= 1)) return OutOfRange("top_p", top_p, "more than 0, at most 1");
  if (!(min_p >= 0 && min_p < 1)) return OutOfRange("min_p", min_p, "0 or more, less than 1");
  return absl::OkStatus();
}

}  // namespace quern
