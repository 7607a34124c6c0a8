#include "core/eval/zero_shot.h"

#include <cmath>

#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

using testing::HasSubstr;

TEST(ParseZeroShotTaskTest, EachKindOfItem) {
  ASSERT_OK_AND_ASSIGN(
      const ZeroShotTask choices,
      ParseZeroShotTask("piqa",
                        R"({"query":"Question: How?\n","choices":["So.","Otherwise."],"gold":1})"
                        "\n\n"
                        R"({"query":"He went","choices":["up"],"gold":0})"
                        "\n"));
  EXPECT_EQ(choices.name, "piqa");
  EXPECT_FALSE(choices.greedy);
  ASSERT_EQ(choices.items.size(), 2u);
  EXPECT_EQ(choices.items[0].gold, 1);
  EXPECT_EQ(choices.items[0].options[1].context, "Question: How?\nAnswer:");
  EXPECT_EQ(choices.items[0].options[1].continuation, " Otherwise.");
  EXPECT_EQ(choices.items[0].options[1].answer_bytes, 10);
  EXPECT_EQ(choices.items[1].options[0].context, "He went");

  ASSERT_OK_AND_ASSIGN(
      const ZeroShotTask partial,
      ParseZeroShotTask("winogrande", R"({"context_options":["Ann","Bob "],"continuation":"won.",)"
                                      R"("gold":0})"));
  EXPECT_EQ(partial.items[0].options[1].context, "Bob");
  EXPECT_EQ(partial.items[0].options[1].continuation, " won.");

  ASSERT_OK_AND_ASSIGN(const ZeroShotTask words,
                       ParseZeroShotTask("lambada",
                                         R"({"context":"a b","continuation":"c"})"
                                         "\n"
                                         R"({"context":"d","continuation":"e"})",
                                         1));
  EXPECT_TRUE(words.greedy);
  EXPECT_EQ(words.items.size(), 1u);
}

TEST(ParseZeroShotTaskTest, MistakesAreNamed) {
  const auto expect = [](absl::string_view jsonl, const char* message) {
    EXPECT_THAT(ParseZeroShotTask("t", jsonl),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect("", "t: has no items");
  expect("{}", "t, line 1: context");
  expect("\n[1]", "t, line 2");
  expect(R"({"query":"q","choices":[],"gold":0})", "choices: has 0 entries");
  expect(R"({"query":"q","choices":[1],"gold":0})", "choices: wanted strings");
  expect(R"({"query":"q","choices":["a"],"gold":1})", "gold");
  expect(R"({"query":7,"choices":["a"],"gold":0})", "query");
  expect(
      "{\"context\":\"a\",\"continuation\":\"b\"}\n{\"query\":\"q\",\"choices\":[\"a\"],\"gold\":"
      "0}",
      "line 2: is of another kind");
}

class ZeroShotTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(engine_, Engine::Create({.kv_cache_bytes = 8 << 20}));
    ASSERT_OK_AND_ASSIGN(source_, engine_->Load(TinySource({})));
    ASSERT_OK_AND_ASSIGN(two_, engine_->Load(*PackedTinySource({}, 2)));
  }

  // By the definition: log-softmax in double, summed over the tokens of the continuation.
  double LogLikelihood(ModelHandle model, const std::string& context,
                       const std::string& continuation, bool* greedy = nullptr) {
    const auto tokenizer = engine_->GetTokenizer(model).value();
    const auto begin = tokenizer->Encode(context).value().size();
    const std::vector<int32_t> tokens = tokenizer->Encode(context + continuation).value();
    double sum = 0;
    if (greedy != nullptr) *greedy = true;
    EXPECT_OK(engine_->Score(model, tokens, [&](int position, absl::Span<const float> logits) {
      if (position + 1 < static_cast<int>(begin) || position + 1 == static_cast<int>(tokens.size()))
        return;
      double total = 0;
      for (const float logit : logits) total += std::exp(double{logit});
      const float own = logits[tokens[position + 1]];
      sum += own - std::log(total);
      for (const float logit : logits) {
        if (greedy != nullptr && logit > own) *greedy = false;
      }
    }));
    return sum;
  }

  std::unique_ptr<Engine> engine_;
  ModelHandle source_ = 0;
  ModelHandle two_ = 0;
};

