#include "core/eval/zero_shot.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <thread>
#include <utility>

#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "core/engine/divergence.h"
#include "core/tokenizer/tokenizer.h"

namespace quern {
namespace {

constexpr int kMaxOptions = 64;

// Items have some dozens of tokens; so many together make a step that products are fast with.
constexpr int kItemsTogether = 16;

absl::StatusOr<std::vector<std::string>> Strings(const JsonObject& object, absl::string_view key) {
  ASSIGN_OR_RETURN(const Json* array, object.Array(key));
  std::vector<std::string> strings;
  for (const Json& entry : *array) {
    if (!entry.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(object.where(), ": ", key, ": wanted strings"));
    }
    strings.push_back(entry.get<std::string>());
  }
  if (strings.empty() || strings.size() > kMaxOptions) {
    return absl::InvalidArgumentError(absl::StrCat(object.where(), ": ", key, ": has ",
                                                   strings.size(), " entries, wanted 1 to ",
                                                   kMaxOptions));
  }
  return strings;
}

// A space between, unless there is white space already; it belongs to the continuation, so that
// words are tokenized as they are within a text.
ZeroShotItem::Option MakeOption(std::string context, absl::string_view answer) {
  const absl::string_view kept = absl::StripTrailingAsciiWhitespace(context);
  const std::string between = kept.size() < context.size() ? context.substr(kept.size()) : " ";
  return {.context = std::string(kept),
          .continuation = absl::StrCat(between, answer),
          .answer_bytes = static_cast<int64_t>(answer.size())};
}

absl::StatusOr<ZeroShotItem> ParseItem(const JsonObject& object, bool& greedy) {
  ZeroShotItem item;
  greedy = false;
  if (object.Find("choices") != nullptr) {
    ASSIGN_OR_RETURN(std::string query, object.String("query"));
    if (absl::StartsWith(query, "Question:")) {
      query = absl::StrCat(absl::StripTrailingAsciiWhitespace(query), "\nAnswer:");
    }
    ASSIGN_OR_RETURN(const std::vector<std::string> choices, Strings(object, "choices"));
    for (const std::string& choice : choices) item.options.push_back(MakeOption(query, choice));
  } else if (object.Find("context_options") != nullptr) {
    ASSIGN_OR_RETURN(const std::string continuation, object.String("continuation"));
    ASSIGN_OR_RETURN(const std::vector<std::string> contexts, Strings(object, "context_options"));
    for (const std::string& context : contexts) {
      item.options.push_back(MakeOption(context, continuation));
    }
  } else {
    ASSIGN_OR_RETURN(const std::string context, object.String("context"));
    ASSIGN_OR_RETURN(const std::string continuation, object.String("continuation"));
    item.options.push_back(MakeOption(context, continuation));
    greedy = true;
    return item;
  }
  const auto last = static_cast<int64_t>(item.options.size()) - 1;
  ASSIGN_OR_RETURN(const int64_t gold, object.Int("gold", 0, last));
  item.gold = static_cast<int>(gold);
  return item;
}

struct OptionScore {
  double log_likelihood = 0;
  bool greedy = true;  // every token of it was the most likely one
};

class Scorer {
 public:
  Scorer(Engine& engine, ModelHandle model, std::shared_ptr<const Tokenizer> tokenizer,
         int max_tokens)
      : engine_(engine), model_(model), tokenizer_(std::move(tokenizer)), max_tokens_(max_tokens) {}

