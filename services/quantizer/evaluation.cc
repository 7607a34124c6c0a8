#include "services/quantizer/evaluation.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/engine/model_source.h"
#include "services/quantizer/calibration.h"

namespace quern {
namespace {

constexpr int kNumHeldOut = 8;
constexpr int kHeldOutTokens = 512;
constexpr int kMaxItemTokens = 4096;
// Of an item of a zero-shot task, with all its options; for progress alone.
constexpr int64_t kGuessedItemTokens = 100;
// Flips bits all over the seed, so that no calibration sequence of a near seed comes again.
constexpr uint64_t kHeldOutSeed = 0xa5a5'5a5a'c3c3'3c3c;

// Proto3 JSON writes what is no number as a string.
Json NumberToJson(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

absl::StatusOr<TokenSequences> HeldOut(Engine& engine, ModelHandle source, int length,
                                       const EvaluationInput& input,
                                       const std::function<void(int64_t)>& on_tokens) {
  absl::StatusOr<TokenSequences> kept =
      LoadTokens(input.held_out_path, input.key, kNumHeldOut, length);
  if (kept.ok()) return kept;
  if (!absl::IsNotFound(kept.status())) {
    LOG(WARNING) << "held-out sequences are sampled again: " << kept.status().message();
  }
  ASSIGN_OR_RETURN(TokenSequences sampled,
                   SampleSequences(engine, source, kNumHeldOut, length, input.seed ^ kHeldOutSeed,
                                   [&](int64_t done, int64_t) { on_tokens(done); }));
  RETURN_IF_ERROR(SaveTokens(input.held_out_path, input.key, sampled));
  return sampled;
}

absl::StatusOr<EvaluationResults> Score(Engine& engine, EvaluationInput& input) {
  const ModelConfig& config = input.config;
  const int length = std::min(kHeldOutTokens, config.max_position_embeddings);
  const bool samples = !input.held_out_path.empty();
  const int64_t sampled_tokens = samples ? int64_t{kNumHeldOut} * length : 0;
  int64_t scored_tokens = sampled_tokens;
  for (const EvaluationText& text : input.texts) {
    for (const auto& sequence : text.sequences) {
      scored_tokens += static_cast<int64_t>(sequence.size());
    }
  }
  int64_t zero_shot_tokens = 0;
  for (const ZeroShotTask& task : input.zero_shot) {
    zero_shot_tokens += kGuessedItemTokens * static_cast<int64_t>(task.items.size());
  }
  scored_tokens *= static_cast<int64_t>(input.models.size()) + 1;
  zero_shot_tokens *= static_cast<int64_t>(input.models.size()) + 1;
  const auto report = [&](int64_t done) {
    if (input.on_progress)
      input.on_progress(done, sampled_tokens + scored_tokens + zero_shot_tokens);
  };

  ASSIGN_OR_RETURN(const ModelHandle source, engine.Load(*input.source));
  if (samples) {
    ASSIGN_OR_RETURN(TokenSequences held_out, HeldOut(engine, source, length, input, report));
    input.texts.insert(input.texts.begin(), {.name = "sampled", .sequences = std::move(held_out)});
  }
  std::vector<NamedModel> models;
  for (auto& [name, model] : input.models) {
    ASSIGN_OR_RETURN(const ModelHandle handle, engine.Load(*MakeModelSource(std::move(model))));
    models.push_back({name, handle});
  }
  EvaluationResults results;
  if (!input.texts.empty()) {
    ASSIGN_OR_RETURN(results.rows, Evaluate(engine, source, models, input.texts,
                                            [&](int64_t done, int64_t total) {
                                              report(sampled_tokens + scored_tokens * done / total);
                                            }));
  }
  if (!input.zero_shot.empty()) {
    ASSIGN_OR_RETURN(
        results.zero_shot_rows,
        EvaluateZeroShot(engine, source, models, input.zero_shot, [&](int64_t done, int64_t total) {
          report(sampled_tokens + scored_tokens + zero_shot_tokens * done / total);
        }));
  }
  // The source's row of each text and task comes first.
  for (size_t i = 0; i < results.rows.size(); i += models.size() + 1) {
    results.rows[i].model = input.source_name;
  }
  for (size_t i = 0; i < results.zero_shot_rows.size(); i += models.size() + 1) {
    results.zero_shot_rows[i].model = input.source_name;
  }
  return results;
}

}  // namespace

absl::StatusOr<EvaluationResults> EvaluateModels(EvaluationInput input,
                                                 Cancellation& cancellation) {
  if (input.texts.empty() && input.zero_shot.empty() && input.held_out_path.empty()) {
    return EvaluationResults();
  }
  const ModelConfig& config = input.config;
  size_t length = std::min(kHeldOutTokens, config.max_position_embeddings);
  for (const EvaluationText& text : input.texts) {
    for (const auto& sequence : text.sequences) length = std::max(length, sequence.size());
  }
  // Contexts of items are cut to the model's, which may be far longer than any of them.
  if (!input.zero_shot.empty()) {
    length = std::max<size_t>(length, std::min(kMaxItemTokens, config.max_position_embeddings));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                   MakeJobEngine(config, input.num_threads, kNumHeldOut, static_cast<int>(length)));
  const Cancellation::Scope scope(cancellation, [&] { engine->Drain(absl::ZeroDuration()); });
  absl::StatusOr<EvaluationResults> results = Score(*engine, input);
  RETURN_IF_ERROR(cancellation.Check());
  return results;
}

Json ReportToJson(const EvaluationResults& results, int64_t source_size_bytes,
                  int64_t artifact_size_bytes) {
  Json list = Json::array();
  for (const EvaluationRow& row : results.rows) {
    list.push_back({{"model", row.model},
                    {"dataset", row.dataset},
                    {"perplexity", NumberToJson(row.perplexity)},
                    {"klDivergence", NumberToJson(row.kl_divergence)},
                    {"top1Agreement", NumberToJson(row.top1_agreement)},
                    {"tokenCount", absl::StrCat(row.token_count)}});
  }
  Json zero_shot = Json::array();
  for (const ZeroShotRow& row : results.zero_shot_rows) {
    zero_shot.push_back({{"model", row.model},
                         {"task", row.task},
                         {"itemCount", absl::StrCat(row.num_items)},
                         {"accuracy", row.accuracy},
                         {"accuracyError", NumberToJson(row.accuracy_error)},
                         {"difference", row.difference},
                         {"differenceError", NumberToJson(row.difference_error)}});
    if (!row.accuracy_norm.has_value()) continue;
    zero_shot.back()["accuracyNorm"] = *row.accuracy_norm;
    zero_shot.back()["accuracyNormError"] = NumberToJson(*row.accuracy_norm_error);
  }
  return {{"rows", std::move(list)},
          {"zeroShotRows", std::move(zero_shot)},
          {"sourceSizeBytes", absl::StrCat(source_size_bytes)},
          {"artifactSizeBytes", absl::StrCat(artifact_size_bytes)}};
}

}  // namespace quern
