// What one request sees of the engine.

#include "core/engine/engine.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

class EngineTest : public testing::Test {
 protected:
  void SetUp() override { Make({.num_threads = 2, .kv_cache_bytes = 8 << 20}, {}); }

  void Make(const EngineOptions& options, const TinyModelOptions& model_options) {
    engine_.reset();
    auto engine = Engine::Create(options, nullptr, &clock_);
    ASSERT_OK(engine);
    engine_ = *std::move(engine);
    auto model = engine_->Load(TinySource(model_options));
    ASSERT_OK(model);
    model_ = *model;
  }

  std::shared_ptr<CollectingSink> Run(GenerationRequest request,
                                      CollectingSink::Hook on_tokens = {}) {
    auto sink = Start(*engine_, model_, std::move(request), std::move(on_tokens));
    sink->Wait();
    return sink;
  }

  ManualClock clock_;
  std::unique_ptr<Engine> engine_;
  ModelHandle model_ = 0;
};

TEST_F(EngineTest, GreedyGenerationIsDeterministic) {
  const auto first = Run(Greedy(Prompt(9, 1), 40));
  ASSERT_OK(first->result());
  EXPECT_EQ(first->ids().size(), 40u);
  EXPECT_EQ(first->result()->finish_reason, FinishReason::kMaxOutputTokens);
  EXPECT_EQ(first->result()->prompt_tokens, 9);
  EXPECT_EQ(first->result()->output_tokens, 40);
  EXPECT_EQ(Run(Greedy(Prompt(9, 1), 40))->ids(), first->ids());
}

TEST_F(EngineTest, GreedyTakesTheArgMaxOfScore) {
  const auto sink = Run(Greedy(Prompt(9, 1), 12));
  std::vector<int32_t> tokens = Prompt(9, 1);
  tokens.insert(tokens.end(), sink->ids().begin(), sink->ids().end());
  int scored = 0;
  ASSERT_OK(engine_->Score(model_, tokens, [&](int position, absl::Span<const float> logits) {
    EXPECT_EQ(position, scored++);
    EXPECT_EQ(logits.size(), 300u);
    if (position < 8 || position + 1 >= static_cast<int>(tokens.size())) return;
    EXPECT_EQ(std::max_element(logits.begin(), logits.end()) - logits.begin(),
              tokens[position + 1]);
  }));
  EXPECT_EQ(scored, 21);
}

TEST_F(EngineTest, ScoreFromAPositionGivesTheSameLogits) {
  const std::vector<int32_t> tokens = Prompt(40, 1);
  std::vector<std::vector<float>> all;
  ASSERT_OK(engine_->Score(model_, tokens, [&](int, absl::Span<const float> logits) {
    all.emplace_back(logits.begin(), logits.end());
  }));
  for (int first : {1, 17, 39}) {
    int next = first;
    ASSERT_OK(
        engine_->Score(model_, tokens, first, [&](int position, absl::Span<const float> logits) {
          ASSERT_EQ(position, next++);
          EXPECT_EQ(std::vector<float>(logits.begin(), logits.end()), all[position]);
        }));
    EXPECT_EQ(next, 40);
  }
  for (int first : {-1, 40}) {
    EXPECT_THAT(engine_->Score(model_, tokens, first, [](int, absl::Span<const float>) {}),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         testing::HasSubstr(absl::StrCat("from position ", first))));
  }
}

TEST_F(EngineTest, ASeedGivesTheSameTextAndAnotherSeedAnother) {
  const auto first = Run(Sampled(Prompt(5, 1), 30, 7));
  EXPECT_EQ(first->result()->seed, 7u);
  EXPECT_EQ(Run(Sampled(Prompt(5, 1), 30, 7))->ids(), first->ids());
  EXPECT_NE(Run(Sampled(Prompt(5, 1), 30, 8))->ids(), first->ids());
}

TEST_F(EngineTest, AChosenSeedIsReportedAndRepeats) {
  GenerationRequest request = Sampled(Prompt(5, 1), 30, 0);
  request.sampling.seed.reset();
  const auto first = Run(request);
  request.sampling.seed = first->result()->seed;
  EXPECT_EQ(Run(request)->ids(), first->ids());
}

