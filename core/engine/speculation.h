#ifndef QUERN_CORE_ENGINE_SPECULATION_H_
#define QUERN_CORE_ENGINE_SPECULATION_H_

// Speculative decoding: cheap guesses of a sequence's next tokens, which the model then computes in
// one step instead of one after the other. A guess is kept only when the model, drawing as it does
// without guesses, draws that very token, so answers are the same, bit by bit, greedy or sampled
// (a token's logits do not depend on the cut of the batch, its draw only on seed and index).

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/engine/backend.h"
#include "core/engine/kv_pages.h"
#include "core/engine/sequence.h"

namespace quern {

// Makes guesses for the sequences of one model. The engine thread's alone.
class Drafter {
 public:
  virtual ~Drafter() = default;
  // Appends at most `sequence->max_guesses` guesses to the draft of each; see Sequence::draft.
  virtual void Draft(absl::Span<Sequence* const> sequences) = 0;
  virtual int64_t weight_bytes() const { return 0; }
  virtual int64_t kv_bytes() const { return 0; }
};

// Prompt lookup (Saxena 2023): what followed the last tokens where they came up before, in the
// prompt or the answer. Costs next to nothing and helps where texts repeat: code, quotes,
// summaries.
std::unique_ptr<Drafter> MakeNgramDrafter();

// How the draft model's logits [vocab_size] become a guess: as the request would draw its next
// token.
using GuessFn = std::function<absl::StatusOr<int32_t>(const Sequence& sequence,
                                                      absl::Span<const float> logits)>;

// A smaller model of the same vocabulary (Leviathan et al. 2023), say of fewer bits: it computes
// the tokens one after the other, with keys and values of its own. What it has to catch up on of a
// prompt is bounded by the limits' max_step_tokens a step; a sequence gets no guesses until it has.
// `model` has at least one page.
std::unique_ptr<Drafter> MakeModelDrafter(std::unique_ptr<BackendModel> model,
                                          const BackendLimits& limits, int max_context_tokens,
                                          GuessFn guess);

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_SPECULATION_H_
