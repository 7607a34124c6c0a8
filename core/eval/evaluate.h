#ifndef QUERN_CORE_EVAL_EVALUATE_H_
#define QUERN_CORE_EVAL_EVALUATE_H_

// Fidelity of models to their source, through the serving kernels.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/engine/engine.h"

namespace quern {

// Token sequences to score, each on its own, [n][length].
struct EvaluationText {
  std::string name;  // "sampled" or the file's name
  std::vector<std::vector<int32_t>> sequences;
  // Of each sequence, the first tokens that are given and not scored, at least 1; empty: 1 of each.
  std::vector<int> num_context_tokens;
};

struct EvaluationRow {
  std::string model;      // "source", "rtn", "result"
  std::string dataset;    // EvaluationText::name
  double perplexity = 0;  // exp of the mean over sequences of the mean NLL of their scored tokens
  double kl_divergence = 0;   // mean over scored tokens of KL(source || model), nats
  double top1_agreement = 0;  // share of scored tokens whose arg-max is the source's, in [0, 1]
  int64_t token_count = 0;    // scored tokens
};

struct NamedModel {
  std::string name;
  ModelHandle handle;
};

// Scores every text with the source and each of `models` in step (one sequence at a time, so
// memory stays at one sequence's logits). Rows: for each text, source first (whose divergence is 0
// and agreement 1), then `models` in order. Log-softmax and sums are in float64.
// `on_progress(done, total)`, on the calling thread, counts sequences x models, the source among
// them. INVALID_ARGUMENT when a text is empty, a sequence has nothing to score or the
// vocabularies differ; INTERNAL when logits are not finite; errors of Engine::Score.
absl::StatusOr<std::vector<EvaluationRow>> Evaluate(
    Engine& engine, ModelHandle source, const std::vector<NamedModel>& models,
    const std::vector<EvaluationText>& texts,
    const std::function<void(int64_t done, int64_t total)>& on_progress = {});

// The stated perplexity protocol: the whole text tokenized without BOS, cut into chunks of
// `chunk_tokens` (>= 2), the remainder dropped, the first `max_chunks` kept (0: all). Text of
// special tokens is ordinary text. INVALID_ARGUMENT when there is not one whole chunk.
absl::StatusOr<EvaluationText> ChunkText(const Tokenizer& tokenizer, absl::string_view name,
                                         absl::string_view text, int chunk_tokens, int max_chunks);

// Samples `count` sequences of `length` tokens from a model at temperature 1, through end-of-text
// tokens. The start token counts: the first half of the sequences start from the model's BOS, the
// others from its first end-of-text id, after which models have learnt that a text begins; the one
// stands in for the other where the model has only one, token 0 where it has none. Deterministic
// for `seed`. `on_progress` is called on the calling thread. INVALID_ARGUMENT unless count >= 1 and
// length is 2 to the model's context; else the error of the first sequence that failed.
absl::StatusOr<std::vector<std::vector<int32_t>>> SampleSequences(
    Engine& engine, ModelHandle model, int count, int length, uint64_t seed,
    const std::function<void(int64_t done_tokens, int64_t total_tokens)>& on_progress = {});

}  // namespace quern

#endif  // QUERN_CORE_EVAL_EVALUATE_H_
