// Constraints through the engine: what is drawn, how it ends, and what the others notice of it.

#include "core/constraint/constraint.h"

#include <absl/strings/match.h>

#include <nlohmann/json.hpp>
#include <regex>

#include "core/base/json.h"
#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

using Kind = ConstraintSpec::Kind;

constexpr char kSchema[] = R"({"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0,
    "maximum": 130}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
    "required": ["name", "age", "tags"]})";

class EngineConstraintTest : public testing::Test {
 protected:
  void SetUp() override { Make({.num_threads = 2, .kv_cache_bytes = 8 << 20}); }

  void Make(const EngineOptions& options) {
    engine_.reset();
    ASSERT_OK_AND_ASSIGN(engine_, Engine::Create(options));
    ASSERT_OK_AND_ASSIGN(model_, engine_->Load(TinySource({})));
  }

  GenerationRequest Constrained(const ConstraintSpec& spec, uint64_t seed, int max_tokens = 0) {
    GenerationRequest request = Sampled(Prompt(5, static_cast<int>(seed)), max_tokens, seed);
    request.ignore_end_of_text = false;
    const auto compiled = engine_->CompileConstraint(model_, spec);
    EXPECT_OK(compiled);
    if (compiled.ok()) request.constraint = compiled->constraint;
    return request;
  }

  std::shared_ptr<CollectingSink> Run(GenerationRequest request) {
    auto sink = Start(*engine_, model_, std::move(request));
    sink->Wait();
    return sink;
  }

  // The id of a token that is that byte.
  int32_t ByteToken(char c) {
    const auto tokenizer = engine_->GetTokenizer(model_);
    for (int32_t id = 0; id < 300; ++id) {
      if ((*tokenizer)->TokenBytes(id) == absl::string_view(&c, 1)) return id;
    }
    return -1;
  }

  std::unique_ptr<Engine> engine_;
  ModelHandle model_ = 0;
};

void ExpectValid(const std::string& text) {
  const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(value.is_object()) << text;
  ASSERT_EQ(value.size(), 3u) << text;
  EXPECT_TRUE(value["name"].is_string()) << text;
  EXPECT_TRUE(value["age"].is_number_integer() && value["age"] >= 0 && value["age"] <= 130) << text;
  EXPECT_TRUE(value["tags"].is_array() && value["tags"].size() <= 3) << text;
  for (const Json& tag : value["tags"]) EXPECT_TRUE(tag == "a" || tag == "b") << text;
}

TEST_F(EngineConstraintTest, TextsOfASchemaAreValid) {
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint64_t seed = 0; seed < 24; ++seed) {
    GenerationRequest request = Constrained({.kind = Kind::kJsonSchema, .text = kSchema}, seed);
    if (seed % 4 == 0) request.sampling.temperature = 0;
    if (seed % 4 == 1) request.sampling.top_k = 3;
    if (seed % 4 == 2) request.sampling.repetition_penalty = 1.5;
    sinks.push_back(Start(*engine_, model_, std::move(request)));
  }
  for (const auto& sink : sinks) {
    ASSERT_OK(sink->Wait());
    EXPECT_EQ(sink->result()->finish_reason, FinishReason::kEndOfText);
    EXPECT_EQ(sink->result()->output_tokens, static_cast<int>(sink->ids().size()));
    ExpectValid(sink->text());
  }
}

TEST_F(EngineConstraintTest, RegexAndChoice) {
  const std::vector<std::string> choices = {"red", "green", "blue", "greenish"};
  for (uint64_t seed = 0; seed < 12; ++seed) {
    const auto plate = Run(Constrained({.kind = Kind::kRegex, .text = "[A-Z]{2}-\\d{3,5}"}, seed));
    ASSERT_OK(plate->result());
    EXPECT_TRUE(std::regex_match(plate->text(), std::regex("[A-Z]{2}-\\d{3,5}"))) << plate->text();
    EXPECT_EQ(plate->result()->finish_reason, FinishReason::kEndOfText);
    const auto color = Run(Constrained({.kind = Kind::kChoice, .choices = choices}, seed));
    ASSERT_OK(color->result());
    EXPECT_THAT(choices, testing::Contains(color->text()));
  }
}

