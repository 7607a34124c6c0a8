#ifndef QUERN_SERVICES_QUANTIZER_PROGRESS_H_
#define QUERN_SERVICES_QUANTIZER_PROGRESS_H_

#include <absl/time/time.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "core/base/clock.h"
#include "core/plan/plan.h"
#include "services/quantizer/events.h"

namespace quern {

// Turns progress of stages into events with an estimate for the whole job: the plan's durations,
// corrected by the pace measured so far. Thread-compatible.
class ProgressReporter {
 public:
  // `clock` and `events` outlive this.
  ProgressReporter(Clock& clock, EventWriter& events) : clock_(clock), events_(events) {}

  // Before a plan is known nothing is estimated.
  void SetPlan(std::vector<StageCost> stages) { plan_ = std::move(stages); }

  // `completed` of `total` units of `stage`. Ends the stage before when the stage is another.
  // Events of one stage come at most every quarter of a second, its first and last one always.
  void Report(Stage stage, int64_t completed, int64_t total, std::optional<double> loss = {});

  // What is left of the job, by plan and pace.
  absl::Duration Remaining() const;

 private:
  struct Current {
    Stage stage;
    absl::Time start;
    int64_t first_completed = 0;  // where a run that was stopped goes on
    int64_t completed = 0;
    int64_t total = 0;
    absl::Time last_event = absl::InfinitePast();
  };

  absl::Duration Planned(Stage stage) const;
  absl::Duration RemainingOfCurrent() const;

  Clock& clock_;
  EventWriter& events_;
  std::vector<StageCost> plan_;
  std::optional<Current> current_;
  // Of the stages that ended, those that did their work in this run.
  absl::Duration measured_;
  absl::Duration planned_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_PROGRESS_H_
