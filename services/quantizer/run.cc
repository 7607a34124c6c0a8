#include "services/quantizer/run.h"

#include <absl/time/clock.h>

#include <iostream>
#include <string>
#include <utility>

#include "core/base/error_reason.h"
#include "core/base/status_macros.h"
#include "core/quant/profile.h"
#include "services/quantizer/errors.h"
#include "services/quantizer/evaluate_run.h"
#include "services/quantizer/quantize_run.h"
#include "services/quantizer/run_context.h"
#include "services/quantizer/tune_run.h"

namespace quern {
namespace {

absl::Status RunTask(RunContext& context) {
  ASSIGN_OR_RETURN(const std::string json, context.Open());
  if (context.config().kind == "tune") return RunTuneTask(context, json);
  if (context.config().kind == "evaluate") return RunEvaluateTask(context, json);
  return RunQuantizeTask(context, json);
}

}  // namespace

absl::Status RunQuantizer(const QuantizerConfig& config, EventWriter& events,
                          Cancellation& cancellation, Clock& clock) {
  if (absl::Status status = config.Validate(); !status.ok()) {
    return WithReason(std::move(status), reason::kInvalidFlags);
  }
  RunContext context(config, events, cancellation, clock);
  if (config.profile) StartProfile();
  const absl::Time start = absl::Now();
  absl::Status status = RunTask(context);
  if (config.profile) {
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    std::cerr << FormatProfile(StopProfile(), seconds, context.product_rates());
  }
  // What was interrupted fails in its own words.
  if (!status.ok() && cancellation.requested()) return cancellation.Check();
  return status;
}

}  // namespace quern
