// Validation of what callers and operators hand in.

#include <absl/strings/str_cat.h>

#include <cmath>

#include "core/engine/engine.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr size_t kMaxLogitBiases = 1024;
constexpr int kMaxQueuedRequests = 1000000;
constexpr int64_t kMaxQueuedTokens = int64_t{1} << 40;

absl::Status OutOfRange(absl::string_view field, const auto& found, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", found, ", wanted ", wanted));
}

}  // namespace

void EngineOptions::LiftQueueLimits() {
  max_queued_requests = kMaxQueuedRequests;
  max_queued_tokens = kMaxQueuedTokens;
  max_queue_wait = absl::InfiniteDuration();
}

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
  if (max_queued_requests < 0 || max_queued_requests > kMaxQueuedRequests) {
    return OutOfRange("max_queued_requests", max_queued_requests, "0 to 1000000");
  }
  if (max_queued_tokens < 1 || max_queued_tokens > kMaxQueuedTokens) {
    return OutOfRange("max_queued_tokens", max_queued_tokens, "1 to 2^40");
  }
  if (max_queue_wait < absl::ZeroDuration()) {
    return OutOfRange("max_queue_wait", absl::FormatDuration(max_queue_wait), "0 or more");
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
  if (!(typical_p > 0 && typical_p <= 1)) {
    return OutOfRange("typical_p", typical_p, "more than 0, at most 1");
  }
  if (!(top_p > 0 && top_p <= 1)) return OutOfRange("top_p", top_p, "more than 0, at most 1");
  if (!(min_p >= 0 && min_p < 1)) return OutOfRange("min_p", min_p, "0 or more, less than 1");
  if (!(repetition_penalty >= 0.01f && repetition_penalty <= 100)) {
    return OutOfRange("repetition_penalty", repetition_penalty, "0.01 to 100");
  }
  if (!(std::abs(presence_penalty) <= 100)) {
    return OutOfRange("presence_penalty", presence_penalty, "-100 to 100");
  }
  if (!(std::abs(frequency_penalty) <= 100)) {
    return OutOfRange("frequency_penalty", frequency_penalty, "-100 to 100");
  }
  if (logit_bias.size() > kMaxLogitBiases) {
    return OutOfRange("the number of logit biases", logit_bias.size(),
                      absl::StrCat("at most ", kMaxLogitBiases));
  }
  for (const auto& [id, bias] : logit_bias) {
    if (!(std::abs(bias) <= 100)) {
      return OutOfRange(absl::StrCat("the logit bias of token ", id), bias, "-100 to 100");
    }
  }
  return absl::OkStatus();
}

}  // namespace quern
