// Guessed or not, an answer is the same; guesses only save steps.

#include <array>

#include "core/engine/event.h"
#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

enum class Guesses { kNone, kNgram, kSameModel, kFewerBits };

class SpeculationTest : public testing::Test {
 protected:
  struct Answers {
    std::vector<std::vector<int32_t>> ids;
    std::vector<std::string> texts;
    std::vector<FinishReason> reasons;
    EngineStats stats;
    bool operator==(const Answers& other) const {
      return ids == other.ids && texts == other.texts && reasons == other.reasons;
    }
  };

  // The answers to `requests`, all at once, each round on the same engine.
  static Answers Run(Guesses guesses, const std::vector<GenerationRequest>& requests,
                     EngineOptions options = {}, int num_rounds = 1, int max_guesses = 4,
                     KvCacheType kv_cache_type = KvCacheType::kFloat16) {
    auto engine = Engine::Create(options);
    CHECK(engine.ok()) << engine.status();
    const auto draft = PackedTinySource({}, guesses == Guesses::kFewerBits ? 2 : 4);
    LoadOptions load{.kv_cache_type = kv_cache_type};
    if (guesses != Guesses::kNone) load.speculation.max_guesses = max_guesses;
    if (guesses > Guesses::kNgram) load.speculation.draft = draft.get();
    const auto model = (*engine)->Load(*PackedTinySource({}, 4), load);
    CHECK(model.ok()) << model.status();
    Answers answers;
    for (int round = 0; round < num_rounds; ++round) {
      Event all_submitted;
      std::vector<std::shared_ptr<CollectingSink>> sinks;
      for (size_t i = 0; i < requests.size(); ++i) {
        CollectingSink::Hook hold;
        if (i == 0) hold = [&](CollectingSink&) { all_submitted.Wait(); };
        sinks.push_back(Start(**engine, *model, requests[i], hold));
      }
      all_submitted.Notify();
      for (const auto& sink : sinks) {
        const absl::StatusOr<GenerationResult>& result = sink->Wait();
        EXPECT_OK(result);
        if (!result.ok()) continue;
        EXPECT_EQ(result->output_tokens, static_cast<int>(sink->ids().size()));
        answers.ids.push_back(sink->ids());
        answers.texts.push_back(sink->text());
        answers.reasons.push_back(result->finish_reason);
      }
    }
    answers.stats = (*engine)->Stats();
    EXPECT_EQ(answers.stats.kv_pages_used, 0);
    return answers;
  }

  // Everything that a draw may depend on.
  static std::vector<GenerationRequest> Requests() {
    std::vector<GenerationRequest> requests;
    for (int i = 0; i < 3; ++i) {
      requests.push_back(Greedy(Prompt(1 + 40 * i, i), 60));
      requests.push_back(Sampled(Prompt(3 + 17 * i, i), 50 + i, 100 + i));
    }
    requests[0].sampling.repetition_penalty = 1.3F;
    requests[1].sampling.top_p = 0.3F;
    requests[2].stop_sequences = {"a", "in"};
    requests[3].sampling.frequency_penalty = 0.5F;
    requests[4].min_output_tokens = 10;
    requests[4].ignore_end_of_text = false;
    requests[5].num_logprobs = 3;
    requests[5].sampling.temperature = 0.2F;
    // A text that repeats itself, for prompt lookup.
    std::vector<int32_t> prompt;
    for (int i = 0; i < 60; ++i) prompt.push_back(40 + i % 5);
    requests.push_back(Greedy(prompt, 60));
    return requests;
  }
};

TEST_F(SpeculationTest, AnswersAreTheSame) {
  const Answers plain = Run(Guesses::kNone, Requests());
  EXPECT_EQ(plain.stats.guessed_tokens, 0);
  for (const Guesses guesses : {Guesses::kNgram, Guesses::kSameModel, Guesses::kFewerBits}) {
    for (const int max_guesses : {1, 4, kMaxGuesses}) {
      SCOPED_TRACE(absl::StrCat(static_cast<int>(guesses), " ", max_guesses));
      const Answers guessed = Run(guesses, Requests(), {}, 1, max_guesses);
      EXPECT_TRUE(guessed == plain);
      EXPECT_GT(guessed.stats.guessed_tokens, 0);
      EXPECT_EQ(guessed.stats.generated_tokens, plain.stats.generated_tokens);
    }
  }
}

