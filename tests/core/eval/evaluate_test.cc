#include "core/eval/evaluate.h"

#include <cmath>

#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

using testing::HasSubstr;

class EvaluateTest : public testing::Test {
 protected:
  void SetUp() override {
    auto engine = Engine::Create({.kv_cache_bytes = 8 << 20});
    ASSERT_OK(engine);
    engine_ = *std::move(engine);
    ASSERT_OK_AND_ASSIGN(source_, engine_->Load(TinySource({})));
    ASSERT_OK_AND_ASSIGN(four_, engine_->Load(*PackedTinySource({}, 4)));
    ASSERT_OK_AND_ASSIGN(two_, engine_->Load(*PackedTinySource({}, 2)));
  }

  // softmax of every position, in double.
  std::vector<std::vector<double>> Probabilities(ModelHandle model,
                                                 const std::vector<int32_t>& tokens) {
    std::vector<std::vector<double>> rows;
    EXPECT_OK(engine_->Score(model, tokens, [&](int, absl::Span<const float> logits) {
      double sum = 0;
      for (const float logit : logits) sum += std::exp(double{logit});
      std::vector<double> row;
      for (const float logit : logits) row.push_back(std::exp(double{logit}) / sum);
      rows.push_back(std::move(row));
    }));
    return rows;
  }

  std::unique_ptr<Engine> engine_;
  ModelHandle source_ = 0;
  ModelHandle four_ = 0;
  ModelHandle two_ = 0;
};

TEST_F(EvaluateTest, FiguresAreThoseOfTheirDefinitions) {
  const std::vector<EvaluationText> texts = {{"mine", {Prompt(20, 1), Prompt(7, 2)}}};
  ASSERT_OK_AND_ASSIGN(const auto rows, Evaluate(*engine_, source_, {{"rtn", two_}}, texts));
  ASSERT_EQ(rows.size(), 2u);
  double source_nll = 0, nll = 0, kl = 0, agreed = 0;
  for (const auto& tokens : texts[0].sequences) {
    const auto p = Probabilities(source_, tokens);
    const auto q = Probabilities(two_, tokens);
    double sequence_source_nll = 0, sequence_nll = 0;
    const size_t scored = tokens.size() - 1;
    for (size_t i = 0; i < scored; ++i) {
      sequence_source_nll -= std::log(p[i][tokens[i + 1]]);
      sequence_nll -= std::log(q[i][tokens[i + 1]]);
      for (size_t v = 0; v < p[i].size(); ++v) kl += p[i][v] * std::log(p[i][v] / q[i][v]);
      agreed += std::max_element(p[i].begin(), p[i].end()) - p[i].begin() ==
                std::max_element(q[i].begin(), q[i].end()) - q[i].begin();
    }
    // A short sequence weighs as much as a long one.
    source_nll += sequence_source_nll / static_cast<double>(scored) / 2;
    nll += sequence_nll / static_cast<double>(scored) / 2;
  }
  EXPECT_EQ(rows[0].model, "source");
  EXPECT_EQ(rows[0].dataset, "mine");
  EXPECT_EQ(rows[0].token_count, 19 + 6);
  EXPECT_NEAR(rows[0].perplexity, std::exp(source_nll), 1e-9 * std::exp(source_nll));
  EXPECT_EQ(rows[0].kl_divergence, 0);
  EXPECT_EQ(rows[0].top1_agreement, 1);
  EXPECT_EQ(rows[1].model, "rtn");
  EXPECT_NEAR(rows[1].perplexity, std::exp(nll), 1e-9 * std::exp(nll));
  EXPECT_NEAR(rows[1].kl_divergence, kl / 25, 1e-9);
  EXPECT_NEAR(rows[1].top1_agreement, agreed / 25, 1e-12);
}

TEST_F(EvaluateTest, ContextsAreNotScored) {
  const auto tokens = Prompt(20, 1);
  const std::vector<EvaluationText> texts = {
      {.name = "mine", .sequences = {tokens}, .num_context_tokens = {12}}};
  ASSERT_OK_AND_ASSIGN(const auto rows, Evaluate(*engine_, source_, {{"rtn", two_}}, texts));
  const auto p = Probabilities(source_, tokens);
  const auto q = Probabilities(two_, tokens);
  double nll = 0, kl = 0;
  for (size_t i = 11; i < 19; ++i) {
    nll -= std::log(q[i][tokens[i + 1]]) / 8;
    for (size_t v = 0; v < p[i].size(); ++v) kl += p[i][v] * std::log(p[i][v] / q[i][v]) / 8;
  }
  EXPECT_EQ(rows[1].token_count, 8);
  EXPECT_NEAR(rows[1].perplexity, std::exp(nll), 1e-9 * std::exp(nll));
  EXPECT_NEAR(rows[1].kl_divergence, kl, 1e-9);
  for (const std::vector<int>& context :
       {std::vector<int>{0}, std::vector<int>{20}, std::vector<int>{1, 1}}) {
    EXPECT_THAT(Evaluate(*engine_, source_, {},
                         {{.name = "mine", .sequences = {tokens}, .num_context_tokens = context}}),
                StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("context")));
  }
}

