// What models take of memory: said before it is taken, and held once for models with matrices in
// common.

#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

constexpr char kRescaled[] = "model.layers.0.mlp.up_proj.weight";

// The tiny model as an artifact "base", or that with other scales of one matrix as "delta".
std::unique_ptr<ModelSource> OriginSource(bool delta) {
  const TinyModelOptions options;
  auto model = std::make_shared<PackedModel>();
  model->config = TinyModelConfig(options);
  model->tokenizer_json = TinyTokenizerJson(options.vocab_size);
  for (const auto& [name, tensor] : TinyModelWeights(options)) {
    if (tensor.shape.size() == 1) {
      model->vectors[name] = tensor.values;
      continue;
    }
    const bool block = name.find("layers") != std::string::npos;
    PackedTensor packed =
        RoundToNearest(tensor.values, static_cast<int>(tensor.shape[0]),
                       static_cast<int>(tensor.shape[1]), block ? 4 : 8, 64, false)
            .value();
    packed.origin = "base";
    if (delta && name == kRescaled) {
      std::vector<float> scales = UnpackScales(packed);
      for (float& scale : scales) scale *= 4;
      packed = WithScales(packed, scales).value();
      packed.origin = "delta";
    }
    model->matrices[name] = std::move(packed);
  }
  return MakeModelSource(std::shared_ptr<const PackedModel>(std::move(model)));
}

std::unique_ptr<Engine> NewEngine() {
  auto engine = Engine::Create({.num_threads = 2, .kv_cache_bytes = 1 << 20});
  CHECK(engine.ok()) << engine.status();
  return *std::move(engine);
}

std::vector<int32_t> Answer(Engine& engine, ModelHandle model) {
  const auto sink = Start(engine, model, Greedy(Prompt(20, 1), 12));
  EXPECT_OK(sink->Wait());
  return sink->ids();
}

TEST(PlanMemoryTest, IsWhatLoadTakes) {
  const auto engine = NewEngine();
  std::vector<std::unique_ptr<ModelSource>> sources;
  sources.push_back(std::make_unique<TinySource>(TinyModelOptions{}));
  sources.push_back(PackedTinySource({}, 2, /*symmetric=*/true));
  sources.push_back(PackedTinySource({}, 4, /*symmetric=*/false, /*mixed_groups=*/true));
  for (const auto& source : sources) {
    for (const Precision precision :
         {Precision::kMixed, Precision::kInt8, Precision::kInt16, Precision::kFloat}) {
      const LoadOptions options{.precision = precision};
      ASSERT_OK_AND_ASSIGN(const ModelMemory plan, engine->PlanMemory(*source, options));
      ASSERT_OK_AND_ASSIGN(const ModelHandle model, engine->Load(*source, options));
      ASSERT_OK_AND_ASSIGN(const ModelInfo info, engine->Info(model));
      EXPECT_EQ(plan.weight_bytes, info.weight_bytes);
      EXPECT_EQ(plan.kv_bytes, info.kv_bytes);
      EXPECT_GT(plan.workspace_bytes, 0);
      EXPECT_OK(engine->Unload(model));
    }
  }
}

TEST(PlanMemoryTest, CountsTheDraftModel) {
  const auto engine = NewEngine();
  const TinySource source({});
  const auto draft = PackedTinySource({}, 2, /*symmetric=*/true);
  const LoadOptions options{.speculation = {.max_guesses = 2, .draft = draft.get()}};
  ASSERT_OK_AND_ASSIGN(const ModelMemory alone, engine->PlanMemory(source));
  ASSERT_OK_AND_ASSIGN(const ModelMemory plan, engine->PlanMemory(source, options));
  EXPECT_GT(plan.workspace_bytes, alone.workspace_bytes);
  ASSERT_OK_AND_ASSIGN(const ModelHandle model, engine->Load(source, options));
  ASSERT_OK_AND_ASSIGN(const ModelInfo info, engine->Info(model));
  EXPECT_EQ(plan.weight_bytes, info.weight_bytes);
  EXPECT_EQ(plan.kv_bytes, info.kv_bytes);
}

TEST(PlanMemoryTest, SaysThatThePagesDoNotFit) {
  const auto engine = Engine::Create({.kv_cache_bytes = 1}).value();
  EXPECT_THAT(engine->PlanMemory(TinySource({})),
              StatusIs(absl::StatusCode::kResourceExhausted, testing::HasSubstr("one page")));
}

TEST(SharedMatricesTest, ADeltaHoldsOnlyWhatItReplaces) {
  const auto engine = NewEngine();
  ASSERT_OK_AND_ASSIGN(const ModelHandle alone, engine->Load(*OriginSource(true)));
  ASSERT_OK_AND_ASSIGN(const ModelInfo alone_info, engine->Info(alone));
  EXPECT_EQ(alone_info.shared_weight_bytes, 0);
  const std::vector<int32_t> expected = Answer(*engine, alone);
  ASSERT_OK(engine->Unload(alone));

  ASSERT_OK_AND_ASSIGN(const ModelHandle base, engine->Load(*OriginSource(false)));
  ASSERT_OK_AND_ASSIGN(const ModelInfo base_info, engine->Info(base));
  EXPECT_EQ(base_info.shared_weight_bytes, 0) << "what was unloaded is not held any more";
  ASSERT_OK_AND_ASSIGN(const ModelHandle delta, engine->Load(*OriginSource(true)));
  ASSERT_OK_AND_ASSIGN(const ModelInfo delta_info, engine->Info(delta));
  EXPECT_EQ(delta_info.weight_bytes, base_info.weight_bytes);
  EXPECT_GT(delta_info.shared_weight_bytes, base_info.weight_bytes / 2);
  EXPECT_LT(delta_info.shared_weight_bytes, base_info.weight_bytes);
  EXPECT_EQ(Answer(*engine, delta), expected);
  EXPECT_NE(Answer(*engine, base), expected);

  // The other way of reading packed matrices is another form of them.
  ASSERT_OK_AND_ASSIGN(const ModelHandle floats,
                       engine->Load(*OriginSource(false), {.precision = Precision::kFloat}));
  ASSERT_OK_AND_ASSIGN(const ModelInfo floats_info, engine->Info(floats));
  EXPECT_EQ(floats_info.shared_weight_bytes, 0);

  ASSERT_OK(engine->Unload(base));
  EXPECT_EQ(Answer(*engine, delta), expected) << "it holds what it shared";
}

TEST(SharedMatricesTest, WithoutAnOriginNothingIsShared) {
  const auto engine = NewEngine();
  for (int i = 0; i < 2; ++i) {
    ASSERT_OK_AND_ASSIGN(const ModelHandle model, engine->Load(*PackedTinySource({}, 4)));
    ASSERT_OK_AND_ASSIGN(const ModelInfo info, engine->Info(model));
    EXPECT_EQ(info.shared_weight_bytes, 0);
  }
}

}  // namespace
}  // namespace quern