TEST_F(EngineTest, TextIsWhatTheIdsDecodeTo) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, engine_->GetTokenizer(model_));
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto sink = Run(Sampled(Prompt(3, 1), 60, seed));
    StreamDecoder decoder(tokenizer, /*continues_text=*/true);
    std::string text;
    for (const int32_t id : sink->ids()) text += decoder.Append(id);
    text += decoder.Finish();
    EXPECT_EQ(sink->text(), text);
  }
}

TEST_F(EngineTest, EndOfTextEndsTheTextAndIsNotHandedOver) {
  // The ids of a text that goes on, then one of them as the end.
  const auto whole = Run(Sampled(Prompt(5, 1), 30, 7));
  GenerationRequest request = Sampled(Prompt(5, 1), 30, 7);
  request.ignore_end_of_text = false;
  request.stop_ids = {whole->ids()[12]};
  const auto sink = Run(request);
  ASSERT_OK(sink->result());
  const auto end = std::find(whole->ids().begin(), whole->ids().end(), whole->ids()[12]);
  EXPECT_EQ(sink->ids(), std::vector<int32_t>(whole->ids().begin(), end));
  EXPECT_EQ(sink->result()->finish_reason, FinishReason::kEndOfText);
  EXPECT_EQ(sink->result()->output_tokens, end - whole->ids().begin());
  // The model's own end of text: with top-k off, a long sample meets it.
  for (uint64_t seed = 0; seed < 30; ++seed) {
    GenerationRequest own = Sampled(Prompt(5, 1), 100, seed);
    own.ignore_end_of_text = false;
    EXPECT_THAT(Run(own)->ids(), testing::Not(testing::Contains(kTinyImEnd)));
  }
}

TEST_F(EngineTest, StopSequencesEndTheTextWhereverTokensMeet) {
  int found = 0;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    const std::string whole = Run(Sampled(Prompt(5, 1), 40, seed))->text();
    // Stop sequences of several lengths at several places; whole characters only.
    for (size_t begin = 3; begin + 8 < whole.size(); begin += 5) {
      const size_t length = 1 + begin % 7;
      const auto starts_character = [&](size_t i) { return (whole[i] & 0xc0) != 0x80; };
      if (!starts_character(begin) || !starts_character(begin + length)) continue;
      GenerationRequest request = Sampled(Prompt(5, 1), 40, seed);
      request.stop_sequences = {"never in the text", whole.substr(begin, length)};
      const auto sink = Run(request);
      ASSERT_OK(sink->result());
      EXPECT_EQ(sink->text(), whole.substr(0, whole.find(request.stop_sequences[1])));
      EXPECT_EQ(sink->result()->finish_reason, FinishReason::kStopSequence);
      EXPECT_EQ(sink->result()->matched_stop_sequence, request.stop_sequences[1]);
      ++found;
    }
  }
  EXPECT_GT(found, 20);
}

TEST_F(EngineTest, HeldBackTextComesWhenTheRequestEnds) {
  const std::string whole = Run(Greedy(Prompt(5, 1), 10))->text();
  ASSERT_FALSE(whole.empty());
  // A stop sequence that begins like the end of the text but goes on differently.
  size_t begin = whole.size() - 1;
  while ((whole[begin] & 0xc0) == 0x80) --begin;
  GenerationRequest request = Greedy(Prompt(5, 1), 10);
  request.stop_sequences = {whole.substr(begin) + "\x01\x02\x03"};
  const auto sink = Run(request);
  EXPECT_EQ(sink->text(), whole);
  EXPECT_EQ(sink->result()->finish_reason, FinishReason::kMaxOutputTokens);
}

TEST_F(EngineTest, TheContextFillsUp) {
  const auto sink = Run(Greedy(Prompt(250, 1), 0));
  ASSERT_OK(sink->result());
  EXPECT_EQ(sink->result()->finish_reason, FinishReason::kContextFull);
  EXPECT_EQ(sink->ids().size(), 7u);  // 6 beside the prompt, and one that needs no slot
  EXPECT_EQ(Run(Greedy(Prompt(256, 1), 0))->ids().size(), 1u);
}

TEST_F(EngineTest, PagesLimitTheContextAndTheInfoSaysSo) {
  // 2 layers x keys and values x 32 half floats = 256 bytes a token: 64 tokens.
  Make({.kv_cache_bytes = 256 * 64}, {});
  ASSERT_OK_AND_ASSIGN(const ModelInfo info, engine_->Info(model_));
  EXPECT_EQ(info.max_context_tokens, 64);
  EXPECT_EQ(info.kv_bytes, 256 * 64);
  EXPECT_EQ(Run(Greedy(Prompt(60, 1), 0))->ids().size(), 5u);
  EXPECT_THAT(
      engine_->Submit(model_, Greedy(Prompt(65, 1), 1), std::make_shared<CollectingSink>()),
      StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("the model's is 256")));
}

