#ifndef QUERN_CORE_ENGINE_SAMPLER_H_
#define QUERN_CORE_ENGINE_SAMPLER_H_

#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <vector>

#include "core/engine/engine.h"

namespace quern {

// Buffers of one sampling thread, kept between draws.
struct SamplerScratch {
  std::vector<float> weights;       // [vocab_size]
  std::vector<int32_t> candidates;  // at most [vocab_size]
};

// The number in [0, 1) that decides token `index` of a request: a function of the two alone, so
// that a draw does not depend on what was drawn before or by whom (two rounds of SplitMix64's
// finalizer, Steele et al. 2014).
double UniformAt(uint64_t seed, uint64_t index);

// Draws token `index` of a request from `logits` [vocab_size]. Temperature 0 takes the greatest
// logit, the lowest id of equals. Otherwise softmax(logits / temperature), of which top_k keeps the
// k most probable, then top_p the fewest whose share of what is left reaches it, then min_p those
// with at least min_p times the greatest probability; among equals the lower id goes first.
// INTERNAL when a logit is NaN or +infinity, or all are -infinity.
absl::StatusOr<int32_t> SampleToken(absl::Span<const float> logits, const SamplingParams& params,
                                    uint64_t seed, uint64_t index, SamplerScratch& scratch);

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_SAMPLER_H_
