// A real model on real text: stories260K over 1,000 stories, whose mean NLL is known from another
// program (karpathy/llama2.c on the same weights).

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/checkpoint/checkpoint.h"
#include "core/engine/engine.h"
#include "core/eval/evaluate.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

constexpr int kContext = 512;
constexpr int32_t kBos = 1;

class StoriesTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string data = std::string(std::getenv("QUERN_SOURCE_DIR")) + "/../shared/data";
    const std::string model_path = data + "/models/stories260Ktok512.gguf";
    const std::string text_path = data + "/corpora/tinystories_1000.json";
    if (!std::filesystem::exists(model_path) || !std::filesystem::exists(text_path)) {
      GTEST_SKIP() << "shared data is not there: " << model_path << ", " << text_path;
    }
    ASSERT_OK_AND_ASSIGN(std::shared_ptr<const Checkpoint> checkpoint,
                         OpenCheckpoint(model_path, {.max_position_embeddings = kContext}));
    source_ = MakeModelSource(std::move(checkpoint));
    ASSERT_OK_AND_ASSIGN(engine_, Engine::Create({.num_threads = 2, .kv_cache_bytes = 64 << 20}));
    ASSERT_OK_AND_ASSIGN(model_, engine_->Load(*source_));
    ASSERT_OK_AND_ASSIGN(const auto tokenizer, engine_->GetTokenizer(model_));
    ASSERT_NE(tokenizer, nullptr);
    ASSERT_OK_AND_ASSIGN(const std::string json, ReadFile(text_path, 16 << 20));
    ASSERT_OK_AND_ASSIGN(const Json stories, ParseJson(json, text_path));
    ASSERT_EQ(stories.size(), 1000u);
    for (const Json& story : stories) {
      ASSERT_OK_AND_ASSIGN(auto tokens, tokenizer->Encode(story.get_ref<const std::string&>(),
                                                          {.add_special_tokens = false}));
      tokens.insert(tokens.begin(), kBos);
      if (tokens.size() > kContext) tokens.resize(kContext);
      stories_.push_back(std::move(tokens));
    }
  }

  std::unique_ptr<ModelSource> source_;
  std::unique_ptr<Engine> engine_;
  ModelHandle model_ = 0;
  std::vector<std::vector<int32_t>> stories_;
};

TEST_F(StoriesTest, MeanNllIsTheKnownOne) {
  double nll = 0;
  int64_t scored = 0;
  for (const std::vector<int32_t>& tokens : stories_) {
    ASSERT_OK(engine_->Score(model_, tokens, [&](int position, absl::Span<const float> logits) {
      if (position + 1 >= static_cast<int>(tokens.size())) return;
      double sum = 0;
      for (const float logit : logits) sum += std::exp(double{logit});
      nll += std::log(sum) - logits[tokens[position + 1]];
      ++scored;
    }));
  }
  EXPECT_EQ(scored, 412717);
  EXPECT_NEAR(nll / static_cast<double>(scored), 1.62411, 1e-3);
}

TEST_F(StoriesTest, AQuantizedKvCacheCostsLittle) {
  std::vector<NamedModel> models;
  for (const KvCacheType type : {KvCacheType::kInt8, KvCacheType::kInt4}) {
    ASSERT_OK_AND_ASSIGN(const ModelHandle model, engine_->Load(*source_, {.kv_cache_type = type}));
    models.push_back({std::string(KvCacheTypeName(type)), model});
  }
  stories_.resize(40);
  ASSERT_OK_AND_ASSIGN(const std::vector<EvaluationRow> rows,
                       Evaluate(*engine_, model_, models, {{"stories", stories_}}));
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_LT(rows[1].kl_divergence, 1e-3);
  EXPECT_GT(rows[1].top1_agreement, 0.99);
  EXPECT_LT(rows[2].kl_divergence, 2e-2);
  EXPECT_GT(rows[2].kl_divergence, rows[1].kl_divergence);
}

}  // namespace
}  // namespace quern
