#ifndef QUERN_SERVICES_QUANTIZER_EVALUATE_RUN_H_
#define QUERN_SERVICES_QUANTIZER_EVALUATE_RUN_H_

#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include "services/quantizer/run_context.h"

namespace quern {

// Runs an EvaluateTask, given in proto3 JSON: reports an evaluation, and no artifact. `context`
// must be open.
absl::Status RunEvaluateTask(RunContext& context, absl::string_view json);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_EVALUATE_RUN_H_
