// A request's numbers are bit-equal whoever shares its steps and however its prefill is cut.

#include <cstring>
#include <tuple>

#include "core/engine/event.h"
#include "kernels/kernels.h"
#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

constexpr int kNumRequests = 16;

struct Variant {
  std::string name;
  std::string kernels;
  int bits = 0;  // 0: dense
  bool mixed_groups = false;
  KvCacheType kv_cache_type = KvCacheType::kFloat16;

  bool quantized_kv() const { return kv_cache_type != KvCacheType::kFloat16; }
};

// A model with everything optional: biases, q/k norms, an own head.
TinyModelOptions ModelOptions() {
  return {.model_type = "qwen3",
          .max_position_embeddings = 1024,
          .tie_word_embeddings = false,
          .attention_bias = true};
}

struct Fixture {
  std::unique_ptr<Engine> engine;
  ModelHandle model = 0;
  int prompt_step = 0;  // tokens that a request's prompt has more than the one before
};

Fixture Make(const Variant& variant, EngineOptions options) {
  options.kernels = variant.kernels;
  auto engine = Engine::Create(options);
  CHECK(engine.ok()) << engine.status();
  const std::unique_ptr<ModelSource> source =
      variant.bits == 0 ? std::make_unique<TinySource>(ModelOptions())
                        : PackedTinySource(ModelOptions(), variant.bits, /*symmetric=*/false,
                                           variant.mixed_groups);
  auto model = (*engine)->Load(*source, {.kv_cache_type = variant.kv_cache_type});
  CHECK(model.ok()) << model.status();
  // Up to 91 tokens; 166 where pages are larger.
  return {.engine = *std::move(engine),
          .model = *model,
          .prompt_step = variant.quantized_kv() ? 11 : 6};
}

GenerationRequest Request(const Fixture& fixture, int i) {
  // Every third greedy.
  std::vector<int32_t> prompt = Prompt(1 + fixture.prompt_step * i, i);
  return i % 3 == 0 ? Greedy(std::move(prompt), 30) : Sampled(std::move(prompt), 30, 100 + i);
}

std::vector<std::vector<int32_t>> RunAlone(Fixture& fixture) {
  std::vector<std::vector<int32_t>> ids;
  for (int i = 0; i < kNumRequests; ++i) {
    auto sink = Start(*fixture.engine, fixture.model, Request(fixture, i));
    EXPECT_OK(sink->Wait());
    ids.push_back(sink->ids());
  }
  return ids;
}

std::vector<std::vector<int32_t>> RunTogether(Fixture& fixture) {
  // The first one holds the engine at its first token until all are there: otherwise who runs
  // beside whom would be a matter of time.
  Event all_submitted;
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < kNumRequests; ++i) {
    CollectingSink::Hook hold;
    if (i == 0) hold = [&](CollectingSink&) { all_submitted.Wait(); };
    sinks.push_back(Start(*fixture.engine, fixture.model, Request(fixture, i), hold));
  }
  all_submitted.Notify();
  std::vector<std::vector<int32_t>> ids;
  for (const auto& sink : sinks) {
    EXPECT_OK(sink->Wait());
    ids.push_back(sink->ids());
  }
  return ids;
}

// All logits of `tokens` as they lie in memory.
std::vector<float> Score(Fixture& fixture, const std::vector<int32_t>& tokens) {
  std::vector<float> all;
  EXPECT_OK(fixture.engine->Score(fixture.model, tokens, [&](int, absl::Span<const float> logits) {
    all.insert(all.end(), logits.begin(), logits.end());
  }));
  return all;
}