  // Thread-safe.
  absl::StatusOr<OptionScore> Score(const ZeroShotItem::Option& option) const {
    const Tokenizer::EncodeOptions plain{.add_special_tokens = true, .parse_special_tokens = false};
    ASSIGN_OR_RETURN(const std::vector<int32_t> context, tokenizer_->Encode(option.context, plain));
    ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                     tokenizer_->Encode(absl::StrCat(option.context, option.continuation), plain));
    size_t begin = context.size();
    if (begin == 0 || begin >= tokens.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the continuation \"", option.continuation.substr(0, 40),
                       "\" is no tokens of its own, or its context none"));
    }
    if (static_cast<int>(tokens.size()) > max_tokens_) {
      const size_t dropped = tokens.size() - max_tokens_;
      if (dropped >= begin) {
        return absl::InvalidArgumentError(absl::StrCat("a continuation of ", tokens.size() - begin,
                                                       " tokens does not fit the context of ",
                                                       max_tokens_));
      }
      tokens.erase(tokens.begin(), tokens.begin() + static_cast<int64_t>(dropped));
      begin -= dropped;
    }
    // The last token predicts nothing that is asked for.
    const absl::Span<const int32_t> input = absl::MakeConstSpan(tokens).first(tokens.size() - 1);
    OptionScore score;
    const auto first = static_cast<int>(begin) - 1;
    RETURN_IF_ERROR(
        engine_.Score(model_, input, first, [&](int position, absl::Span<const float> logits) {
          const int32_t next = tokens[position + 1];
          score.log_likelihood += logits[next] - LogSumExp(logits);
          score.greedy =
              score.greedy && logits[next] == *std::max_element(logits.begin(), logits.end());
        }));
    if (!std::isfinite(score.log_likelihood)) {
      return absl::InternalError(
          absl::StrCat("model ", model_, " gives logits that are not finite; it cannot be scored"));
    }
    return score;
  }

 private:
  Engine& engine_;
  const ModelHandle model_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const int max_tokens_;
};

struct Verdict {
  bool right = false;
  bool right_norm = false;
};

absl::StatusOr<Verdict> Judge(const Scorer& scorer, const ZeroShotItem& item, bool greedy) {
  int best = 0;
  int best_norm = 0;
  std::vector<double> scores;
  std::vector<double> norm_scores;
  bool all_greedy = true;
  for (const ZeroShotItem::Option& option : item.options) {
    ASSIGN_OR_RETURN(const OptionScore score, scorer.Score(option));
    const int index = static_cast<int>(scores.size());
    scores.push_back(score.log_likelihood);
    norm_scores.push_back(score.log_likelihood /
                          static_cast<double>(std::max<int64_t>(1, option.answer_bytes)));
    if (scores[index] > scores[best]) best = index;
    if (norm_scores[index] > norm_scores[best_norm]) best_norm = index;
    all_greedy = all_greedy && score.greedy;
  }
  if (greedy) return Verdict{.right = all_greedy, .right_norm = all_greedy};
  return Verdict{.right = best == item.gold, .right_norm = best_norm == item.gold};
}

// Of all items, in order. `on_judged(count)` on the calling thread, with all of them at the end.
absl::StatusOr<std::vector<Verdict>> JudgeAll(
    const Scorer& scorer, const ZeroShotTask& task,
    const std::function<void(int64_t num_judged)>& on_judged) {
  std::vector<absl::StatusOr<Verdict>> verdicts(task.items.size());
  std::atomic<size_t> next = 0;
  std::atomic<int64_t> num_judged = 0;
  std::atomic<bool> failed = false;
  const auto judge = [&](bool reports) {
    // What is taken is judged, so that an error is found before what was left out for it.
    while (!failed) {
      const size_t i = next++;
      if (i >= verdicts.size()) break;
      verdicts[i] = Judge(scorer, task.items[i], task.greedy);
      if (!verdicts[i].ok()) failed = true;
      ++num_judged;
      if (reports) on_judged(num_judged);
    }
  };
  {
    std::vector<std::jthread> threads;
    const int num_together = static_cast<int>(std::min<size_t>(kItemsTogether, verdicts.size()));
    for (int i = 1; i < num_together; ++i) threads.emplace_back(judge, false);
    judge(true);
  }
  std::vector<Verdict> judged;
  for (const absl::StatusOr<Verdict>& verdict : verdicts) {
    RETURN_IF_ERROR(verdict.status());
    judged.push_back(*verdict);
  }
  on_judged(num_judged);
  return judged;
}

struct Mean {
  double mean = 0;
  double error = 0;  // standard error: sample deviation / sqrt(n)
};

template <typename Value>
Mean MeanOf(size_t count, const Value& value) {
  Mean result;
  for (size_t i = 0; i < count; ++i) result.mean += value(i);
  result.mean /= static_cast<double>(count);
  if (count < 2) return result;
  double squares = 0;
  for (size_t i = 0; i < count; ++i) squares += std::pow(value(i) - result.mean, 2);
  result.error = std::sqrt(squares / static_cast<double>(count - 1) / static_cast<double>(count));
  return result;
}