TEST_F(EngineConstraintTest, LimitsAndStopSequencesEndATextBefore) {
  const ConstraintSpec digits = {.kind = Kind::kRegex, .text = "[0-9]{40}"};
  const auto limited = Run(Constrained(digits, 1, 4));
  ASSERT_OK(limited->result());
  EXPECT_EQ(limited->result()->finish_reason, FinishReason::kMaxOutputTokens);
  EXPECT_EQ(limited->ids().size(), 4u);
  const auto whole = Run(Constrained(digits, 1));
  EXPECT_EQ(whole->text().size(), 40u);
  // The last token of the text is its end, not the limit.
  const auto exact = Run(Constrained(digits, 1, static_cast<int>(whole->ids().size())));
  EXPECT_EQ(exact->result()->finish_reason, FinishReason::kEndOfText);
  GenerationRequest stopped = Constrained(digits, 1);
  stopped.stop_sequences = {whole->text().substr(10, 3)};
  const auto sink = Run(stopped);
  ASSERT_OK(sink->result());
  EXPECT_EQ(sink->result()->finish_reason, FinishReason::kStopSequence);
  EXPECT_EQ(sink->text(), whole->text().substr(0, whole->text().find(stopped.stop_sequences[0])));
}

TEST_F(EngineConstraintTest, MinOutputTokensHoldsUntilNothingCanFollow) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    GenerationRequest request = Constrained({.kind = Kind::kRegex, .text = "[ab]{0,90}"}, seed);
    request.min_output_tokens = 20;
    const auto sink = Run(request);
    ASSERT_OK(sink->result());
    EXPECT_GE(sink->ids().size(), 20u);
    request = Constrained({.kind = Kind::kRegex, .text = "[ab]{0,3}"}, seed);
    request.min_output_tokens = 20;
    const auto ended = Run(request);
    ASSERT_OK(ended->result());
    EXPECT_EQ(ended->text().size(), 3u);
    EXPECT_EQ(ended->result()->finish_reason, FinishReason::kEndOfText);
  }
}

TEST_F(EngineConstraintTest, BiasesCannotLeadOut) {
  GenerationRequest request = Constrained({.kind = Kind::kRegex, .text = "[ab]{30}c?"}, 3);
  for (const int32_t id : {kTinyImEnd, kTinyImStart, kTinyEndOfText, ByteToken('z')}) {
    request.sampling.logit_bias[id] = 100;
  }
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, engine_->GetTokenizer(model_));
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
    if (absl::StrContains(tokenizer->TokenBytes(id), 'a')) request.sampling.logit_bias[id] = -100;
  }
  const auto sink = Run(request);
  ASSERT_OK(sink->result());
  // Among what is allowed they count: all but "a", and then the end at once.
  EXPECT_EQ(sink->text(), std::string(30, 'b'));
}

