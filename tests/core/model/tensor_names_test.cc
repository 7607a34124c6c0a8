#include "core/model/tensor_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "core/safetensors/safetensors.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::ElementsAre;

ModelConfig Small() {
  ModelConfig config;
  config.hidden_size = 32;
  config.intermediate_size = 44;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 12;
  config.vocab_size = 64;
  return config;
}

std::vector<std::string> Names(const std::vector<TensorSpec>& specs) {
  std::vector<std::string> names;
  for (const TensorSpec& spec : specs) names.push_back(spec.name);
  return names;
}

TEST(TensorNamesTest, BlockOrderIsFixed) {
  ModelConfig config = Small();
  config.qkv_bias = config.o_bias = config.mlp_bias = config.qk_norm = true;
  EXPECT_THAT(
      Names(BlockTensors(config, 1)),
      ElementsAre(
          "model.layers.1.input_layernorm.weight", "model.layers.1.post_attention_layernorm.weight",
          "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.bias",
          "model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.k_proj.bias",
          "model.layers.1.self_attn.v_proj.weight", "model.layers.1.self_attn.v_proj.bias",
          "model.layers.1.self_attn.q_norm.weight", "model.layers.1.self_attn.k_norm.weight",
          "model.layers.1.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.bias",
          "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.gate_proj.bias",
          "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.bias",
          "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.bias"));
}

TEST(TensorNamesTest, TiedModelsHaveNoHead) {
  ModelConfig config = Small();
  const std::vector<TensorSpec> untied = ModelTensors(config);
  EXPECT_EQ(untied.front().name, kEmbeddingName);
  EXPECT_EQ(untied.back().name, kHeadName);
  EXPECT_THAT(untied.back().shape, ElementsAre(64, 32));
  config.tie_word_embeddings = true;
  const std::vector<TensorSpec> tied = ModelTensors(config);
  EXPECT_EQ(tied.back().name, kFinalNormName);
  EXPECT_EQ(tied.size() + 1, untied.size());
}

// What transformers saved is what we expect, name by name and shape by shape.
TEST(TensorNamesTest, AgreeWithTransformersForEveryFamily) {
  const std::string root =
      std::string(std::getenv("QUERN_SOURCE_DIR")) + "/tests/testdata/golden_models";
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> names, ListDirectory(root));
  ASSERT_GE(names.size(), 10u);
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    ASSERT_OK_AND_ASSIGN(const std::string text,
                         ReadFile(root + "/" + name + "/config.json", 1 << 20));
    ASSERT_OK_AND_ASSIGN(const Json json, ParseJson(text, name));
    ASSERT_OK_AND_ASSIGN(const ModelConfig config, ModelConfigFromHuggingFace(json, name));
    ASSERT_OK_AND_ASSIGN(const SafetensorsFile file,
                         SafetensorsFile::Open(root + "/" + name + "/model.safetensors"));
    std::map<std::string, std::vector<int64_t>> saved;
    for (const auto& [tensor, view] : file.tensors()) saved[tensor] = view.shape;
    std::map<std::string, std::vector<int64_t>> expected;
    for (const TensorSpec& spec : ModelTensors(config)) expected[spec.name] = spec.shape;
    EXPECT_EQ(saved, expected);
  }
}

}  // namespace
}  // namespace quern
