// From a source to a model that serves.

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/engine/served_model.h"

namespace quern {
namespace {

// Rows of logits of a step when few sequences run: scoring asks for one per token, and with fewer
// rows the head's weights would be read too often for each.
constexpr int kMinLogits = 128;

// What the cost of a quantized KV cache is measured on, and for how long, about.
constexpr absl::string_view kMeasuredText =
    "The lighthouse at the end of the pier was built in 1873, after three ships had been lost on "
    "the rocks in a single winter. Its keeper, a quiet man from the north, wrote down the weather "
    "twice a day: the wind, the height of the sea, and whatever passed by. On the ninth of "
    "November he noted a ship with two masts, 14 miles out, that did not answer his signal. The "
    "next morning it was gone. Years later his daughter found the notebooks in a wooden chest and "
    "began to compare them with the lists of the harbour office. Most of the names agreed, but "
    "the ship of that November was nowhere to be found. She asked the old sailors in the town. "
    "One of them remembered a story about a cargo of glass, another said that no captain would "
    "have come so close to the rocks without a reason. If the wind had turned at midnight, she "
    "thought, the ship could have reached the bay behind the island; it would have taken about "
    "five hours. So she hired a boat, and a boy who knew the currents, and on a calm day in June "
    "they rowed across. What they saw there, half buried in the sand, explained everything that "
    "her father had written: the two lights, the bell, and the line he had crossed out.";
constexpr absl::Duration kMeasuringTime = absl::Seconds(2);
constexpr int kMeasuredTokens = 320;

// What the KV cache's rounding costs; unset when it cannot be measured, which is no reason not to
// serve the model.
absl::StatusOr<std::optional<double>> MeasureKvCost(BackendModel& model, const Tokenizer* tokenizer,
                                                    const ModelConfig& config) {
  std::vector<int32_t> tokens;
  if (tokenizer != nullptr) {
    ASSIGN_OR_RETURN(tokens, tokenizer->Encode(kMeasuredText, {.add_special_tokens = true,
                                                               .parse_special_tokens = false}));
  }
  // A tokenizer may hold ids that the model does not have.
  std::erase_if(tokens, [&](int32_t id) { return id < 0 || id >= config.vocab_size; });
  uint32_t state = 1;
  while (tokens.size() < kMeasuredTokens) {
    state = state * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>((state >> 8) % static_cast<uint32_t>(config.vocab_size)));
  }
  tokens.resize(kMeasuredTokens);
  const absl::StatusOr<double> divergence = model.MeasureKvDivergence(tokens, kMeasuringTime);
  if (divergence.ok() && std::isfinite(*divergence)) return *divergence;
  LOG(WARNING) << "cost of the KV cache's rounding not measured reason="
               << (divergence.ok() ? "logits that are not finite" : divergence.status().message());
  return std::nullopt;
}

}  // namespace

LoadOptions DraftOptions(const LoadOptions& options) { return {.precision = options.precision}; }

BackendLimits LimitsOf(const EngineOptions& options) {
  return {
      .page_tokens = options.page_tokens,
      .kv_cache_bytes = options.kv_cache_bytes,
      .max_step_tokens = options.max_step_tokens,
      .max_logits = std::max(options.max_sequences, std::min(options.max_step_tokens, kMinLogits)),
      .max_sequences = options.max_sequences};
}

