#include "core/eval/evaluate.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/base/status_macros.h"
#include "core/engine/divergence.h"

namespace quern {
namespace {

int32_t ArgMax(absl::Span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Sums over the scored tokens of one sequence. Position i is scored by the token that follows it.
struct SequenceScore {
  double nll = 0;
  double kl = 0;
  int64_t agreed = 0;
  int64_t num_scored = 0;
};

// The source's logits of one sequence, and what is taken from each row once.
struct SourceLogits {
  std::vector<float> logits;  // [scored tokens, vocab_size]
  std::vector<double> log_sum_exp;
  std::vector<int32_t> top1;

  absl::Span<const float> row(int row, size_t vocab_size) const {
    return absl::MakeConstSpan(logits).subspan(row * vocab_size, vocab_size);
  }
};

// One sequence of a text.
struct Sequence {
  absl::Span<const int32_t> tokens;
  int num_context_tokens = 1;

  size_t num_scored() const { return tokens.size() - static_cast<size_t>(num_context_tokens); }
};

Sequence SequenceOf(const EvaluationText& text, size_t i) {
  return {text.sequences[i], text.num_context_tokens.empty() ? 1 : text.num_context_tokens[i]};
}

// Scores a sequence; `on_row(row, logits, log_sum_exp)` for each position that a scored token
// follows, counted from the first of them.
absl::StatusOr<SequenceScore> ScoreSequence(
    Engine& engine, ModelHandle model, const Sequence& sequence,
    const std::function<void(int, absl::Span<const float>, double, SequenceScore&)>& on_row) {
  SequenceScore score;
  const absl::Span<const int32_t> tokens = sequence.tokens;
  const int first = sequence.num_context_tokens - 1;
  const int last = static_cast<int>(tokens.size()) - 1;
  RETURN_IF_ERROR(engine.Score(model, tokens, [&](int position, absl::Span<const float> logits) {
    if (position < first || position == last) return;
    const double log_sum_exp = LogSumExp(logits);
    score.nll += log_sum_exp - logits[tokens[position + 1]];
    ++score.num_scored;
    on_row(position - first, logits, log_sum_exp, score);
  }));
  if (!std::isfinite(score.nll) || !std::isfinite(score.kl)) {
    return absl::InternalError(
        absl::StrCat("model ", model, " gives logits that are not finite; it cannot be scored"));
  }
  return score;
}

absl::StatusOr<SequenceScore> ScoreSource(Engine& engine, ModelHandle model, size_t vocab_size,
                                          const Sequence& sequence, SourceLogits& source) {
  const size_t num_rows = sequence.num_scored();
  source.logits.resize(num_rows * vocab_size);
  source.log_sum_exp.resize(num_rows);
  source.top1.resize(num_rows);
  return ScoreSequence(
      engine, model, sequence,
      [&](int row, absl::Span<const float> logits, double log_sum_exp, SequenceScore& score) {
        std::copy(logits.begin(), logits.end(), source.logits.begin() + row * vocab_size);
        source.log_sum_exp[row] = log_sum_exp;
        source.top1[row] = ArgMax(logits);
        ++score.agreed;
      });
}

absl::StatusOr<SequenceScore> ScoreAgainst(Engine& engine, ModelHandle model, size_t vocab_size,
                                           const Sequence& sequence, const SourceLogits& source) {
  return ScoreSequence(
      engine, model, sequence,
      [&](int row, absl::Span<const float> logits, double log_sum_exp, SequenceScore& score) {
        score.kl +=
            KlDivergence(source.row(row, vocab_size), source.log_sum_exp[row], logits, log_sum_exp);
        score.agreed += ArgMax(logits) == source.top1[row] ? 1 : 0;
      });
}

// Sums of one row of the result; Finish turns them into means.
struct RowSums {
  double mean_nll = 0;  // summed over sequences
  SequenceScore total;
  int64_t num_sequences = 0;

  void Add(const SequenceScore& score) {
    mean_nll += score.nll / static_cast<double>(score.num_scored);
    total.kl += score.kl;
    total.agreed += score.agreed;
    total.num_scored += score.num_scored;
    ++num_sequences;
  }

  EvaluationRow Finish(std::string model, std::string dataset) const {
    const auto scored = static_cast<double>(total.num_scored);
    return {.model = std::move(model),
            .dataset = std::move(dataset),
            .perplexity = std::exp(mean_nll / static_cast<double>(num_sequences)),
            // Rounding can leave a sum of equal distributions a hair below 0.
            .kl_divergence = std::max(0.0, total.kl / scored),
            .top1_agreement = static_cast<double>(total.agreed) / scored,
            .token_count = total.num_scored};
  }
};

absl::Status CheckTexts(const std::vector<EvaluationText>& texts) {
  for (const EvaluationText& text : texts) {
    if (text.sequences.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("evaluation text '", text.name, "' has no sequence"));
    }
    if (!text.num_context_tokens.empty() &&
        text.num_context_tokens.size() != text.sequences.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "evaluation text '", text.name, "' has ", text.sequences.size(), " sequences, but ",
          text.num_context_tokens.size(), " numbers of context tokens"));
    }
    for (size_t i = 0; i < text.sequences.size(); ++i) {
      const Sequence sequence = SequenceOf(text, i);
      if (sequence.num_context_tokens < 1 ||
          static_cast<int>(sequence.tokens.size()) <= sequence.num_context_tokens) {
        return absl::InvalidArgumentError(absl::StrCat(
            "evaluation text '", text.name, "' has a sequence of ", sequence.tokens.size(),
            " tokens with a context of ", sequence.num_context_tokens,
            ", wanted a context of at least 1 token and one to score"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<EvaluationRow>> Evaluate(
    Engine& engine, ModelHandle source, const std::vector<NamedModel>& models,
    const std::vector<EvaluationText>& texts,
    const std::function<void(int64_t done, int64_t total)>& on_progress) {
  RETURN_IF_ERROR(CheckTexts(texts));
  ASSIGN_OR_RETURN(const ModelInfo source_info, engine.Info(source));
  const auto vocab_size = static_cast<size_t>(source_info.config.vocab_size);
  for (const NamedModel& model : models) {
    ASSIGN_OR_RETURN(const ModelInfo info, engine.Info(model.handle));
    if (info.config.vocab_size != source_info.config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("model '", model.name, "' has a vocabulary of ", info.config.vocab_size,
                       ", the source ", vocab_size, "; they cannot be compared"));
    }
  }
  int64_t total = 0;
  for (const EvaluationText& text : texts) {
    total += static_cast<int64_t>(text.sequences.size() * (models.size() + 1));
  }
  int64_t done = 0;
  const auto progress = [&] {
    ++done;
    if (on_progress) on_progress(done, total);
  };

  std::vector<EvaluationRow> rows;
  SourceLogits source_logits;
  for (const EvaluationText& text : texts) {
    RowSums source_sums;
    std::vector<RowSums> sums(models.size());
    for (size_t n = 0; n < text.sequences.size(); ++n) {
      const Sequence sequence = SequenceOf(text, n);
      ASSIGN_OR_RETURN(const SequenceScore source_score,
                       ScoreSource(engine, source, vocab_size, sequence, source_logits));
      source_sums.Add(source_score);
      progress();
      for (size_t i = 0; i < models.size(); ++i) {
        ASSIGN_OR_RETURN(
            const SequenceScore score,
            ScoreAgainst(engine, models[i].handle, vocab_size, sequence, source_logits));
        sums[i].Add(score);
        progress();
      }
    }
    rows.push_back(source_sums.Finish("source", text.name));
    for (size_t i = 0; i < models.size(); ++i) {
      rows.push_back(sums[i].Finish(models[i].name, text.name));
    }
  }
  return rows;
}

absl::StatusOr<EvaluationText> ChunkText(const Tokenizer& tokenizer, absl::string_view name,
                                         absl::string_view text, int chunk_tokens, int max_chunks) {
  if (chunk_tokens < 2 || max_chunks < 0) {
    return absl::InvalidArgumentError(absl::StrCat("chunk_tokens is ", chunk_tokens,
                                                   " and max_chunks ", max_chunks,
                                                   ", wanted at least 2 and at least 0"));
  }
  ASSIGN_OR_RETURN(
      const std::vector<int32_t> tokens,
      tokenizer.Encode(text, {.add_special_tokens = false, .parse_special_tokens = false}));
  size_t num_chunks = tokens.size() / chunk_tokens;
  if (num_chunks == 0) {
    return absl::InvalidArgumentError(absl::StrCat("text '", name, "' has ", tokens.size(),
                                                   " tokens, one chunk takes ", chunk_tokens));
  }
  if (max_chunks > 0) num_chunks = std::min(num_chunks, static_cast<size_t>(max_chunks));
  EvaluationText result{.name = std::string(name)};
  for (size_t i = 0; i < num_chunks; ++i) {
    const auto begin = tokens.begin() + static_cast<int64_t>(i) * chunk_tokens;
    result.sequences.emplace_back(begin, begin + chunk_tokens);
  }
  return result;
}

}  // namespace quern
