#ifndef QUERN_CORE_ENGINE_SEQUENCE_H_
#define QUERN_CORE_ENGINE_SEQUENCE_H_

#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <absl/types/span.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/constraint/constraint.h"
#include "core/engine/engine.h"
#include "core/engine/kv_pages.h"
#include "core/engine/text_stream.h"

namespace quern {

struct PrincipalAccount;

using LogitsFn = std::function<void(int position, absl::Span<const float> logits)>;

// What a request is inside the engine. Made by the caller's thread, then the engine thread's alone.
struct Sequence {
  // `on_logits` makes it a scoring: its tokens are computed, none is sampled. `prefix_root_in`: see
  // PageLease.
  Sequence(GenerationRequest request_in, std::shared_ptr<TokenSink> sink_in, LogitsFn on_logits_in,
           TextStream text_in, KvPagePool* pool, uint64_t prefix_root_in, absl::Time now)
      : tokens(std::move(request_in.prompt)),
        num_prompt_tokens(static_cast<int>(tokens.size())),
        request(std::move(request_in)),
        sink(std::move(sink_in)),
        on_logits(std::move(on_logits_in)),
        text(std::move(text_in)),
        prefix_root(prefix_root_in),
        pages(pool, prefix_root),
        submit_time(now),
        stop_time(now + request.time_limit),
        priority(request.priority) {
    if (request.constraint != nullptr) constraint.emplace(request.constraint);
  }

  int num_tokens() const { return static_cast<int>(tokens.size()); }
  // Tokens the next steps must compute: 1 in decode, more in a prefill (also one that is done
  // again after a preemption).
  int num_pending() const { return num_tokens() - num_computed; }
  int num_output_tokens() const { return num_tokens() - num_prompt_tokens; }
  // As the engine's admission counts them.
  int64_t asked_output_tokens() const { return queue_tokens - num_prompt_tokens; }
  bool scoring() const { return on_logits != nullptr; }
  // Somebody wants logits of more of the prompt's tokens than the last. No output is there then.
  bool wants_prompt_logits() const {
    return (scoring() || request.num_prompt_logprobs.has_value()) && num_scored < num_prompt_tokens;
  }
  int num_guesses() const { return draft.empty() ? 0 : static_cast<int>(draft.size()) - 1; }
  // Gives back all pages; their keys and values are to be computed again.
  void ReleasePages() {
    pages.Release();
    num_computed = 0;
    draft_pages = nullptr;
    num_draft_computed = 0;
    draft.clear();
  }

  std::vector<int32_t> tokens;  // the prompt and what was sampled
  const int num_prompt_tokens;
  const GenerationRequest request;  // its prompt has gone to `tokens`
  const std::shared_ptr<TokenSink> sink;
  const LogitsFn on_logits;

  int num_computed = 0;  // leading tokens whose keys and values are in `pages`
  // Leading tokens of the prompt whose logits went to those who want them, or are not wanted.
  int num_scored = 0;
  int num_cached = 0;  // leading tokens whose keys and values were there at the first admission
  int64_t work_tokens = 0;        // tokens computed for it, those done again included
  int64_t recomputed_tokens = 0;  // of these, those done again
  int64_t queue_tokens = 0;       // what it counts for in the engine's admission
  uint64_t seed = 0;
  std::vector<int32_t> end_ids;  // the model's end-of-text ids and the request's stop_ids
  TextStream text;
  const uint64_t prefix_root;
  std::optional<ConstraintState> constraint;  // behind the tokens of the answer
  PageLease pages;

  // Speculation: the last token and the guesses that follow it, which the next step computes with
  // it; empty when there are none.
  std::vector<int32_t> draft;
  int max_guesses = 0;  // of the next step
  // What its guesses have earned: as many are tried as seem to be kept.
  int guess_limit = 0;
  // The draft model's keys and values, and of how many leading tokens they are. Null without one.
  std::unique_ptr<PageLease> draft_pages;
  int num_draft_computed = 0;

  const absl::Time submit_time;
  const absl::Time stop_time;                      // of the request's time limit
  absl::Time admit_time = absl::InfiniteFuture();  // first
  absl::Time first_token_time = absl::InfiniteFuture();

  // The scheduler's.
  int64_t order = 0;                    // of arrival
  Priority priority;                    // the request's, raised when it waits for long
  PrincipalAccount* account = nullptr;  // while the scheduler has it
  int num_lost = 0;  // leading tokens that were computed before the latest preemption
  // That `account` was charged for: leading tokens of the prompt, and tokens of the answer.
  int num_charged_prompt = 0;
  int num_charged_output = 0;
};

// A sequence that is over, its pages returned; its sink has yet to hear of it.
struct EndedSequence {
  std::unique_ptr<Sequence> sequence;
  absl::StatusOr<GenerationResult> result;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_SEQUENCE_H_
