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
  std::vector<float> logits;        // [vocab_size], those adjusted
  std::vector<int32_t> counts;      // [vocab_size], zeros between draws

  // For draws from a vocabulary of that size.
  void Reserve(int vocab_size);
};

// The tokens that a draw depends on.
struct DrawContext {
  absl::Span<const int32_t> prompt;
  absl::Span<const int32_t> output;
  absl::Span<const int32_t> excluded;  // never drawn
  // Not empty: only these tokens are drawn, a bit for each (the lowest id in the lowest bit of the
  // first word), and `also_allowed`.
  absl::Span<const uint64_t> allowed;
  absl::Span<const int32_t> also_allowed;
};

// `logits` as limits, penalties and biases make them: repetition_penalty divides positive logits
// and multiplies negative ones (Keskar et al. 2019), presence and frequency penalties are
// subtracted (OpenAI's API reference). In scratch, or `logits` itself when nothing changes.
absl::Span<const float> AdjustLogits(absl::Span<const float> logits, const SamplingParams& params,
                                     const DrawContext& context, SamplerScratch& scratch);

// log softmax(logits) of `id`, and into `most_probable`, at most vocab_size, those of the most
// probable ids, the most probable first, the lower id of equals.
TokenLogprob Logprobs(absl::Span<const float> logits, int32_t id,
                      absl::Span<TokenLogprob> most_probable, SamplerScratch& scratch);

// The number in [0, 1) that decides token `index` of a request: a function of the two alone, so
// that a draw does not depend on what was drawn before or by whom (two rounds of SplitMix64's
// finalizer, Steele et al. 2014).
double UniformAt(uint64_t seed, uint64_t index);

// Draws token `index` of a request from `logits` [vocab_size]. Temperature 0 takes the greatest
// logit, the lowest id of equals. Otherwise softmax(logits / temperature), of which top_k keeps the
// k most probable, then typical_p the fewest whose surprise is nearest to the expected one
// (Meister et al. 2022), then top_p the fewest whose share of what is left reaches it, then min_p
// those with at least min_p times the greatest probability; among equals the lower id goes first.
// INTERNAL when a logit is NaN or +infinity, or all are -infinity.
absl::StatusOr<int32_t> SampleToken(absl::Span<const float> logits, const SamplingParams& params,
                                    uint64_t seed, uint64_t index, SamplerScratch& scratch);

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_SAMPLER_H_