TEST_F(EvaluateTest, MoreBitsAreNearerToTheSource) {
  const std::vector<EvaluationText> texts = {{"a", {Prompt(100, 1)}}, {"b", {Prompt(100, 2)}}};
  std::vector<int64_t> progress;
  ASSERT_OK_AND_ASSIGN(const auto rows,
                       Evaluate(*engine_, source_, {{"four", four_}, {"two", two_}}, texts,
                                [&](int64_t done, int64_t total) {
                                  EXPECT_EQ(total, 6);
                                  progress.push_back(done);
                                }));
  ASSERT_EQ(rows.size(), 6u);
  for (const size_t text : {0, 3}) {
    EXPECT_GT(rows[text + 1].kl_divergence, 0);
    EXPECT_LT(rows[text + 1].kl_divergence, rows[text + 2].kl_divergence / 4);
    EXPECT_GT(rows[text + 1].top1_agreement, rows[text + 2].top1_agreement);
  }
  EXPECT_THAT(progress, testing::ElementsAre(1, 2, 3, 4, 5, 6));
}

TEST_F(EvaluateTest, AModelIsEqualToItself) {
  ASSERT_OK_AND_ASSIGN(const auto rows,
                       Evaluate(*engine_, four_, {{"itself", four_}}, {{"text", {Prompt(30, 1)}}}));
  EXPECT_EQ(rows[1].kl_divergence, 0);
  EXPECT_EQ(rows[1].top1_agreement, 1);
  EXPECT_EQ(rows[1].perplexity, rows[0].perplexity);
}

TEST_F(EvaluateTest, RefusesWhatCannotBeScored) {
  EXPECT_THAT(Evaluate(*engine_, source_, {}, {{"short", {{5}}}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'short'")));
  EXPECT_THAT(Evaluate(*engine_, source_, {}, {{"none", {}}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'none'")));
  EXPECT_THAT(Evaluate(*engine_, source_, {}, {{"long", {Prompt(257, 1)}}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("context")));
  ASSERT_OK_AND_ASSIGN(const ModelHandle other, engine_->Load(TinySource({.vocab_size = 310})));
  EXPECT_THAT(Evaluate(*engine_, source_, {{"other", other}}, {{"text", {Prompt(9, 1)}}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("vocabulary")));
}

TEST_F(EvaluateTest, ChunkTextCutsWholeChunksOfOrdinaryText) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, engine_->GetTokenizer(source_));
  const std::string text = "some <|im_end|> text that goes on for a while";
  ASSERT_OK_AND_ASSIGN(const auto all, tokenizer->Encode(text, {.add_special_tokens = false,
                                                                .parse_special_tokens = false}));
  ASSERT_OK_AND_ASSIGN(const auto chunks, ChunkText(*tokenizer, "wiki", text, 5, 0));
  EXPECT_EQ(chunks.name, "wiki");
  ASSERT_EQ(chunks.sequences.size(), all.size() / 5);
  std::vector<int32_t> joined;
  for (const auto& chunk : chunks.sequences) {
    EXPECT_EQ(chunk.size(), 5u);
    joined.insert(joined.end(), chunk.begin(), chunk.end());
  }
  EXPECT_EQ(joined, std::vector<int32_t>(all.begin(), all.begin() + all.size() / 5 * 5));
  EXPECT_THAT(joined, testing::Not(testing::Contains(kTinyImEnd)));
  ASSERT_OK_AND_ASSIGN(const auto two, ChunkText(*tokenizer, "wiki", text, 5, 2));
  EXPECT_EQ(two.sequences.size(), 2u);
  EXPECT_THAT(ChunkText(*tokenizer, "wiki", text, 1000, 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'wiki'")));
  EXPECT_THAT(ChunkText(*tokenizer, "wiki", text, 1, 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("chunk_tokens")));
}

}  // namespace
}  // namespace quern