TEST_F(ZeroShotTest, SharesAndErrorsAreThoseOfTheirDefinitions) {
  const std::vector<std::string> answers = {"yes", "no, not that", "maybe", "abc", "the other one"};
  std::string jsonl;
  std::vector<std::vector<double>> right(2);
  double norm_right = 0;
  constexpr int kItems = 12;
  for (int i = 0; i < kItems; ++i) {
    const std::string query = "Question: number " + std::to_string(i * 7) + "?";
    const std::string& a = answers[i % 5];
    const std::string& b = answers[(i + 2) % 5];
    const int gold = i % 3 == 0;
    jsonl += Json{{"query", query}, {"choices", {a, b}}, {"gold", gold}}.dump() + "\n";
    for (const int m : {0, 1}) {
      const ModelHandle model = m == 0 ? source_ : two_;
      const double of_a = LogLikelihood(model, query + "\nAnswer:", " " + a);
      const double of_b = LogLikelihood(model, query + "\nAnswer:", " " + b);
      right[m].push_back((of_b > of_a) == (gold == 1));
      if (m == 1) {
        norm_right += (of_b / static_cast<double>(b.size()) >
                       of_a / static_cast<double>(a.size())) == (gold == 1);
      }
    }
  }
  ASSERT_OK_AND_ASSIGN(const ZeroShotTask task, ParseZeroShotTask("mine", jsonl));
  int64_t last = 0;
  ASSERT_OK_AND_ASSIGN(const auto rows, EvaluateZeroShot(*engine_, source_, {{"two", two_}}, {task},
                                                         [&](int64_t done, int64_t total) {
                                                           EXPECT_GE(done, last);
                                                           EXPECT_LE(done, total);
                                                           EXPECT_EQ(total, 2 * kItems);
                                                           last = done;
                                                         }));
  EXPECT_EQ(last, 2 * kItems);
  ASSERT_EQ(rows.size(), 2u);
  double sum = 0, source_sum = 0, difference_squares = 0;
  for (int i = 0; i < kItems; ++i) {
    sum += right[1][i];
    source_sum += right[0][i];
  }
  const double p = sum / kItems;
  const double difference = (sum - source_sum) / kItems;
  for (int i = 0; i < kItems; ++i) {
    difference_squares += std::pow(right[1][i] - right[0][i] - difference, 2);
  }
  EXPECT_EQ(rows[0].model, "source");
  EXPECT_NEAR(rows[0].accuracy, source_sum / kItems, 1e-12);
  EXPECT_EQ(rows[0].difference, 0);
  EXPECT_EQ(rows[0].difference_error, 0);
  EXPECT_EQ(rows[1].num_items, kItems);
  EXPECT_NEAR(rows[1].accuracy, p, 1e-12);
  EXPECT_NEAR(rows[1].accuracy_error, std::sqrt(p * (1 - p) / (kItems - 1)), 1e-12);
  EXPECT_NEAR(*rows[1].accuracy_norm, norm_right / kItems, 1e-12);
  EXPECT_NEAR(rows[1].difference, difference, 1e-12);
  EXPECT_NEAR(rows[1].difference_error, std::sqrt(difference_squares / (kItems - 1) / kItems),
              1e-12);
}

TEST_F(ZeroShotTest, AWordIsRightWhenEveryTokenOfItIsTheMostLikely) {
  std::string jsonl;
  double right = 0;
  const std::vector<std::string> words = {"a", "b", "c", "d", "e", "f", "g", "h"};
  for (const std::string& word : words) {
    jsonl += Json{{"context", "once upon"}, {"continuation", word}}.dump() + "\n";
    bool greedy = false;
    LogLikelihood(source_, "once upon", " " + word, &greedy);
    right += greedy;
  }
  ASSERT_OK_AND_ASSIGN(const ZeroShotTask task, ParseZeroShotTask("words", jsonl));
  ASSERT_OK_AND_ASSIGN(const auto rows, EvaluateZeroShot(*engine_, source_, {}, {task}));
  EXPECT_NEAR(rows[0].accuracy, right / 8, 1e-12);
  EXPECT_FALSE(rows[0].accuracy_norm.has_value());
}

TEST_F(ZeroShotTest, LongContextsLoseTheirBeginning) {
  std::string context;
  for (int i = 0; i < 2000; ++i) context += "word ";
  ASSERT_OK_AND_ASSIGN(const ModelInfo info, engine_->Info(source_));
  const auto tokenizer = engine_->GetTokenizer(source_).value();
  ASSERT_GT(tokenizer->Encode(context).value().size(), size_t(info.max_context_tokens));
  ZeroShotTask task{.name = "long",
                    .items = {{.options = {{context, " yes", 3}, {context, " no", 2}}}}};
  EXPECT_OK(EvaluateZeroShot(*engine_, source_, {}, {task}));
  task.items[0].options[0].continuation = " " + context;
  EXPECT_THAT(EvaluateZeroShot(*engine_, source_, {}, {task}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("does not fit")));
  task.items[0].options[0].continuation = "";
  EXPECT_THAT(EvaluateZeroShot(*engine_, source_, {}, {task}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no tokens of its own")));
}

}  // namespace
}  // namespace quern
