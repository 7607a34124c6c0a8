#include "services/quantizer/calibration.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "core/base/status_macros.h"
#include "core/engine/model_source.h"
#include "core/eval/evaluate.h"

namespace quern {
namespace {

constexpr int64_t kMaxKvBytes = int64_t{2} << 30;
constexpr int kMaxRunning = 64;

}  // namespace

// The same order everywhere: std::shuffle may differ between libraries.
std::vector<size_t> ShuffledOrder(size_t count, uint64_t seed) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937_64 random(seed);
  for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

absl::StatusOr<std::unique_ptr<Engine>> MakeJobEngine(const ModelConfig& config, int num_threads,
                                                      int num_sequences, int length_tokens) {
  EngineOptions options{.num_threads = num_threads};
  options.max_sequences = std::min(num_sequences, kMaxRunning);
  options.LiftQueueLimits();
  // Keys and values in floats, one page more for each sequence.
  const int64_t sequence_bytes = int64_t{length_tokens + options.page_tokens} *
                                 config.num_hidden_layers * 2 * config.kv_size() *
                                 static_cast<int64_t>(sizeof(float));
  options.kv_cache_bytes =
      std::max(sequence_bytes, std::min(sequence_bytes * options.max_sequences, kMaxKvBytes));
  return Engine::Create(options);
}

absl::StatusOr<TokenSequences> SampleCalibration(
    const Checkpoint& checkpoint, const CalibrationShape& shape, uint64_t seed,
    QuantizeOptions options, Cancellation& cancellation,
    const std::function<void(int64_t done, int64_t total)>& on_progress) {
  options.on_progress = nullptr;
  const Task to_8_bits{.format = {.bits = 8, .group_size = 64, .embedding_bits = 8},
                       .method = QuantMethod::kRtn};
  ASSIGN_OR_RETURN(PackedModel rounded, Quantize(checkpoint, to_8_bits, {}, options));
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                   MakeJobEngine(checkpoint.config(), options.num_threads, shape.num_sampled,
                                 shape.length_tokens));
  const Cancellation::Scope scope(cancellation, [&] { engine->Drain(absl::ZeroDuration()); });
  ASSIGN_OR_RETURN(
      const ModelHandle model,
      engine->Load(*MakeModelSource(std::make_shared<const PackedModel>(std::move(rounded)))));
  absl::StatusOr<TokenSequences> sequences =
      SampleSequences(*engine, model, shape.num_sampled, shape.length_tokens, seed, on_progress);
  RETURN_IF_ERROR(cancellation.Check());
  return sequences;
}

TokenSequences Interleave(const CalibrationShape& shape, TokenSequences of_text,
                          TokenSequences sampled) {
  if (of_text.empty()) return sampled;
  const size_t tail = shape.num_sequences - shape.num_block_sequences;
  TokenSequences all;
  size_t next_of_text = 0;
  size_t next_sampled = 0;
  for (int i = 0; i < shape.num_sequences; ++i) {
    // The j-th of k lies at floor(j * tail / k) - 1 of the tail.
    const bool due = i >= shape.num_block_sequences &&
                     (next_sampled + 1) * tail <
                         static_cast<size_t>(i - shape.num_block_sequences + 2) * sampled.size();
    all.push_back(std::move(due ? sampled[next_sampled++] : of_text[next_of_text++]));
  }
  return all;
}

absl::StatusOr<TokenSequences> CutDocuments(const Tokenizer& tokenizer,
                                            const std::vector<std::string>& documents,
                                            const CalibrationShape& shape, uint64_t seed,
                                            const Cancellation& cancellation) {
  const int num_sequences = shape.num_sequences - shape.num_sampled;
  const int64_t wanted = int64_t{num_sequences} * shape.length_tokens;
  std::vector<int32_t> ids;
  for (const size_t i : ShuffledOrder(documents.size(), seed)) {
    RETURN_IF_ERROR(cancellation.Check());
    ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                     tokenizer.Encode(documents[i],
                                      {.add_special_tokens = true, .parse_special_tokens = false}));
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    if (static_cast<int64_t>(ids.size()) >= wanted) break;
  }
  if (static_cast<int64_t>(ids.size()) < wanted) {
    return absl::InvalidArgumentError(absl::StrCat(
        "has ", ids.size(), " tokens, the task wants ", wanted, " (", num_sequences,
        " sequences of ", shape.length_tokens, "); bring more text or ask for fewer samples"));
  }
  TokenSequences sequences;
  for (int64_t begin = 0; begin < wanted; begin += shape.length_tokens) {
    sequences.emplace_back(ids.begin() + begin, ids.begin() + begin + shape.length_tokens);
  }
  return sequences;
}

}  // namespace quern