TEST_F(EngineConstraintTest, StopIdsEndOnlyWhereATextMay) {
  GenerationRequest request = Constrained({.kind = Kind::kRegex, .text = "a{5}[ab]*"}, 3);
  request.stop_ids = {ByteToken('a'), ByteToken('b')};
  request.max_output_tokens = 40;
  const auto sink = Run(request);
  // No token may write "a" by itself then; longer ones of the vocabulary may.
  if (sink->result().ok()) {
    EXPECT_GE(sink->text().size(), 5u);
  } else {
    EXPECT_EQ(sink->result().status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(sink->result().status().message(), testing::HasSubstr("no token"));
  }
}

TEST_F(EngineConstraintTest, AnEmptyTextEndsBeforeItsFirstToken) {
  const auto sink = Run(Constrained({.kind = Kind::kRegex, .text = "(a{0})"}, 3));
  ASSERT_OK(sink->result());
  EXPECT_EQ(sink->result()->finish_reason, FinishReason::kEndOfText);
  EXPECT_EQ(sink->text(), "");
  EXPECT_THAT(sink->ids(), testing::IsEmpty());
}

TEST_F(EngineConstraintTest, RefusesWhatExcludesEachOther) {
  GenerationRequest request = Constrained({.kind = Kind::kJsonObject}, 1);
  request.ignore_end_of_text = true;
  EXPECT_EQ(engine_->Submit(model_, request, std::make_shared<CollectingSink>()).code(),
            absl::StatusCode::kInvalidArgument);
  // Of another vocabulary.
  TinyModelOptions larger;
  larger.vocab_size = 400;
  ASSERT_OK_AND_ASSIGN(const ModelHandle other, engine_->Load(TinySource(larger)));
  request.ignore_end_of_text = false;
  EXPECT_EQ(engine_->Submit(other, request, std::make_shared<CollectingSink>()).code(),
            absl::StatusCode::kInvalidArgument);
  TinySource mute({});
  mute.drop_tokenizer();
  ASSERT_OK_AND_ASSIGN(const ModelHandle without, engine_->Load(mute));
  EXPECT_EQ(engine_->CompileConstraint(without, {.kind = Kind::kJsonObject}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(EngineConstraintTest, OthersInTheBatchGetTheSameTokens) {
  std::vector<std::vector<int32_t>> alone;
  for (int i = 0; i < 4; ++i) alone.push_back(Run(Sampled(Prompt(6 + i, i), 60, i))->ids());
  std::vector<std::shared_ptr<CollectingSink>> constrained, free;
  for (int i = 0; i < 4; ++i) {
    constrained.push_back(
        Start(*engine_, model_, Constrained({.kind = Kind::kJsonSchema, .text = kSchema}, 50 + i)));
    free.push_back(Start(*engine_, model_, Sampled(Prompt(6 + i, i), 60, i)));
  }
  for (int i = 0; i < 4; ++i) {
    ASSERT_OK(free[i]->Wait());
    EXPECT_EQ(free[i]->ids(), alone[i]);
    ASSERT_OK(constrained[i]->Wait());
    // And so do they.
    EXPECT_EQ(Run(Constrained({.kind = Kind::kJsonSchema, .text = kSchema}, 50 + i))->ids(),
              constrained[i]->ids());
  }
}

TEST_F(EngineConstraintTest, GuessesChangeNothing) {
  // Repetitive enough for prompt lookup to guess right now and then.
  const ConstraintSpec spec = {.kind = Kind::kRegex, .text = "(ab|cd){20,40}"};
  std::vector<std::vector<int32_t>> expected;
  for (uint64_t seed = 0; seed < 6; ++seed) expected.push_back(Run(Constrained(spec, seed))->ids());
  LoadOptions options;
  options.speculation.max_guesses = 4;
  ASSERT_OK_AND_ASSIGN(model_, engine_->Load(TinySource({}), options));
  for (uint64_t seed = 0; seed < 6; ++seed) {
    const auto sink = Run(Constrained(spec, seed));
    ASSERT_OK(sink->result());
    EXPECT_EQ(sink->result()->finish_reason, FinishReason::kEndOfText);
    EXPECT_EQ(sink->ids(), expected[seed]);
  }
  EXPECT_GT(engine_->Stats().accepted_guesses, 0);
}

TEST_F(EngineConstraintTest, SurvivesPreemption) {
  const ConstraintSpec spec = {.kind = Kind::kRegex, .text = "([a-m]{3}-){20}"};
  std::vector<std::vector<int32_t>> expected;
  for (uint64_t seed = 0; seed < 6; ++seed) expected.push_back(Run(Constrained(spec, seed))->ids());
  // The longest alone fills most of it.
  ASSERT_OK_AND_ASSIGN(const ModelInfo info, engine_->Info(model_));
  const int64_t token_bytes = int64_t{4} * info.config.num_hidden_layers * info.config.kv_size();
  Make({.num_threads = 2, .page_tokens = 4, .kv_cache_bytes = 96 * token_bytes});
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    sinks.push_back(Start(*engine_, model_, Constrained(spec, seed)));
  }
  for (uint64_t seed = 0; seed < 6; ++seed) {
    ASSERT_OK(sinks[seed]->Wait());
    EXPECT_EQ(sinks[seed]->ids(), expected[seed]);
  }
  EXPECT_GT(engine_->Stats().preemptions, 0);
}

}  // namespace
}  // namespace quern
