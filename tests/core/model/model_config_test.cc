#include "core/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

Json Llama() {
  return Json{{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"hidden_size", 2048},
              {"intermediate_size", 8192},
              {"num_hidden_layers", 16},
              {"num_attention_heads", 32},
              {"num_key_value_heads", 8},
              {"vocab_size", 128256},
              {"max_position_embeddings", 131072},
              {"rms_norm_eps", 1e-5},
              {"bos_token_id", 128000},
              {"eos_token_id", {128001, 128008, 128009}},
              {"torch_dtype", "bfloat16"}};
}

Json With(Json config, const Json& changes) {
  config.update(changes);
  return config;
}

absl::StatusOr<ModelConfig> Read(const Json& config) {
  return ModelConfigFromHuggingFace(config, "config.json");
}

TEST(ModelConfigTest, ReadsLlama3AsTransformers4WritesIt) {
  const Json json = With(Llama(), {{"rope_theta", 500000.0},
                                   {"tie_word_embeddings", true},
                                   {"rope_scaling",
                                    {{"rope_type", "llama3"},
                                     {"factor", 32.0},
                                     {"low_freq_factor", 1.0},
                                     {"high_freq_factor", 4.0},
                                     {"original_max_position_embeddings", 8192}}}});
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, Read(json));
  EXPECT_EQ(config.model_type, "llama");
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.q_size(), 2048);
  EXPECT_EQ(config.kv_size(), 512);
  EXPECT_EQ(config.rope_theta, 500000);
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLlama3);
  EXPECT_EQ(config.rope_scaling.factor, 32);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_EQ(config.bos_token_id, 128000);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(128001, 128008, 128009));
}

TEST(ModelConfigTest, ReadsRopeParametersOfTransformers5) {
  const Json json = With(
      Llama(),
      {{"rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 700.0}}}});
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, Read(json));
  EXPECT_EQ(config.rope_theta, 700);
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLinear);
  EXPECT_EQ(config.rope_scaling.factor, 2);
}

TEST(ModelConfigTest, RefusesTwoRopeDescriptionsThatDisagree) {
  const Json json = With(Llama(), {{"rope_parameters", {{"rope_type", "default"}}},
                                   {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}});
  EXPECT_THAT(Read(json), StatusIs(kInvalid, HasSubstr("rope_scaling")));
}

TEST(ModelConfigTest, FamiliesDifferInBiasesAndNorms) {
  const Json biased = With(Llama(), {{"attention_bias", true}, {"mlp_bias", true}});
  ASSERT_OK_AND_ASSIGN(ModelConfig config, Read(biased));
  EXPECT_TRUE(config.qkv_bias && config.o_bias && config.mlp_bias && !config.qk_norm);

  ASSERT_OK_AND_ASSIGN(
      config, Read(With(biased, {{"model_type", "mistral"}, {"sliding_window", nullptr}})));
  EXPECT_FALSE(config.qkv_bias || config.o_bias || config.mlp_bias || config.qk_norm);

  ASSERT_OK_AND_ASSIGN(config, Read(With(Llama(), {{"model_type", "qwen2"}})));
  EXPECT_TRUE(config.qkv_bias && !config.o_bias && !config.mlp_bias && !config.qk_norm);

  ASSERT_OK_AND_ASSIGN(config, Read(With(Llama(), {{"model_type", "qwen3"}})));
  EXPECT_TRUE(!config.qkv_bias && !config.o_bias && !config.mlp_bias && config.qk_norm);
  EXPECT_EQ(config.head_dim, 128) << "Qwen3's default, whatever hidden_size says";
}

TEST(ModelConfigTest, MissingKeyValueHeadsMeanOneForEachHead) {
  Json json = Llama();
  json.erase("num_key_value_heads");
  json.erase("eos_token_id");
  json.erase("bos_token_id");
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, Read(json));
  EXPECT_EQ(config.num_key_value_heads, 32);
  EXPECT_EQ(config.bos_token_id, -1);
  EXPECT_TRUE(config.eos_token_ids.empty());
}

