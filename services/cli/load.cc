#include "services/cli/load.h"

#include <absl/time/clock.h>

namespace quern::cli {

void LoadRecorder::Piece(int num_tokens) {
  const absl::Time now = absl::Now();
  if (num_tokens_ == 0) {
    first_ = now;
  } else {
    outcome_.gaps.push_back(static_cast<float>(absl::ToDoubleSeconds(now - last_)));
  }
  last_ = now;
  num_tokens_ += num_tokens;
  if (now < start_.window_end) num_window_tokens_ += num_tokens;
}

LoadOutcome LoadRecorder::End(absl::Status status, const LoadUsage& usage) {
  outcome_.status = std::move(status);
  outcome_.usage = usage;
  outcome_.whole = absl::ToDoubleSeconds(absl::Now() - start_.due);
  if (num_tokens_ == 0) return std::move(outcome_);
  int& output_tokens = outcome_.usage.output_tokens;
  if (output_tokens < 0) output_tokens = num_tokens_;
  outcome_.first_token = absl::ToDoubleSeconds(first_ - start_.due);
  if (output_tokens > 1) {
    outcome_.next_token = absl::ToDoubleSeconds(last_ - first_) / (output_tokens - 1);
  }
  outcome_.window_tokens = static_cast<double>(output_tokens) * num_window_tokens_ / num_tokens_;
  return std::move(outcome_);
}

}  // namespace quern::cli
