// The KV cache in its types: what it takes, what it changes and what it says of that.

#include <cmath>
#include <cstring>

#include "core/base/status_macros.h"
#include "core/engine/divergence.h"
#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

constexpr int kPageTokens = 64;  // of a quantized one
constexpr int kVocabSize = 300;

TinyModelOptions KvModel() { return {.head_dim = 64, .max_position_embeddings = 512}; }

struct LoadedKv {
  std::unique_ptr<Engine> engine;
  ModelHandle model = 0;
  ModelInfo info;
};

absl::StatusOr<LoadedKv> LoadKv(KvCacheType type, EngineOptions options = {}) {
  LoadedKv loaded;
  ASSIGN_OR_RETURN(loaded.engine, Engine::Create(options));
  ASSIGN_OR_RETURN(loaded.model,
                   loaded.engine->Load(TinySource(KvModel()), {.kv_cache_type = type}));
  ASSIGN_OR_RETURN(loaded.info, loaded.engine->Info(loaded.model));
  return loaded;
}

std::vector<float> ScoreAll(const LoadedKv& loaded, const std::vector<int32_t>& tokens) {
  std::vector<float> all;
  EXPECT_OK(loaded.engine->Score(loaded.model, tokens, [&](int, absl::Span<const float> logits) {
    all.insert(all.end(), logits.begin(), logits.end());
  }));
  return all;
}

TEST(KvCacheTest, NamesAreReadBack) {
  for (const KvCacheType type : {KvCacheType::kFloat16, KvCacheType::kInt8, KvCacheType::kInt4}) {
    ASSERT_OK_AND_ASSIGN(const KvCacheType parsed, ParseKvCacheType(KvCacheTypeName(type)));
    EXPECT_EQ(parsed, type);
  }
  EXPECT_THAT(ParseKvCacheType("int2"), StatusIs(absl::StatusCode::kInvalidArgument,
                                                 testing::HasSubstr("float16, int8 or int4")));
}

TEST(KvCacheTest, IntegersTakeHalfAndLessThanAThird) {
  ASSERT_OK_AND_ASSIGN(const LoadedKv half, LoadKv(KvCacheType::kFloat16));
  ASSERT_OK_AND_ASSIGN(const LoadedKv int8, LoadKv(KvCacheType::kInt8));
  ASSERT_OK_AND_ASSIGN(const LoadedKv int4, LoadKv(KvCacheType::kInt4));
  const auto ratio = [&](const LoadedKv& loaded) {
    return static_cast<double>(loaded.info.kv_token_bytes) / half.info.kv_token_bytes;
  };
  EXPECT_NEAR(ratio(int8), 0.531, 0.001);
  EXPECT_NEAR(ratio(int4), 0.281, 0.001);
  EXPECT_EQ(int4.info.kv_cache_type, KvCacheType::kInt4);
}

TEST(KvCacheTest, TheSameMemoryHoldsMore) {
  // Enough for the context of no type.
  const EngineOptions options{.kv_cache_bytes = 192 << 10, .max_sequences = 1};
  ASSERT_OK_AND_ASSIGN(const LoadedKv half, LoadKv(KvCacheType::kFloat16, options));
  ASSERT_OK_AND_ASSIGN(const LoadedKv int4, LoadKv(KvCacheType::kInt4, options));
  for (const LoadedKv* loaded : {&half, &int4}) {
    EXPECT_LE(loaded->info.kv_bytes, options.kv_cache_bytes);
    EXPECT_LT(loaded->info.max_context_tokens, 512);
    EXPECT_THAT(loaded->engine->Submit(loaded->model,
                                       Greedy(Prompt(loaded->info.max_context_tokens + 1, 1), 1),
                                       std::make_shared<CollectingSink>()),
                StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("KV cache")));
    EXPECT_OK(
        Start(*loaded->engine, loaded->model, Greedy(Prompt(loaded->info.max_context_tokens, 1), 1))
            ->Wait());
  }
  EXPECT_GT(int4.info.max_context_tokens, 1.5 * half.info.max_context_tokens);
}

TEST(KvCacheTest, MemoryForNoPageIsRefused) {
  // A page being filled takes 64 KiB.
  EXPECT_THAT(LoadKv(KvCacheType::kInt8, {.kv_cache_bytes = 80 << 10}),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       testing::HasSubstr("the page that a sequence is filling 65536")));
}

