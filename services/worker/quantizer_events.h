#ifndef QUERN_SERVICES_WORKER_QUANTIZER_EVENTS_H_
#define QUERN_SERVICES_WORKER_QUANTIZER_EVENTS_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <string>
#include <variant>

#include "services/worker/quantizer_runner.h"

namespace quern {

struct QuantizerLog {
  std::string message;
};

using QuantizerEvent = std::variant<worker::v1::WorkerCapabilities, quantization::v1::Progress,
                                    QuantizerLog, QuantizerResult, quantization::v1::JobError>;

// One line of the quantizer's standard output: {"event":"device"|"progress"|"log"|"result"|"error",
// ...}. Texts come back in the form that quern-jobs takes (no control characters, not too long).
// INVALID_ARGUMENT with what is wrong.
absl::StatusOr<QuantizerEvent> ParseQuantizerEvent(absl::string_view line);

// `text` without control characters and invalid UTF-8, cut to `max_bytes` at a character.
std::string CleanText(absl::string_view text, size_t max_bytes);

}  // namespace quern

#endif  // QUERN_SERVICES_WORKER_QUANTIZER_EVENTS_H_
