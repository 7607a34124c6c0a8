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

absl::StatusOr<std::vector<EvaluationRow>> Score(Engine& engine, EvaluationInput& input) {
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
  scored_tokens *= static_cast<int64_t>(input.models.size()) + 1;
  const auto report = [&](int64_t done) {
    if (input.on_progress) input.on_progress(done, sampled_tokens + scored_tokens);
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
  ASSIGN_OR_RETURN(std::vector<EvaluationRow> rows,
                   Evaluate(engine, source, models, input.texts, [&](int64_t done, int64_t total) {
                     report(sampled_tokens + scored_tokens * done / total);
                   }));
  // Evaluate gives the source's row of each text first.
  for (size_t i = 0; i < rows.size(); i += models.size() + 1) rows[i].model = input.source_name;
  return rows;
}

}  // namespace

absl::StatusOr<std::vector<EvaluationRow>> EvaluateModels(EvaluationInput input,
                                                          Cancellation& cancellation) {
  if (input.texts.empty() && input.held_out_path.empty()) return std::vector<EvaluationRow>();
  const ModelConfig& config = input.config;
  size_t length = std::min(kHeldOutTokens, config.max_position_embeddings);
  for (const EvaluationText& text : input.texts) {
    for (const auto& sequence : text.sequences) length = std::max(length, sequence.size());
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                   MakeJobEngine(config, input.num_threads, kNumHeldOut, static_cast<int>(length)));
  const Cancellation::Scope scope(cancellation, [&] { engine->Drain(absl::ZeroDuration()); });
  absl::StatusOr<std::vector<EvaluationRow>> rows = Score(*engine, input);
  RETURN_IF_ERROR(cancellation.Check());
  return rows;
}

Json ReportToJson(const std::vector<EvaluationRow>& rows, int64_t source_size_bytes,
                  int64_t artifact_size_bytes) {
  Json list = Json::array();
  for (const EvaluationRow& row : rows) {
    list.push_back({{"model", row.model},
                    {"dataset", row.dataset},
                    {"perplexity", NumberToJson(row.perplexity)},
                    {"klDivergence", NumberToJson(row.kl_divergence)},
                    {"top1Agreement", NumberToJson(row.top1_agreement)},
                    {"tokenCount", absl::StrCat(row.token_count)}});
  }
  return {{"rows", std::move(list)},
          {"sourceSizeBytes", absl::StrCat(source_size_bytes)},
          {"artifactSizeBytes", absl::StrCat(artifact_size_bytes)}};
}

}  // namespace quern
