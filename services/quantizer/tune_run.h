#ifndef QUERN_SERVICES_QUANTIZER_TUNE_RUN_H_
#define QUERN_SERVICES_QUANTIZER_TUNE_RUN_H_

#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include "services/quantizer/run_context.h"

namespace quern {

// Runs a TuneTask, given in proto3 JSON: base artifact and instructions in, verified and evaluated
// scale delta out. `context` must be open.
absl::Status RunTuneTask(RunContext& context, absl::string_view json);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_TUNE_RUN_H_