TEST(ModelConfigTest, SlidingWindowMattersOnlyInsideTheContext) {
  const Json mistral = With(Llama(), {{"model_type", "mistral"}, {"sliding_window", 4096}});
  EXPECT_THAT(Read(mistral),
              StatusIs(kInvalid, AllOf(HasSubstr("sliding_window"), HasSubstr("found 4096"),
                                       HasSubstr("at most 4096"))));
  EXPECT_OK(Read(With(mistral, {{"max_position_embeddings", 4096}})));
  // MistralConfig's default is a window of 4096.
  EXPECT_THAT(Read(With(Llama(), {{"model_type", "mistral"}})), StatusIs(kInvalid, testing::_));

  const Json qwen2 = With(Llama(), {{"model_type", "qwen2"}, {"sliding_window", 4096}});
  EXPECT_OK(Read(qwen2));
  EXPECT_THAT(Read(With(qwen2, {{"use_sliding_window", true}})),
              StatusIs(kInvalid, HasSubstr("sliding_window")));
}

struct BadConfig {
  std::string name;
  Json changes;
  std::string message;
};

void PrintTo(const BadConfig& value, std::ostream* out) { *out << value.name; }

class BadConfigTest : public testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigTest, IsRefusedByName) {
  EXPECT_THAT(Read(With(Llama(), GetParam().changes)),
              StatusIs(kInvalid, AllOf(HasSubstr("config.json"), HasSubstr(GetParam().message))));
}

const BadConfig kBadConfigs[] = {
    {"UnknownFamily", {{"model_type", "gpt_neox"}}, "supported: llama, mistral, qwen2, qwen3"},
    {"FamilyNotAString", {{"model_type", 3}}, "model_type: found 3"},
    {"OtherActivation", {{"hidden_act", "gelu"}}, "hidden_act: found \"gelu\", supported: silu"},
    {"AutoMap", {{"auto_map", {{"AutoModel", "x.y"}}}}, "auto_map"},
    {"TrustRemoteCode", {{"trust_remote_code", true}}, "trust_remote_code"},
    {"QuantizationConfig", {{"quantization_config", {{"bits", 4}}}}, "quantization_config"},
    {"UnknownDtype", {{"torch_dtype", "float8_e4m3fn"}}, "torch_dtype: found \"float8_e4m3fn\""},
    {"Classifier", {{"architectures", {"LlamaForSequenceClassification"}}}, "architectures"},
    {"SlidingLayers", {{"layer_types", {"sliding_attention"}}}, "layer_types"},
    {"PartialRotary", {{"partial_rotary_factor", 0.5}}, "partial_rotary_factor"},
    {"Yarn", {{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}}}, "found \"yarn\""},
    {"DynamicRope", {{"rope_scaling", {{"type", "dynamic"}, {"factor", 4.0}}}}, "\"dynamic\""},
    {"LinearWithoutFactor", {{"rope_scaling", {{"type", "linear"}}}}, "factor: found nothing"},
    {"Llama3SameFactors",
     {{"rope_scaling",
       {{"rope_type", "llama3"},
        {"factor", 8.0},
        {"low_freq_factor", 4.0},
        {"high_freq_factor", 4.0},
        {"original_max_position_embeddings", 8192}}}},
     "high_freq_factor"},
    {"RopeThetaZero", {{"rope_theta", 0}}, "rope_theta: found 0"},
    {"RopeThetaTrue", {{"rope_theta", true}}, "rope_theta: found true"},
    {"EpsilonZero", {{"rms_norm_eps", 0}}, "rms_norm_eps"},
    {"EpsilonNegative", {{"rms_norm_eps", -1e-5}}, "rms_norm_eps"},
    {"HiddenZero", {{"hidden_size", 0}}, "hidden_size: found 0"},
    {"HiddenNegative", {{"hidden_size", -1}}, "hidden_size: found -1"},
    {"HiddenAString", {{"hidden_size", "2048"}}, "hidden_size: found \"2048\""},
    {"HiddenAFraction", {{"hidden_size", 2048.0}}, "hidden_size: found 2048.0"},
    {"HiddenTooLarge", {{"hidden_size", uint64_t{1} << 63}}, "hidden_size"},
    {"LayersZero", {{"num_hidden_layers", 0}}, "num_hidden_layers"},
    {"LayersMillion", {{"num_hidden_layers", 1000000}}, "num_hidden_layers: found 1000000"},
    {"ContextTooLong", {{"max_position_embeddings", int64_t{1} << 31}}, "max_position_embeddings"},
    {"HeadsDoNotDivide", {{"num_attention_heads", 30}}, "a divisor of hidden_size 2048"},
    {"MoreKeyHeadsThanHeads", {{"num_key_value_heads", 64}}, "num_key_value_heads is 64"},
    {"KeyHeadsDoNotDivide", {{"num_key_value_heads", 5}}, "a divisor of num_attention_heads 32"},
    {"OddHeadDim", {{"head_dim", 63}}, "head_dim is 63, wanted an even number"},
    {"HeadDimTooLarge", {{"head_dim", 512}}, "head_dim: found 512"},
    {"VocabTooLarge", {{"vocab_size", 2000000}}, "vocab_size: found 2000000"},
    {"BosOutside", {{"bos_token_id", 128256}}, "bos_token_id: found 128256"},
    {"EosOutside", {{"eos_token_id", {1, 128256}}}, "eos_token_id: found [1,128256]"},
    {"EosNegative", {{"eos_token_id", -1}}, "eos_token_id: found -1"},
    {"TieNotABool", {{"tie_word_embeddings", 1}}, "tie_word_embeddings: found 1"},
};