bool BitEqual(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class BatchInvarianceTest : public testing::TestWithParam<Variant> {};
// Preemption takes other requests where pages are larger.
class HalfKvInvarianceTest : public BatchInvarianceTest {};
class QuantizedKvInvarianceTest : public BatchInvarianceTest {};

TEST_P(BatchInvarianceTest, TokensAreEqualAloneAndAmongOthersAndHoweverPrefillIsCut) {
  Fixture alone = Make(GetParam(), {.kv_cache_bytes = 8 << 20});
  const auto wanted = RunAlone(alone);
  for (const auto& ids : wanted) ASSERT_EQ(ids.size(), 30u);
  for (const int max_step_tokens : {512, 33, 16}) {
    Fixture together = Make(GetParam(), {.num_threads = 2,
                                         .page_tokens = max_step_tokens == 33 ? 5 : 16,
                                         .kv_cache_bytes = 8 << 20,
                                         .max_step_tokens = max_step_tokens,
                                         .max_sequences = 16});
    EXPECT_EQ(RunTogether(together), wanted) << max_step_tokens << " tokens a step";
  }
}

TEST_P(BatchInvarianceTest, LogitsAreEqualHoweverTheyAreCutAndWhoeverRunsBeside) {
  const std::vector<int32_t> tokens = Prompt(150, 3);
  Fixture whole = Make(GetParam(), {.kv_cache_bytes = 8 << 20});
  const std::vector<float> wanted = Score(whole, tokens);
  ASSERT_EQ(wanted.size(), 150u * 300u);
  for (const int max_step_tokens : {1, 7, 64}) {
    Fixture cut = Make(GetParam(), {.num_threads = 2,
                                    .page_tokens = 4,
                                    .kv_cache_bytes = 8 << 20,
                                    .max_step_tokens = max_step_tokens,
                                    .max_sequences = 1});
    EXPECT_TRUE(BitEqual(Score(cut, tokens), wanted)) << max_step_tokens << " tokens a step";
  }
  std::vector<std::shared_ptr<CollectingSink>> others;
  for (int i = 0; i < kNumRequests; ++i) {
    others.push_back(Start(*whole.engine, whole.model, Request(whole, i)));
  }
  EXPECT_TRUE(BitEqual(Score(whole, tokens), wanted));
  for (const auto& other : others) EXPECT_OK(other->Wait());
}

TEST_P(HalfKvInvarianceTest, PreemptionChangesNothing) {
  Fixture roomy = Make(GetParam(), {.kv_cache_bytes = 8 << 20});
  const auto wanted = RunAlone(roomy);
  // The longest request alone fills most of it.
  ASSERT_OK_AND_ASSIGN(const ModelInfo info, roomy.engine->Info(roomy.model));
  const int64_t token_bytes = int64_t{4} * info.config.num_hidden_layers * info.config.kv_size();
  Fixture tight = Make(GetParam(), {.num_threads = 2,
                                    .page_tokens = 4,
                                    .kv_cache_bytes = 128 * token_bytes,
                                    .max_step_tokens = 48,
                                    .max_sequences = 16});
  EXPECT_EQ(RunTogether(tight), wanted);
  EXPECT_GT(tight.engine->Stats().preemptions, 0);
  EXPECT_EQ(tight.engine->Stats().kv_pages_used, 0);
}

TEST_P(QuantizedKvInvarianceTest, PreemptionChangesNothing) {
  // Two run in memory that is enough for one and a half; the third waits.
  const auto run = [](Fixture& fixture, bool together) {
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    std::vector<std::vector<int32_t>> ids;
    for (int i = 0; i < 3; ++i) {
      sinks.push_back(
          Start(*fixture.engine, fixture.model, Sampled(Prompt(40 + 30 * i, i), 700, 100 + i)));
      if (!together) {
        EXPECT_OK(sinks.back()->Wait());
      }
    }
    for (const auto& sink : sinks) {
      EXPECT_OK(sink->Wait());
      ids.push_back(sink->ids());
    }
    return ids;
  };
  Fixture roomy = Make(GetParam(), {.kv_cache_bytes = 8 << 20, .prefix_cache = false});
  const auto wanted = run(roomy, /*together=*/false);
  ASSERT_OK_AND_ASSIGN(const ModelInfo info, roomy.engine->Info(roomy.model));
  const int64_t half_page_bytes =
      int64_t{4} * info.config.num_hidden_layers * info.config.kv_size() * 64;
  // Of them two for the pages being filled; the rest has 17 pages of int8 or 18 of int4.
  const int64_t kv_cache_bytes = GetParam().kv_cache_type == KvCacheType::kInt8
                                     ? 12 * half_page_bytes - 1
                                     : 8 * half_page_bytes;
  Fixture tight = Make(GetParam(), {.num_threads = 2,
                                    .kv_cache_bytes = kv_cache_bytes,
                                    .max_step_tokens = 48,
                                    .max_sequences = 16});
  EXPECT_EQ(run(tight, /*together=*/true), wanted);
  EXPECT_GT(tight.engine->Stats().preemptions, 0);
  EXPECT_EQ(tight.engine->Stats().kv_pages_used, 0);
}

TEST_P(BatchInvarianceTest, ACachedPrefixChangesNothing) {
  const int page_tokens = GetParam().quantized_kv() ? 64 : 4;
  // Of the shared beginning: what the first request has of it, and each later one more.
  const auto [whole, least, more] =
      GetParam().quantized_kv() ? std::tuple(230, 80, 50) : std::tuple(61, 22, 13);
  Fixture fixture = Make(GetParam(), {.page_tokens = 4, .kv_cache_bytes = 8 << 20});
  const std::vector<int32_t> beginning = Prompt(whole, 3);
  for (int i = 0; i < 4; ++i) {
    // The same beginning up to somewhere inside a page, or all of it.
    std::vector<int32_t> prompt(beginning.begin(),
                                beginning.begin() + (i < 3 ? least + more * i : whole));
    for (int32_t id : Prompt(i < 3 ? 9 : 0, 50 + i)) prompt.push_back(id);
    Fixture fresh = Make(GetParam(), {.kv_cache_bytes = 8 << 20, .prefix_cache = false});
    const GenerationRequest request =
        i % 2 == 0 ? Greedy(prompt, 20) : Sampled(prompt, 20, 100 + i);
    const auto wanted = Start(*fresh.engine, fresh.model, request);
    const auto got = Start(*fixture.engine, fixture.model, request);
    ASSERT_OK(wanted->Wait());
    ASSERT_OK(got->Wait());
    EXPECT_EQ(got->ids(), wanted->ids());
    EXPECT_EQ(wanted->result()->cached_prompt_tokens, 0);
    EXPECT_EQ(got->result()->cached_prompt_tokens > 0, i > 0) << i;
    // Again: found whole, but for the last token's page.
    const auto again = Start(*fixture.engine, fixture.model, request);
    ASSERT_OK(again->Wait());
    EXPECT_EQ(again->ids(), wanted->ids());
    const int size = static_cast<int>(prompt.size());
    EXPECT_EQ(again->result()->cached_prompt_tokens, (size - 1) / page_tokens * page_tokens);
  }
  const EngineStats stats = fixture.engine->Stats();
  EXPECT_EQ(stats.kv_pages_used, 0);
  EXPECT_GT(stats.kv_pages_cached, 0);
  EXPECT_GT(stats.cached_prompt_tokens, 0);
}

std::string VariantName(const testing::TestParamInfo<Variant>& info) { return info.param.name; }

// Every table of this CPU; of the slow one only what differs most.
std::vector<Variant> HalfKvVariants() {
  std::vector<Variant> variants;
  for (const kernels::KernelTable* table : kernels::AvailableKernels()) {
    const std::string name = table->name;
    variants.push_back({name + "_dense", name});
    variants.push_back({name + "_3bit_mixed", name, 3, true});
    if (name == "scalar") continue;
    variants.push_back({name + "_2bit", name, 2});
    variants.push_back({name + "_4bit", name, 4});
  }
  return variants;
}

std::vector<Variant> QuantizedKvVariants() {
  std::vector<Variant> variants;
  for (const kernels::KernelTable* table : kernels::AvailableKernels()) {
    const std::string name = table->name;
    variants.push_back({name + "_kv_int4", name, 4, false, KvCacheType::kInt4});
    if (name == "scalar") continue;
    variants.push_back({name + "_kv_int8", name, 4, false, KvCacheType::kInt8});
  }
  return variants;
}

INSTANTIATE_TEST_SUITE_P(HalfKv, BatchInvarianceTest, testing::ValuesIn(HalfKvVariants()),
                         VariantName);
INSTANTIATE_TEST_SUITE_P(QuantizedKv, BatchInvarianceTest, testing::ValuesIn(QuantizedKvVariants()),
                         VariantName);
INSTANTIATE_TEST_SUITE_P(All, HalfKvInvarianceTest, testing::ValuesIn(HalfKvVariants()),
                         VariantName);
INSTANTIATE_TEST_SUITE_P(All, QuantizedKvInvarianceTest, testing::ValuesIn(QuantizedKvVariants()),
                         VariantName);

}  // namespace
}  // namespace quern
