#ifndef QUERN_SERVICES_QUANTIZER_CALIBRATION_H_
#define QUERN_SERVICES_QUANTIZER_CALIBRATION_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/checkpoint/checkpoint.h"
#include "core/engine/engine.h"
#include "core/plan/plan.h"
#include "core/quant/quantize.h"
#include "core/tokenizer/tokenizer.h"
#include "services/quantizer/cancellation.h"
#include "services/quantizer/token_file.h"

namespace quern {

// An engine for a job's own use: key/value memory for `num_sequences` sequences of `length_tokens`
// at once, fewer at a time when that is over 2 GiB.
absl::StatusOr<std::unique_ptr<Engine>> MakeJobEngine(const ModelConfig& config, int num_threads,
                                                      int num_sequences, int length_tokens);

// Samples the shape's num_sampled sequences from the checkpoint itself, rounded to 8 bits: the same
// text for all that it is good for, in a fraction of the time. The engine is gone, with its memory,
// when it returns. `on_progress(done, total)` counts tokens. CANCELLED.
absl::StatusOr<TokenSequences> SampleCalibration(
    const Checkpoint& checkpoint, const CalibrationShape& shape, uint64_t seed,
    QuantizeOptions options, Cancellation& cancellation,
    const std::function<void(int64_t done, int64_t total)>& on_progress);

// The numbers below `count` in an order that depends on `seed` alone.
std::vector<size_t> ShuffledOrder(size_t count, uint64_t seed);

// The text's sequences with the sampled ones evenly among those after Block-AP's.
TokenSequences Interleave(const CalibrationShape& shape, TokenSequences of_text,
                          TokenSequences sampled);

// Tokenizes `documents` in an order shuffled by `seed`, concatenates them and cuts the ids into
// sequences; stops when there are enough. Text of special tokens is ordinary text; what the model
// puts before a text (BOS) comes before each document. As many as the shape does not want sampled.
// INVALID_ARGUMENT saying how many tokens
// there are and how many are wanted when the text is too short, CANCELLED.
absl::StatusOr<TokenSequences> CutDocuments(const Tokenizer& tokenizer,
                                            const std::vector<std::string>& documents,
                                            const CalibrationShape& shape, uint64_t seed,
                                            const Cancellation& cancellation);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_CALIBRATION_H_