INSTANTIATE_TEST_SUITE_P(All, BadConfigTest, testing::ValuesIn(kBadConfigs),
                         [](const auto& info) { return info.param.name; });

TEST(ModelConfigTest, EveryRequiredKeyIsMissedByName) {
  for (const char* key : {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "vocab_size", "max_position_embeddings"}) {
    Json json = Llama();
    json.erase(key);
    EXPECT_THAT(Read(json), StatusIs(kInvalid, HasSubstr(std::string(key) + ": found nothing")));
  }
  EXPECT_THAT(Read(Json::array()), StatusIs(kInvalid, HasSubstr("wanted an object")));
}

TEST(ModelConfigTest, OurOwnFormGivesTheSameConfigBack) {
  ASSERT_OK_AND_ASSIGN(
      const ModelConfig config,
      Read(With(Llama(), {{"rms_norm_eps", 1.2345678901234567e-6},
                          {"mlp_bias", true},
                          {"rope_scaling", {{"type", "linear"}, {"factor", 1.7}}}})));
  const std::string text = DumpCanonicalJson(ModelConfigToJson(config));
  ASSERT_OK_AND_ASSIGN(const Json json, ParseJson(text, "manifest"));
  ASSERT_OK_AND_ASSIGN(const ModelConfig again, ModelConfigFromJson(json, "manifest"));
  EXPECT_EQ(again, config);
  EXPECT_EQ(DumpCanonicalJson(ModelConfigToJson(again)), text);
}

TEST(ModelConfigTest, OurOwnFormIsStrict) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, Read(Llama()));
  const Json good = ModelConfigToJson(config);
  for (const auto& [key, value] : good.items()) {
    Json missing = good;
    missing.erase(key);
    EXPECT_THAT(ModelConfigFromJson(missing, "manifest"), StatusIs(kInvalid, HasSubstr(key)));
    Json wrong = good;
    wrong[key] = Json::array({"?"});
    EXPECT_THAT(ModelConfigFromJson(wrong, "manifest"), StatusIs(kInvalid, HasSubstr(key)));
  }
  EXPECT_THAT(ModelConfigFromJson(With(good, {{"extra", 1}}), "manifest"),
              StatusIs(kInvalid, HasSubstr("\"extra\" is not known")));
  Json odd = good;
  odd["rope_scaling"]["extra"] = 1;
  EXPECT_THAT(ModelConfigFromJson(odd, "manifest"), StatusIs(kInvalid, HasSubstr("extra")));
}

}  // namespace
}  // namespace quern
