#ifndef QUERN_SERVICES_QUANTIZER_RUN_H_
#define QUERN_SERVICES_QUANTIZER_RUN_H_

#include <absl/status/status.h>

#include "core/base/clock.h"
#include "services/quantizer/cancellation.h"
#include "services/quantizer/config.h"
#include "services/quantizer/events.h"

namespace quern {

// Runs the task of the configuration's kind: to quantize or tune, verified and evaluated artifact
// in the work directory; to evaluate, the report alone. Everything is told to `events` (the error
// apart: the caller reports what is returned). Called again with the same configuration after any
// interruption, it goes on where the last run was stopped and ends with the same bytes; after a
// finished run that made an artifact it verifies that and repeats the result.
//
// Work directory: lock, calibration.safetensors, held_out.safetensors (token ids of a quantize
// task), training/ (the trainer's own), artifact.tmp/ (being written), artifact/ (complete),
// result.json (evaluated).
absl::Status RunQuantizer(const QuantizerConfig& config, EventWriter& events,
                          Cancellation& cancellation, Clock& clock);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_RUN_H_
