#include "core/engine/admission.h"

#include <absl/strings/cord.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/time/time.h>

#include <algorithm>
#include <optional>

#include "core/base/retry_delay.h"
#include "core/engine/engine.h"

namespace quern {
namespace {

constexpr char kNoRoomPayload[] = "quern/no-room";
// Of the estimate: below it retries are a load of their own, above it it is a guess.
constexpr absl::Duration kMinRetryDelay = absl::Seconds(1);
constexpr absl::Duration kMaxRetryDelay = absl::Minutes(1);

// `tokens_before` must be computed before there is room.
absl::Status Refusal(NoRoom why, absl::string_view message, double tokens_before,
                     double tokens_per_second) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kNoRoomPayload, absl::Cord(absl::StrCat(static_cast<int>(why))));
  const absl::Duration estimate = tokens_per_second > 0
                                      ? absl::Seconds(tokens_before / tokens_per_second)
                                      : absl::ZeroDuration();
  SetRetryDelay(std::clamp(estimate, kMinRetryDelay, kMaxRetryDelay), &status);
  return status;
}

}  // namespace

std::optional<NoRoom> NoRoomOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kNoRoomPayload);
  int why = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &why)) return std::nullopt;
  return static_cast<NoRoom>(why);
}

absl::Status Admission::Check(absl::string_view principal, int64_t tokens,
                              double tokens_per_second) const {
  if (all_.requests == 0) return absl::OkStatus();
  const int max_requests = limits_.max_sequences + limits_.max_queued_requests;
  const double mean_tokens = static_cast<double>(all_.tokens) / all_.requests;
  if (all_.requests >= max_requests) {
    return Refusal(NoRoom::kRequests,
                   absl::StrCat("the engine has ", all_.requests,
                                " unfinished requests, its limit; try again later"),
                   mean_tokens, tokens_per_second);
  }
  const int64_t excess = all_.tokens + tokens - limits_.max_queued_tokens;
  if (excess > 0) {
    return Refusal(
        NoRoom::kTokens,
        absl::StrCat("the engine has unfinished requests of ", all_.tokens, " tokens, with the ",
                     tokens, " of this one more than its limit of ", limits_.max_queued_tokens,
                     "; try again later"),
        static_cast<double>(excess), tokens_per_second);
  }
  const auto found = principal.empty() ? by_principal_.end() : by_principal_.find(principal);
  if (found == by_principal_.end()) return absl::OkStatus();
  const Held& held = found->second;
  // At most so many of its own wait; what runs is not held against it.
  const int waiting = std::min(held.requests, all_.requests - limits_.max_sequences);
  if (waiting >= 2 * (max_requests - all_.requests) || held.tokens >= -2 * excess) {
    return Refusal(NoRoom::kShare,
                   absl::StrCat("you have ", held.requests, " unfinished requests of ", held.tokens,
                                " tokens; the room that is left is kept for others, try again when "
                                "one has ended"),
                   mean_tokens, tokens_per_second);
  }
  return absl::OkStatus();
}

void Admission::Enter(const std::string& principal, int64_t tokens) {
  for (Held* held : {&all_, &by_principal_[principal]}) {
    ++held->requests;
    held->tokens += tokens;
  }
}

void Admission::Leave(const std::string& principal, int64_t tokens) {
  const auto own = by_principal_.find(principal);
  for (Held* held : {&all_, &own->second}) {
    --held->requests;
    held->tokens -= tokens;
  }
  if (own->second.requests == 0) by_principal_.erase(own);
}

}  // namespace quern