TEST_F(EngineTest, BadRequestsAreRefusedByName) {
  struct Case {
    std::function<void(GenerationRequest&)> change;
    std::string message;
  };
  const Case cases[] = {
      {[](auto& r) { r.prompt.clear(); }, "no tokens"},
      {[](auto& r) { r.prompt[3] = 300; }, "prompt token 3 is 300"},
      {[](auto& r) { r.prompt[0] = -1; }, "prompt token 0 is -1"},
      {[](auto& r) { r.prompt.resize(257, 1); }, "257 tokens, the context 256"},
      {[](auto& r) { r.max_output_tokens = -1; }, "max_output_tokens"},
      {[](auto& r) { r.sampling.temperature = std::numeric_limits<float>::infinity(); },
       "temperature"},
      {[](auto& r) { r.sampling.typical_p = 0; }, "typical_p"},
      {[](auto& r) { r.sampling.repetition_penalty = 0; }, "repetition_penalty"},
      {[](auto& r) { r.sampling.presence_penalty = 101; }, "presence_penalty"},
      {[](auto& r) { r.sampling.frequency_penalty = std::nanf(""); }, "frequency_penalty"},
      {[](auto& r) { r.sampling.logit_bias[300] = 1; }, "logit bias for token 300"},
      {[](auto& r) { r.sampling.logit_bias[7] = 101; }, "logit bias of token 7 is 101"},
      {[](auto& r) {
         for (int i = 0; i < 1025; ++i) r.sampling.logit_bias[i] = 1;
       },
       "number of logit biases is 1025"},
      {[](auto& r) { r.min_output_tokens = -1; }, "min_output_tokens is -1"},
      {[](auto& r) { r.min_output_tokens = 5; }, "min_output_tokens is 5, max_output_tokens 4"},
      {[](auto& r) { r.num_logprobs = 21; }, "num_logprobs is 21"},
      {[](auto& r) { r.stop_ids.assign(65, 1); }, "65 stop ids"},
      {[](auto& r) { r.stop_sequences.assign(5, "x"); }, "5 stop sequences"},
      {[](auto& r) { r.stop_sequences = {""}; }, "0 bytes"},
      {[](auto& r) { r.stop_sequences = {std::string(65, 'x')}; }, "65 bytes"},
  };
  for (const Case& bad : cases) {
    GenerationRequest request = Greedy(Prompt(9, 1), 4);
    bad.change(request);
    EXPECT_THAT(engine_->Submit(model_, request, std::make_shared<CollectingSink>()),
                StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr(bad.message)));
  }
  EXPECT_THAT(
      engine_->Submit(model_ + 1, Greedy(Prompt(9, 1), 4), std::make_shared<CollectingSink>()),
      StatusIs(absl::StatusCode::kNotFound, testing::_));
  EXPECT_THAT(engine_->Score(model_, {}, [](int, absl::Span<const float>) {}),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::_));
}

TEST_F(EngineTest, MinOutputTokensHoldsBackTheEnd) {
  GenerationRequest request = Greedy(Prompt(9, 1), 40);
  const auto free = Run(request);
  ASSERT_EQ(free->ids().size(), 40u);
  // What the model would say fourth ends the text now.
  request.ignore_end_of_text = false;
  request.stop_ids = {free->ids()[3]};
  const auto early = Run(request);
  ASSERT_OK(early->result());
  ASSERT_LT(early->ids().size(), 4u);
  request.min_output_tokens = 6;
  const auto held = Run(request);
  EXPECT_GE(held->ids().size(), 6u);
  EXPECT_THAT(std::vector<int32_t>(held->ids().begin(), held->ids().begin() + 6),
              testing::Not(testing::Contains(free->ids()[3])));
}