ZeroShotRow MakeRow(const std::string& model, const ZeroShotTask& task,
                    const std::vector<Verdict>& verdicts, const std::vector<Verdict>& source) {
  const size_t count = verdicts.size();
  const Mean accuracy = MeanOf(count, [&](size_t i) { return verdicts[i].right ? 1.0 : 0.0; });
  const Mean difference = MeanOf(count, [&](size_t i) {
    return static_cast<double>(verdicts[i].right) - static_cast<double>(source[i].right);
  });
  ZeroShotRow row{.model = model,
                  .task = task.name,
                  .num_items = static_cast<int64_t>(count),
                  .accuracy = accuracy.mean,
                  .accuracy_error = accuracy.error,
                  .difference = difference.mean,
                  .difference_error = difference.error};
  if (!task.greedy) {
    const Mean norm = MeanOf(count, [&](size_t i) { return verdicts[i].right_norm ? 1.0 : 0.0; });
    row.accuracy_norm = norm.mean;
    row.accuracy_norm_error = norm.error;
  }
  return row;
}

}  // namespace

absl::StatusOr<ZeroShotTask> ParseZeroShotTask(absl::string_view name, absl::string_view jsonl,
                                               int max_items) {
  ZeroShotTask task{.name = std::string(name)};
  int number = 0;
  for (absl::string_view line : absl::StrSplit(jsonl, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    if (max_items > 0 && static_cast<int>(task.items.size()) == max_items) break;
    const std::string where = absl::StrCat(name, ", line ", number);
    ASSIGN_OR_RETURN(const Json json, ParseJson(line, where, {.max_depth = 4}));
    ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, where));
    bool greedy = false;
    ASSIGN_OR_RETURN(ZeroShotItem item, ParseItem(object, greedy));
    if (!task.items.empty() && greedy != task.greedy) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": is of another kind than the lines before it"));
    }
    task.greedy = greedy;
    task.items.push_back(std::move(item));
  }
  if (task.items.empty()) return absl::InvalidArgumentError(absl::StrCat(name, ": has no items"));
  return task;
}

absl::StatusOr<std::vector<ZeroShotRow>> EvaluateZeroShot(
    Engine& engine, ModelHandle source, const std::vector<NamedModel>& models,
    const std::vector<ZeroShotTask>& tasks,
    const std::function<void(int64_t done, int64_t total)>& on_progress) {
  std::vector<NamedModel> all = {{"source", source}};
  all.insert(all.end(), models.begin(), models.end());
  std::vector<Scorer> scorers;
  for (const NamedModel& model : all) {
    ASSIGN_OR_RETURN(const ModelInfo info, engine.Info(model.handle));
    ASSIGN_OR_RETURN(std::shared_ptr<const Tokenizer> tokenizer, engine.GetTokenizer(model.handle));
    if (tokenizer == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("model '", model.name, "' has no tokenizer to read the items with"));
    }
    scorers.emplace_back(engine, model.handle, std::move(tokenizer), info.max_context_tokens);
  }
  int64_t total = 0;
  for (const ZeroShotTask& task : tasks) {
    if (task.items.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("task '", task.name, "' has no items"));
    }
    total += static_cast<int64_t>(task.items.size() * all.size());
  }
  int64_t done = 0;
  std::vector<ZeroShotRow> rows;
  for (const ZeroShotTask& task : tasks) {
    std::vector<std::vector<Verdict>> verdicts;
    for (const Scorer& scorer : scorers) {
      ASSIGN_OR_RETURN(verdicts.emplace_back(), JudgeAll(scorer, task, [&](int64_t num_judged) {
                         if (on_progress) on_progress(done + num_judged, total);
                       }));
      done += std::ssize(task.items);
    }
    for (size_t i = 0; i < all.size(); ++i) {
      rows.push_back(MakeRow(all[i].name, task, verdicts[i], verdicts[0]));
    }
  }
  return rows;
}

}  // namespace quern
