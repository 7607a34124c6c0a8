#include "core/engine/admission.h"

#include <absl/strings/cord.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/time/time.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>

#include "core/base/retry_delay.h"

namespace quern {
namespace {

constexpr char kNoRoomPayload[] = "quern/no-room";
// Of the estimate: below it retries are a load of their own, above it it is a guess.
constexpr absl::Duration kMinRetryDelay = absl::Seconds(1);
constexpr absl::Duration kMaxRetryDelay = absl::Minutes(1);

// Of the requests that left; weighs the latest.
constexpr double kMeanWeight = 1.0 / 32;

// 0 when the rate is not known.
absl::Duration TimeOf(double tokens, double tokens_per_second) {
  return tokens_per_second > 0 ? absl::Seconds(tokens / tokens_per_second) : absl::ZeroDuration();
}

// There should be room after `estimate`.
absl::Status Refusal(NoRoom why, absl::string_view message, absl::Duration estimate) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kNoRoomPayload, absl::Cord(absl::StrCat(static_cast<int>(why))));
  SetRetryDelay(std::clamp(estimate, kMinRetryDelay, kMaxRetryDelay), &status);
  return status;
}

// What counts is of this priority and above.
template <typename Number>
Number SumFrom(const std::array<Number, kNumPriorities>& by_priority, Priority priority) {
  return std::accumulate(by_priority.begin() + static_cast<int>(priority), by_priority.end(),
                         Number{0});
}

}  // namespace

void EngineLoad::AddEnd(double steps) {
  if (num_next_ends == kMaxNextEnds) {
    if (steps >= next_ends.back()) return;
    --num_next_ends;
  }
  const auto end = next_ends.begin() + num_next_ends++;
  const auto place = std::upper_bound(next_ends.begin(), end, steps);
  std::copy_backward(place, end, end + 1);
  *place = steps;
}

void EngineLoad::AddWaiting(Priority priority, int num_prompt_tokens) {
  ++waiting[static_cast<int>(priority)];
  prompt_tokens[static_cast<int>(priority)] +=
      static_cast<int64_t>(computed_share * num_prompt_tokens);
}

std::optional<NoRoom> NoRoomOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kNoRoomPayload);
  int why = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &why)) return std::nullopt;
  return static_cast<NoRoom>(why);
}

double Admission::MeanTokens() const {
  if (num_computed_ > 0) return mean_computed_;
  return all_.requests > 0 ? static_cast<double>(all_.tokens) / all_.requests : 0;
}

absl::Duration Admission::ExpectedWait(absl::string_view principal, Priority priority,
                                       const EngineLoad& load) const {
  const auto found = by_principal_.find(principal);
  const Held own = found == by_principal_.end() ? Held() : found->second;
  const double in_turn = static_cast<double>(by_principal_.size()) + (own.requests == 0 ? 1 : 0);
  const int beyond_places = SumFrom(load.waiting, priority) - load.free_places;
  absl::Duration for_place;
  if (beyond_places >= 0) {
    // And the one that it takes itself.
    const double places = std::min<double>(beyond_places, own.requests * in_turn) + 1;
    const auto known = std::min<double>(places, load.seconds_per_step > 0 ? load.num_next_ends : 0);
    if (known > 0) {
      for_place =
          absl::Seconds(load.next_ends[static_cast<int>(known) - 1] * load.seconds_per_step);
    }
    for_place += TimeOf((places - known) * MeanTokens(), load.tokens_per_second);
  }
  const double prompts = std::min<double>(SumFrom(load.prompt_tokens, priority),
                                          static_cast<double>(own.tokens) * in_turn);
  return std::max(for_place, TimeOf(prompts, load.prompt_tokens_per_second));
}

absl::Status Admission::Check(absl::string_view principal, Priority priority, int64_t tokens,
                              const EngineLoad& load) const {
  if (all_.requests == 0) return absl::OkStatus();
  const int max_requests = limits_.max_sequences + limits_.max_queued_requests;
  const absl::Duration one_request = TimeOf(MeanTokens(), load.tokens_per_second);
  if (all_.requests >= max_requests) {
    return Refusal(NoRoom::kRequests,
                   absl::StrCat("the engine has ", all_.requests,
                                " unfinished requests, its limit; try again later"),
                   one_request);
  }
  const int64_t excess = all_.tokens + tokens - limits_.max_queued_tokens;
  if (excess > 0) {
    return Refusal(
        NoRoom::kTokens,
        absl::StrCat("the engine has unfinished requests of ", all_.tokens, " tokens, with the ",
                     tokens, " of this one more than its limit of ", limits_.max_queued_tokens,
                     "; try again later"),
        TimeOf(static_cast<double>(excess), load.tokens_per_second));
  }
  if (priority != Priority::kLow) {
    const absl::Duration wait = ExpectedWait(principal, priority, load);
    if (wait > limits_.max_queue_wait) {
      return Refusal(
          NoRoom::kWait,
          absl::StrCat("the request would wait for about ",
                       absl::FormatDuration(absl::Trunc(wait, absl::Milliseconds(100))),
                       ", more than the limit of ", absl::FormatDuration(limits_.max_queue_wait),
                       "; try again later, or with low priority"),
          wait - limits_.max_queue_wait);
    }
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
                   one_request);
  }
  return absl::OkStatus();
}

void Admission::Enter(const std::string& principal, int64_t tokens) {
  for (Held* held : {&all_, &by_principal_[principal]}) {
    ++held->requests;
    held->tokens += tokens;
  }
}

void Admission::Leave(const std::string& principal, int64_t tokens, int64_t computed_tokens) {
  if (computed_tokens > 0) {
    const double weight = std::max(kMeanWeight, 1.0 / static_cast<double>(++num_computed_));
    mean_computed_ += weight * (static_cast<double>(computed_tokens) - mean_computed_);
  }
  const auto own = by_principal_.find(principal);
  for (Held* held : {&all_, &own->second}) {
    --held->requests;
    held->tokens -= tokens;
  }
  if (own->second.requests == 0) by_principal_.erase(own);
}

}  // namespace quern