TEST_F(EngineTest, LogprobsAreThoseOfTheModel) {
  class LogprobSink final : public TokenSink {
   public:
    void OnLogprobs(const TokenLogprob& token, absl::Span<const TokenLogprob> best) override {
      tokens.push_back(token);
      most_probable.emplace_back(best.begin(), best.end());
    }
    void OnTokens(absl::Span<const int32_t> ids, absl::string_view) override {
      all_ids.insert(all_ids.end(), ids.begin(), ids.end());
      EXPECT_EQ(all_ids.size(), tokens.size()) << "logprobs come before their token";
    }
    void OnEnd(absl::StatusOr<GenerationResult> result) override {
      EXPECT_OK(result);
      done.Notify();
    }
    bool cancelled() const override { return false; }
    std::vector<TokenLogprob> tokens;
    std::vector<std::vector<TokenLogprob>> most_probable;
    std::vector<int32_t> all_ids;
    Event done;
  };
  GenerationRequest request = Sampled(Prompt(9, 1), 5, 11);
  request.sampling.repetition_penalty = 3;  // not seen in them
  request.num_logprobs = 3;
  auto sink = std::make_shared<LogprobSink>();
  ASSERT_OK(engine_->Submit(model_, request, sink));
  sink->done.Wait();
  std::vector<int32_t> tokens = request.prompt;
  tokens.insert(tokens.end(), sink->all_ids.begin(), sink->all_ids.end());
  ASSERT_OK(engine_->Score(model_, tokens, [&](int position, absl::Span<const float> logits) {
    const int i = position - 8;
    if (i < 0 || i >= 5) return;
    double sum = 0;
    for (float logit : logits) sum += std::exp(double{logit});
    EXPECT_EQ(sink->tokens[i].id, sink->all_ids[i]);
    EXPECT_NEAR(sink->tokens[i].logprob, logits[sink->all_ids[i]] - std::log(sum), 1e-4);
    std::vector<float> sorted(logits.begin(), logits.end());
    std::sort(sorted.rbegin(), sorted.rend());
    ASSERT_EQ(sink->most_probable[i].size(), 3u);
    for (int k = 0; k < 3; ++k) {
      EXPECT_NEAR(sink->most_probable[i][k].logprob, sorted[k] - std::log(sum), 1e-4);
    }
  }));
}

TEST_F(EngineTest, ADeadlineEndsARequestThatRuns) {
  GenerationRequest request = Greedy(Prompt(5, 1), 100);
  request.deadline = clock_.Now() + absl::Seconds(10);
  const auto sink = Run(request, [&](CollectingSink& s) {
    if (s.ids().size() == 3) clock_.Advance(absl::Seconds(11));
  });
  EXPECT_THAT(sink->result(),
              StatusIs(absl::StatusCode::kDeadlineExceeded, testing::HasSubstr("after 3 tokens")));
  EXPECT_EQ(sink->ids().size(), 3u);
  EXPECT_EQ(engine_->Stats().discarded_tokens, 5 + 2);
  EXPECT_EQ(engine_->Stats().kv_pages_used, 0);
}

TEST_F(EngineTest, ADeadlineThatHasPassedIsNotPrefilled) {
  GenerationRequest request = Greedy(Prompt(5, 1), 100);
  request.deadline = clock_.Now();
  EXPECT_THAT(Run(request)->result(), StatusIs(absl::StatusCode::kDeadlineExceeded, testing::_));
  EXPECT_EQ(engine_->Stats().prompt_tokens, 0);
}

TEST_F(EngineTest, ResultSaysHowLongItTook) {
  const auto sink = Run(Greedy(Prompt(5, 1), 4),
                        [&](CollectingSink&) { clock_.Advance(absl::Milliseconds(10)); });
  EXPECT_EQ(sink->result()->queue_duration, absl::ZeroDuration());
  EXPECT_EQ(sink->result()->time_to_first_token, absl::ZeroDuration());
  EXPECT_EQ(sink->result()->total_duration, absl::Milliseconds(30));
}

TEST_F(EngineTest, ASinkThatThrowsFailsAlone) {
  auto good = Start(*engine_, model_, Greedy(Prompt(5, 1), 50));
  const auto bad = Run(Greedy(Prompt(5, 2), 50), [](CollectingSink& s) {
    if (s.ids().size() == 4) throw std::runtime_error("a broken sink");
  });
  EXPECT_THAT(bad->result(),
              StatusIs(absl::StatusCode::kInternal, testing::HasSubstr("a broken sink")));
  EXPECT_OK(good->Wait());
  EXPECT_EQ(good->ids().size(), 50u);
  EXPECT_THAT(engine_->Score(model_, Prompt(5, 1),
                             [](int, absl::Span<const float>) { throw std::runtime_error("x"); }),
              StatusIs(absl::StatusCode::kInternal, testing::HasSubstr("on_logits threw")));
}