// More requests than there are pages to fill: those beyond wait.
TEST(KvCacheTest, SequencesWaitForAPageToFill) {
  ASSERT_OK_AND_ASSIGN(
      const LoadedKv loaded,
      LoadKv(KvCacheType::kInt4, {.kv_cache_bytes = 640 << 10, .prefix_cache = false}));
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  int most_running = 0;
  for (int i = 0; i < 6; ++i) {
    sinks.push_back(
        Start(*loaded.engine, loaded.model, Greedy(Prompt(20, i), 60), [&](CollectingSink&) {
          most_running = std::max(most_running, loaded.engine->Stats().requests_running);
        }));
  }
  for (const auto& sink : sinks) EXPECT_OK(sink->Wait());
  EXPECT_GE(most_running, 1);
  EXPECT_LE(most_running, 2) << "a quarter of the memory has two";
}

TEST(KvCacheTest, TheFirstPageIsReadAsItWasWritten) {
  const std::vector<int32_t> tokens = Prompt(200, 3, kVocabSize);
  ASSERT_OK_AND_ASSIGN(const LoadedKv half, LoadKv(KvCacheType::kFloat16));
  const std::vector<float> wanted = ScoreAll(half, tokens);
  double before = 0;
  for (const KvCacheType type : {KvCacheType::kInt8, KvCacheType::kInt4}) {
    ASSERT_OK_AND_ASSIGN(const LoadedKv loaded, LoadKv(type));
    const std::vector<float> logits = ScoreAll(loaded, tokens);
    ASSERT_EQ(logits.size(), wanted.size());
    const size_t exact = size_t{kPageTokens} * kVocabSize;
    EXPECT_EQ(0, std::memcmp(logits.data(), wanted.data(), exact * sizeof(float)));
    double divergence = 0;
    for (size_t row = exact; row < wanted.size(); row += kVocabSize) {
      const auto p = absl::MakeConstSpan(wanted).subspan(row, kVocabSize);
      const auto q = absl::MakeConstSpan(logits).subspan(row, kVocabSize);
      divergence += KlDivergence(p, LogSumExp(p), q, LogSumExp(q));
    }
    divergence /= 200 - kPageTokens;
    EXPECT_GT(divergence, before) << KvCacheTypeName(type);
    EXPECT_LT(divergence, type == KvCacheType::kInt8 ? 1e-4 : 5e-2);
    before = divergence;
  }
}

TEST(KvCacheTest, TheCostIsMeasuredAtLoad) {
  ASSERT_OK_AND_ASSIGN(const LoadedKv half, LoadKv(KvCacheType::kFloat16));
  EXPECT_EQ(half.info.kv_cache_kl, std::nullopt);
  // However the steps of the measurement are cut.
  for (const int max_step_tokens : {512, 7}) {
    const EngineOptions options{.max_step_tokens = max_step_tokens, .max_sequences = 4};
    ASSERT_OK_AND_ASSIGN(const LoadedKv int8, LoadKv(KvCacheType::kInt8, options));
    ASSERT_OK_AND_ASSIGN(const LoadedKv int4, LoadKv(KvCacheType::kInt4, options));
    ASSERT_TRUE(int8.info.kv_cache_kl.has_value() && int4.info.kv_cache_kl.has_value());
    EXPECT_GT(*int8.info.kv_cache_kl, 0);
    EXPECT_LT(*int8.info.kv_cache_kl, 1e-4);
    EXPECT_GT(*int4.info.kv_cache_kl, *int8.info.kv_cache_kl);
    EXPECT_LT(*int4.info.kv_cache_kl, 5e-2);
  }
}

// Nor does a model whose context is one page fail to load.
TEST(KvCacheTest, WhatCannotBeMeasuredIsNotSaid) {
  ASSERT_OK_AND_ASSIGN(const auto engine, Engine::Create({}));
  TinyModelOptions options = KvModel();
  options.max_position_embeddings = kPageTokens;
  ASSERT_OK_AND_ASSIGN(const ModelHandle model,
                       engine->Load(TinySource(options), {.kv_cache_type = KvCacheType::kInt8}));
  ASSERT_OK_AND_ASSIGN(const ModelInfo info, engine->Info(model));
  EXPECT_EQ(info.kv_cache_kl, std::nullopt);
}

}  // namespace
}  // namespace quern
