#ifndef QUERN_SERVICES_QUANTIZER_INSTRUCTIONS_H_
#define QUERN_SERVICES_QUANTIZER_INSTRUCTIONS_H_

// Instruction data: prompts with the responses that are wanted, as a model sees them when it is
// served.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <vector>

#include "core/artifact/packed_model.h"
#include "core/quant/tune.h"
#include "core/tokenizer/tokenizer.h"

namespace quern {

struct Instructions {
  std::vector<TuningExample> examples;  // in the file's order
  int64_t num_cut = 0;                  // examples that lost the end of their response
  int64_t num_left_out = 0;             // of whose response nothing would have remained
};

// The examples of a .jsonl, each line {"messages": [{"role", "content"}, ...]}, every assistant
// turn with what comes before it, or {"prompt", "response"}. The context is rendered as for chat
// completions of `model` (as plain text where its template is not known); the response is followed
// by what ends a turn. Text never becomes a special token. Examples have at most `max_tokens`.
// INVALID_ARGUMENT naming file and line: what ForEachJsonLine refuses, other fields, an unknown
// role, a conversation that the template does not take or without an assistant's turn, a blank
// prompt or response; no example at all.
absl::StatusOr<Instructions> ReadInstructions(absl::string_view path, const PackedModel& model,
                                              const Tokenizer& tokenizer, int max_tokens);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_INSTRUCTIONS_H_
