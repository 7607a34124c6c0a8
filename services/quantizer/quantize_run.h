#ifndef QUERN_SERVICES_QUANTIZER_QUANTIZE_RUN_H_
#define QUERN_SERVICES_QUANTIZER_QUANTIZE_RUN_H_

#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include "services/quantizer/run_context.h"

namespace quern {

// Runs a QuantizeTask, given in proto3 JSON: checkpoint in, verified and evaluated artifact out.
// `context` must be open.
absl::Status RunQuantizeTask(RunContext& context, absl::string_view json);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_QUANTIZE_RUN_H_