TEST_F(EngineTest, LogitsThatAreNotFiniteFailTheRequest) {
  TinySource source({});
  for (float& value : source.weights[std::string(kFinalNormName)].values) value = 3e38f;
  ASSERT_OK_AND_ASSIGN(const ModelHandle broken, engine_->Load(source));
  auto sink = Start(*engine_, broken, Greedy(Prompt(5, 1), 4));
  EXPECT_THAT(sink->Wait(),
              StatusIs(absl::StatusCode::kInternal, testing::HasSubstr("not finite")));
  EXPECT_OK(Run(Greedy(Prompt(5, 1), 4))->result());
}

TEST_F(EngineTest, AModelWithoutATokenizerTakesAndGivesIds) {
  TinySource source({});
  source.drop_tokenizer();
  ASSERT_OK_AND_ASSIGN(const ModelHandle model, engine_->Load(source));
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, engine_->GetTokenizer(model));
  EXPECT_EQ(tokenizer, nullptr);
  auto sink = Start(*engine_, model, Greedy(Prompt(5, 1), 6));
  EXPECT_OK(sink->Wait());
  EXPECT_EQ(sink->ids().size(), 6u);
  EXPECT_EQ(sink->text(), "");
  GenerationRequest request = Greedy(Prompt(5, 1), 6);
  request.stop_sequences = {"x"};
  EXPECT_THAT(engine_->Submit(model, request, std::make_shared<CollectingSink>()),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("stop_ids")));
  EXPECT_THAT(engine_->EncodeChat(model, {{.content = "hi"}}),
              StatusIs(absl::StatusCode::kFailedPrecondition, testing::_));
}

TEST_F(EngineTest, ChatIsEncodedInTheModelsFormat) {
  ASSERT_OK_AND_ASSIGN(const ModelInfo info, engine_->Info(model_));
  EXPECT_EQ(info.chat_format, ChatFormat::kChatMl);
  ASSERT_OK_AND_ASSIGN(const auto ids, engine_->EncodeChat(model_, {{.content = "hi"}}));
  EXPECT_EQ(ids.front(), kTinyImStart);
  EXPECT_THAT(ids, testing::Contains(kTinyImEnd));
}

TEST(EngineOptionsTest, ValidateNamesTheField) {
  const std::pair<EngineOptions, std::string> cases[] = {
      {{.num_threads = 0}, "num_threads"},
      {{.page_tokens = 0}, "page_tokens"},
      {{.kv_cache_bytes = 0}, "kv_cache_bytes"},
      {{.max_step_tokens = 3, .max_sequences = 4}, "max_step_tokens"},
      {{.max_sequences = 0}, "max_sequences"},
      {{.max_queued_requests = -1}, "max_queued_requests"},
      {{.kernels = "abacus"}, "kernels"}};
  for (const auto& [options, field] : cases) {
    EXPECT_THAT(Engine::Create(options),
                StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr(field)));
  }
  EXPECT_OK(EngineOptions{}.Validate());
}

TEST(EngineLoadTest, DamagedOrMisshapenModelsAreRefusedByTensor) {
  ASSERT_OK_AND_ASSIGN(const auto engine, Engine::Create({.kv_cache_bytes = 1 << 20}));
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  TinySource damaged({});
  damaged.weights[name].values[7] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(engine->Load(damaged),
              StatusIs(absl::StatusCode::kDataLoss,
                       testing::AllOf(testing::HasSubstr(name), testing::HasSubstr("7"))));
  TinySource misshapen({});
  misshapen.weights[name].shape = {64, 172};
  EXPECT_THAT(engine->Load(misshapen),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr(name)));
  TinySource incomplete({});
  incomplete.weights.erase(name);
  EXPECT_THAT(engine->Load(incomplete),
              StatusIs(absl::StatusCode::kNotFound, testing::HasSubstr(name)));
  ASSERT_OK_AND_ASSIGN(const auto small, Engine::Create({.kv_cache_bytes = 100}));
  EXPECT_THAT(small->Load(TinySource({})),
              StatusIs(absl::StatusCode::kResourceExhausted, testing::HasSubstr("kv_cache_bytes")));
}

}  // namespace
}  // namespace quern
