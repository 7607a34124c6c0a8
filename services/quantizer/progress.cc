#include "services/quantizer/progress.h"

#include <algorithm>

namespace quern {
namespace {

constexpr absl::Duration kEventInterval = absl::Milliseconds(250);
// A pace is believed once it rests on this much work, and within these bounds.
constexpr absl::Duration kTrustedWork = absl::Seconds(5);
constexpr double kMinPace = 0.1;
constexpr double kMaxPace = 20;

}  // namespace

void ProgressReporter::Report(Stage stage, int64_t completed, int64_t total,
                              std::optional<double> loss) {
  const absl::Time now = clock_.Now();
  if (!current_.has_value() || current_->stage != stage) {
    if (current_.has_value() && current_->first_completed == 0 && current_->completed > 0) {
      measured_ += now - current_->start;
      planned_ += Planned(current_->stage);
    }
    current_ = Current{.stage = stage, .start = now, .first_completed = completed};
  }
  current_->completed = completed;
  current_->total = total;
  const bool counts_tokens = stage == Stage::kCalibrating || stage == Stage::kEvaluating;
  if (counts_tokens && completed < total && now - current_->last_event < kEventInterval) return;
  current_->last_event = now;
  const auto remaining = plan_.empty() ? std::nullopt : std::optional(Remaining());
  events_.Progress(stage, completed, total, loss, remaining);
}

absl::Duration ProgressReporter::Planned(Stage stage) const {
  for (const StageCost& cost : plan_) {
    if (cost.stage == stage) return cost.duration;
  }
  return absl::ZeroDuration();
}

absl::Duration ProgressReporter::RemainingOfCurrent() const {
  const int64_t done = current_->completed - current_->first_completed;
  const int64_t left = std::max<int64_t>(current_->total - current_->completed, 0);
  const absl::Duration elapsed = clock_.Now() - current_->start;
  if (done > 0) return elapsed * (static_cast<double>(left) / static_cast<double>(done));
  const double share =
      current_->total > 0 ? static_cast<double>(left) / static_cast<double>(current_->total) : 1;
  return std::max(Planned(current_->stage) * share - elapsed, absl::ZeroDuration());
}

absl::Duration ProgressReporter::Remaining() const {
  if (!current_.has_value()) {
    absl::Duration all;
    for (const StageCost& cost : plan_) all += cost.duration;
    return all;
  }
  double pace = 1;
  if (planned_ > kTrustedWork) {
    pace = std::clamp(absl::FDivDuration(measured_, planned_), kMinPace, kMaxPace);
  }
  absl::Duration remaining = RemainingOfCurrent();
  for (const StageCost& cost : plan_) {
    if (cost.stage > current_->stage) remaining += cost.duration * pace;
  }
  return remaining;
}

}  // namespace quern