absl::StatusOr<std::unique_ptr<ServedModel>> ServedModel::Load(const ModelSource& source,
                                                               const LoadOptions& load_options,
                                                               const EngineOptions& options,
                                                               Backend* backend, ThreadPool* pool,
                                                               Clock* clock) {
  std::shared_ptr<const Tokenizer> tokenizer;
  if (!source.tokenizer_json().empty()) {
    ASSIGN_OR_RETURN(tokenizer, Tokenizer::FromJson(source.tokenizer_json()));
  }
  const BackendLimits backend_limits = LimitsOf(options);
  ASSIGN_OR_RETURN(std::unique_ptr<BackendModel> model,
                   backend->Load(source, load_options, backend_limits));
  ModelInfo info;
  info.config = source.config();
  info.max_context_tokens = static_cast<int>(std::min<int64_t>(
      int64_t{model->num_pages()} * model->page_tokens(), info.config.max_position_embeddings));
  info.weight_bytes = model->weight_bytes();
  info.step_weight_bytes = model->step_weight_bytes();
  info.shared_weight_bytes = model->shared_weight_bytes();
  info.kv_bytes = model->kv_bytes();
  info.kv_token_bytes = model->kv_token_bytes();
  info.kv_cache_type = load_options.kv_cache_type;
  info.kernel = std::string(backend->name());
  if (tokenizer != nullptr) {
    info.chat_format = RecognizeChatFormat(source.chat_template(), *tokenizer);
  }
  if (info.max_context_tokens < info.config.max_position_embeddings) {
    LOG(WARNING) << "context limited by kv_cache_bytes tokens=" << info.max_context_tokens
                 << " of=" << info.config.max_position_embeddings;
  }
  if (model->max_sequences() < options.max_sequences) {
    LOG(WARNING) << "concurrency limited by kv_cache_bytes sequences=" << model->max_sequences()
                 << " of=" << options.max_sequences;
  }
  if (load_options.kv_cache_type != KvCacheType::kFloat16) {
    ASSIGN_OR_RETURN(info.kv_cache_kl, MeasureKvCost(*model, tokenizer.get(), info.config));
  }
  const SchedulerLimits limits{.max_step_tokens = options.max_step_tokens,
                               .max_sequences = model->max_sequences(),
                               .max_logits = backend_limits.max_logits,
                               .page_tokens = model->page_tokens()};
  std::unique_ptr<ServedModel> served(new ServedModel(std::move(info), std::move(tokenizer),
                                                      source.chat_template(), std::move(model),
                                                      limits, options.prefix_cache, pool, clock));
  RETURN_IF_ERROR(served->StartSpeculation(load_options, source, backend_limits, backend));
  return served;
}

absl::Status ServedModel::StartSpeculation(const LoadOptions& options, const ModelSource& source,
                                           const BackendLimits& limits, Backend* backend) {
  const int max_guesses = options.speculation.max_guesses;
  const ModelSource* draft = options.speculation.draft;
  if (max_guesses < 0 || max_guesses > kMaxGuesses) {
    return absl::InvalidArgumentError(absl::StrCat("speculation: max_guesses is ", max_guesses,
                                                   ", wanted 0 (off) to ", kMaxGuesses));
  }
  max_guesses_ = max_guesses;
  drafting_.reserve(limits.max_sequences);
  if (max_guesses == 0) return absl::OkStatus();
  if (draft == nullptr) {
    drafter_ = MakeNgramDrafter();
    return absl::OkStatus();
  }
  if (draft->config().vocab_size != source.config().vocab_size ||
      draft->tokenizer_json() != source.tokenizer_json()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "speculation: the draft model has another tokenizer (", draft->config().vocab_size,
        " tokens) than the model (", source.config().vocab_size,
        "); use one of the same family, or fewer bits of the same model"));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<BackendModel> model,
                   backend->Load(*draft, DraftOptions(options), limits));
  const int context = static_cast<int>(std::min<int64_t>(
      int64_t{model->num_pages()} * limits.page_tokens, draft->config().max_position_embeddings));
  drafter_ =
      MakeModelDrafter(std::move(model), limits, context,
                       [this](const Sequence& sequence, absl::Span<const float> logits) {
                         // Guesses know no constraint: what one forbids is not drawn.
                         return DrawNext(sequence, ContextOf(sequence), logits, scratch_.front());
                       });
  info_.weight_bytes += drafter_->weight_bytes();
  info_.kv_bytes += drafter_->kv_bytes();
  return absl::OkStatus();
}

}  // namespace quern
