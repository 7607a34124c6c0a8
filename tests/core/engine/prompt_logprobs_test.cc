// Log-probabilities of the prompt's own tokens.

#include "core/engine/engine.h"
#include "core/engine/sampler.h"
#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

struct Logprob {
  TokenLogprob token;
  std::vector<TokenLogprob> most_probable;
};

bool Same(const TokenLogprob& a, const TokenLogprob& b) {
  return a.id == b.id && a.logprob == b.logprob;
}

class PromptLogprobSink final : public TokenSink {
 public:
  void OnPromptLogprobs(const TokenLogprob& token, absl::Span<const TokenLogprob> best) override {
    EXPECT_TRUE(ids.empty()) << "the prompt's come before the answer";
    logprobs.push_back({token, {best.begin(), best.end()}});
  }
  void OnTokens(absl::Span<const int32_t> more, absl::string_view) override {
    ids.insert(ids.end(), more.begin(), more.end());
  }
  void OnEnd(absl::StatusOr<GenerationResult> end) override {
    result = std::move(end);
    done.Notify();
  }
  bool cancelled() const override { return false; }

  std::vector<Logprob> logprobs;
  std::vector<int32_t> ids;
  absl::StatusOr<GenerationResult> result = absl::UnknownError("not ended");
  Event done;
};

struct PromptLogprobsFixture {
  explicit PromptLogprobsFixture(EngineOptions options) {
    auto created = Engine::Create(options);
    CHECK(created.ok()) << created.status();
    engine = *std::move(created);
    model = engine->Load(TinySource(TinyModelOptions{})).value();
  }

  std::shared_ptr<PromptLogprobSink> Submit(GenerationRequest request) {
    auto sink = std::make_shared<PromptLogprobSink>();
    EXPECT_OK(engine->Submit(model, std::move(request), sink));
    return sink;
  }

  // What Score says of `tokens`.
  std::vector<Logprob> Scored(const std::vector<int32_t>& tokens, int num_most_probable) {
    std::vector<Logprob> logprobs = {{.token = {.id = tokens[0]}}};
    SamplerScratch scratch;
    scratch.Reserve(300);
    EXPECT_OK(engine->Score(model, tokens, [&](int position, absl::Span<const float> logits) {
      if (position + 1 == static_cast<int>(tokens.size())) return;
      Logprob next{.most_probable = std::vector<TokenLogprob>(num_most_probable)};
      next.token =
          Logprobs(logits, tokens[position + 1], absl::MakeSpan(next.most_probable), scratch);
      logprobs.push_back(next);
    }));
    return logprobs;
  }

  std::unique_ptr<Engine> engine;
  ModelHandle model = 0;
};

void ExpectSame(const std::vector<Logprob>& got, const std::vector<Logprob>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(Same(got[i].token, wanted[i].token)) << i;
    EXPECT_TRUE(std::equal(got[i].most_probable.begin(), got[i].most_probable.end(),
                           wanted[i].most_probable.begin(), wanted[i].most_probable.end(), Same))
        << i;
  }
}

GenerationRequest WithPromptLogprobs(GenerationRequest request, int count) {
  request.num_prompt_logprobs = count;
  return request;
}

TEST(PromptLogprobsTest, AreThoseOfScoreBitByBit) {
  PromptLogprobsFixture fixture({.num_threads = 2, .kv_cache_bytes = 8 << 20});
  const std::vector<int32_t> prompt = Prompt(200, 1);
  const auto wanted = fixture.Scored(prompt, 3);
  const auto plain = fixture.Submit(Greedy(prompt, 8));
  plain->done.Wait();
  // Twice: what the prefix cache holds by then changes nothing.
  for (int i = 0; i < 2; ++i) {
    const auto sink = fixture.Submit(WithPromptLogprobs(Greedy(prompt, 8), 3));
    sink->done.Wait();
    ASSERT_OK(sink->result);
    ExpectSame(sink->logprobs, wanted);
    EXPECT_EQ(sink->ids, plain->ids);
    EXPECT_EQ(sink->result->cached_prompt_tokens, 0);
  }
}

// In pieces, among others, with pages for little more than itself.
TEST(PromptLogprobsTest, DoNotDependOnWhatElseRuns) {
  const std::vector<int32_t> prompt = Prompt(150, 2);
  PromptLogprobsFixture whole({.kv_cache_bytes = 8 << 20});
  const auto wanted = whole.Scored(prompt, 2);
  const int64_t kv_bytes_a_token = 2 * 2 * 2 * 16 * 4;  // keys and values, blocks, heads, floats
  PromptLogprobsFixture tight(
      {.kv_cache_bytes = kv_bytes_a_token * 208, .max_step_tokens = 4, .max_sequences = 3});
  const auto older = tight.Submit(Greedy(Prompt(20, 3), 120));
  const auto younger = tight.Submit(WithPromptLogprobs(Greedy(prompt, 4), 2));
  const auto other = tight.Submit(WithPromptLogprobs(Greedy(Prompt(30, 4), 4), 0));
  for (const auto& sink : {older, younger, other}) {
    sink->done.Wait();
    ASSERT_OK(sink->result);
  }
  EXPECT_EQ(older->ids.size(), 120u);
  ExpectSame(younger->logprobs, wanted);
  ASSERT_EQ(other->logprobs.size(), 30u);
  EXPECT_TRUE(other->logprobs[29].most_probable.empty());
}

TEST(PromptLogprobsTest, PromptOnlyGeneratesNothing) {
  PromptLogprobsFixture fixture({.kv_cache_bytes = 8 << 20});
  for (const int length : {1, 2, 40}) {
    GenerationRequest request{.prompt = Prompt(length, 5), .prompt_only = true};
    request.num_prompt_logprobs = 1;
    const auto sink = fixture.Submit(request);
    sink->done.Wait();
    ASSERT_OK(sink->result);
    EXPECT_EQ(sink->result->finish_reason, FinishReason::kMaxOutputTokens);
    EXPECT_EQ(sink->result->output_tokens, 0);
    EXPECT_TRUE(sink->ids.empty());
    ExpectSame(sink->logprobs, fixture.Scored(request.prompt, 1));
    request.num_prompt_logprobs.reset();
    const auto without = fixture.Submit(request);
    without->done.Wait();
    ASSERT_OK(without->result);
    EXPECT_TRUE(without->logprobs.empty());
    EXPECT_TRUE(without->ids.empty());
  }
  EXPECT_EQ(fixture.engine->Stats().generated_tokens, 0);
}

TEST(PromptLogprobsTest, AreRefusedOutOfRange) {
  PromptLogprobsFixture fixture({.kv_cache_bytes = 8 << 20});
  const auto refused = [&](GenerationRequest request, const char* message) {
    EXPECT_THAT(
        fixture.engine->Submit(fixture.model, request, std::make_shared<PromptLogprobSink>()),
        StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr(message)));
  };
  refused(WithPromptLogprobs(Greedy(Prompt(3, 1), 4), 21), "num_prompt_logprobs is 21");
  refused(WithPromptLogprobs(Greedy(Prompt(3, 1), 4), -1), "num_prompt_logprobs is -1");
  GenerationRequest prompt_only = Greedy(Prompt(3, 1), 4);
  prompt_only.prompt_only = true;
  refused(prompt_only, "prompt_only is set, max_output_tokens is 4");
}

}  // namespace
}  // namespace quern