TEST_F(SpeculationTest, EachAloneGivesTheSameToo) {
  for (const GenerationRequest& request : Requests()) {
    const Answers plain = Run(Guesses::kNone, {request});
    for (const Guesses guesses : {Guesses::kNgram, Guesses::kSameModel, Guesses::kFewerBits}) {
      EXPECT_TRUE(Run(guesses, {request}) == plain) << static_cast<int>(guesses);
    }
  }
}

TEST_F(SpeculationTest, APerfectDraftModelIsAlwaysRight) {
  for (const bool greedy : {true, false}) {
    const GenerationRequest request =
        greedy ? Greedy(Prompt(20, 1), 51) : Sampled(Prompt(20, 1), 51, 9);
    const Answers guessed = Run(Guesses::kSameModel, {request});
    EXPECT_EQ(guessed.stats.accepted_guesses, guessed.stats.guessed_tokens);
    // The first token is the prefill's; then each step gives four guesses and one more.
    EXPECT_EQ(guessed.stats.steps, 1 + 50 / 5);
    EXPECT_EQ(guessed.stats.accepted_guesses, 40);
  }
}

TEST_F(SpeculationTest, RepeatedTextIsLookedUp) {
  // The tiny model ends up repeating itself.
  const Answers guessed = Run(Guesses::kNgram, {Greedy(Prompt(20, 1), 200)});
  EXPECT_GT(guessed.stats.accepted_guesses, 50);
  EXPECT_LT(guessed.stats.steps, 150);
}

TEST_F(SpeculationTest, PagesThatRunOutAndPrefixesThatAreSharedChangeNothing) {
  // Room for about two of the seven: they preempt each other. The second round finds what the
  // first one published.
  for (const bool prefix_cache : {false, true}) {
    EngineOptions options{.page_tokens = 4, .prefix_cache = prefix_cache, .max_step_tokens = 64};
    options.kv_cache_bytes = 64 << 10;
    const Answers plain = Run(Guesses::kNone, Requests(), options, 2);
    EXPECT_GT(plain.stats.preemptions, 0);
    for (const Guesses guesses : {Guesses::kNgram, Guesses::kSameModel, Guesses::kFewerBits}) {
      EXPECT_TRUE(Run(guesses, Requests(), options, 2) == plain) << static_cast<int>(guesses);
    }
  }
}

TEST_F(SpeculationTest, PagesOfIntegersAreRoundedAlike) {
  for (const KvCacheType type : {KvCacheType::kInt8, KvCacheType::kInt4}) {
    // Through pages that end, and prefixes that are found again.
    std::vector<GenerationRequest> requests = Requests();
    requests.erase(requests.begin(), requests.end() - 3);
    for (GenerationRequest& request : requests) request.max_output_tokens = 150;
    const Answers plain = Run(Guesses::kNone, requests, {}, 2, 4, type);
    for (const Guesses guesses : {Guesses::kNgram, Guesses::kSameModel, Guesses::kFewerBits}) {
      const Answers guessed = Run(guesses, requests, {}, 2, kMaxGuesses, type);
      EXPECT_TRUE(guessed == plain) << static_cast<int>(guesses);
      EXPECT_GT(guessed.stats.guessed_tokens, 100);
    }
  }
}

TEST_F(SpeculationTest, TheContextFillsUpAlike) {
  GenerationRequest request = Greedy(Prompt(200, 3), 0);
  const Answers plain = Run(Guesses::kNone, {request});
  ASSERT_EQ(plain.reasons.at(0), FinishReason::kContextFull);
  for (const Guesses guesses : {Guesses::kNgram, Guesses::kSameModel}) {
    EXPECT_TRUE(Run(guesses, {request}) == plain);
  }
}

TEST_F(SpeculationTest, WhatCannotGuessIsRefused) {
  ASSERT_OK_AND_ASSIGN(const auto engine, Engine::Create({}));
  const auto source = PackedTinySource({}, 4);
  for (const int bad : {-1, kMaxGuesses + 1}) {
    EXPECT_THAT(engine->Load(*source, {.speculation = {.max_guesses = bad}}),
                StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("max_guesses")));
  }
  const auto other = PackedTinySource({.vocab_size = 320}, 4);
  EXPECT_THAT(
      engine->Load(*source, {.speculation = {.max_guesses = 4, .draft = other.get()}}),
      StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("another tokenizer")));
}

}  // namespace
}  // namespace quern
