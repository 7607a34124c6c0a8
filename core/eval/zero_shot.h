#ifndef QUERN_CORE_EVAL_ZERO_SHOT_H_
#define QUERN_CORE_EVAL_ZERO_SHOT_H_

// Zero-shot tasks through the serving kernels, scored as EleutherAI's lm-evaluation-harness does:
// log-likelihoods of continuations.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/eval/evaluate.h"

namespace quern {

// One question: the continuations to score, each after its own context.
struct ZeroShotItem {
  struct Option {
    std::string context;
    std::string continuation;  // with the space it begins with
    // What acc_norm divides by: UTF-8 bytes of the answer, without that space.
    int64_t answer_bytes = 0;
  };
  std::vector<Option> options;
  int gold = 0;
};

struct ZeroShotTask {
  std::string name;
  std::vector<ZeroShotItem> items;
  // One option each, right when every token of it is the most likely one (LAMBADA); else the most
  // likely option is the answer.
  bool greedy = false;
};

// Items as JSON lines, in the form that llm-foundry and others share, all lines of one kind:
//   {"query": Q, "choices": [C, ...], "gold": I}   PIQA, ARC, HellaSwag: Q, then one of C. A query
//       that begins with "Question:" is followed by "\nAnswer:", as the harness's prompts are.
//   {"context_options": [A, ...], "continuation": C, "gold": I}   WinoGrande: C after one of A
//   {"context": A, "continuation": C}                             LAMBADA
// `max_items` from the start; 0: all. INVALID_ARGUMENT naming the line and what is wrong.
absl::StatusOr<ZeroShotTask> ParseZeroShotTask(absl::string_view name, absl::string_view jsonl,
                                               int max_items = 0);

struct ZeroShotRow {
  std::string model;
  std::string task;
  int64_t num_items = 0;
  // Shares of right answers with their standard errors, in [0, 1]: by log-likelihood (acc), and by
  // log-likelihood per byte of the answer (acc_norm; nothing for greedy tasks).
  double accuracy = 0;
  double accuracy_error = 0;
  std::optional<double> accuracy_norm;
  std::optional<double> accuracy_norm_error;
  // Less than the source's, item by item, with the standard error of the mean difference; 0 of the
  // source itself.
  double difference = 0;
  double difference_error = 0;
};

// Rows: for each task, source first, then `models` in order. A context that is too long loses its
// beginning. Several items are scored at once, so that steps are large, and the engine's limits are
// to let them wait. `on_progress(done, total)`, on the calling thread, counts items x models; it
// never falls and ends with the total. INVALID_ARGUMENT when a task is empty or an option is no
// tokens; errors of Engine::Score.
absl::StatusOr<std::vector<ZeroShotRow>> EvaluateZeroShot(
    Engine& engine, ModelHandle source, const std::vector<NamedModel>& models,
    const std::vector<ZeroShotTask>& tasks,
    const std::function<void(int64_t done, int64_t total)>& on_progress = {});

}  // namespace quern

#endif  // QUERN_CORE_EVAL_ZERO_SHOT_H_
