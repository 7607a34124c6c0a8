#include "core/convert/export.h"

#include <cstring>

#include "core/base/half.h"
#include "core/checkpoint/checkpoint.h"
#include "core/convert/gptq.h"
#include "core/safetensors/safetensors.h"
#include "tests/core/artifact/fixture.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<uint32_t> Words(absl::Span<const uint8_t> fields, int bits) {
  const std::vector<int32_t> words = PackBitStream(fields, bits);
  return {words.begin(), words.end()};
}

// Codes i % `period`, i = 0 to 31.
std::vector<uint8_t> Counting(int period) {
  std::vector<uint8_t> fields(32);
  for (int i = 0; i < 32; ++i) fields[i] = static_cast<uint8_t>(i % period);
  return fields;
}

TEST(GptqTest, WordsAreTheGoldenOnes) {
  EXPECT_THAT(Words(Counting(4), 2), ElementsAre(0xe4e4e4e4, 0xe4e4e4e4));
  EXPECT_THAT(Words(Counting(16), 4), ElementsAre(0x76543210, 0xfedcba98, 0x76543210, 0xfedcba98));
  EXPECT_THAT(Words(Counting(8), 3), ElementsAre(0x88fac688, 0xc688fac6, 0xfac688fa));
  EXPECT_EQ(Words(Counting(32), 8)[1], 0x07060504);
}

template <typename T>
std::vector<T> Values(const SafetensorsFile& file, const std::string& name) {
  const TensorView& view = file.tensors().at(name);
  std::vector<T> values(view.num_elements());
  EXPECT_EQ(values.size() * sizeof(T), view.size_bytes) << name;
  std::memcpy(values.data(), view.data, view.size_bytes);
  return values;
}

// A field of a bit stream along the rows (stride `stride`) of int32 words, one bit at a time.
int Field(const std::vector<int32_t>& words, int64_t first, int64_t stride, int index, int bits) {
  int value = 0;
  for (int bit = 0; bit < bits; ++bit) {
    const int position = index * bits + bit;
    const auto word = static_cast<uint32_t>(words[first + position / 32 * stride]);
    value |= static_cast<int>(word >> (position % 32) & 1) << bit;
  }
  return value;
}

TEST(ExportTest, GptqHoldsTheSameWeightsBitForBit) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const auto& [group_size, symmetric] :
         {std::pair(32, false), std::pair(32, true), std::pair(0, false)}) {
      const QuantFormat format{.bits = bits, .group_size = group_size, .symmetric = symmetric};
      const PackedModel model = TinyModel(format, EvenConfig());
      const TemporaryDirectory directory;
      ASSERT_OK(ExportModel(model, ExportForm::kGptqV2, directory / ""));
      ASSERT_OK_AND_ASSIGN(const SafetensorsFile file,
                           SafetensorsFile::Open(directory / "model.safetensors"));
      EXPECT_EQ(file.metadata().at("format"), "pt");
      const std::string prefix = "model.layers.0.mlp.down_proj.";
      const PackedTensor& matrix = model.matrices.at(prefix + "weight");
      const int rows = matrix.rows;
      const auto qweight = Values<int32_t>(file, prefix + "qweight");
      const auto qzeros = Values<int32_t>(file, prefix + "qzeros");
      const auto scales = Values<uint16_t>(file, prefix + "scales");
      const auto g_idx = Values<int32_t>(file, prefix + "g_idx");
      const std::vector<float> expected = Dequantize(matrix);
      for (int row = 0; row < rows; ++row) {
        for (int col = 0; col < matrix.cols; ++col) {
          const int64_t group = g_idx[col];
          ASSERT_EQ(group, col / matrix.group_size);
          const int code = Field(qweight, row, rows, col, bits);
          const int zero = Field(qzeros, group * rows * bits / 32, 1, row, bits);
          const float scale = HalfToFloat(scales[group * rows + row]);
          ASSERT_EQ(static_cast<float>(code - zero) * scale, expected[row * matrix.cols + col]);
        }
      }
      EXPECT_FALSE(file.tensors().contains(prefix + "weight"));
      EXPECT_EQ(Values<float>(file, "model.norm.weight"), model.vectors.at("model.norm.weight"));
      ASSERT_OK_AND_ASSIGN(const Json config,
                           ParseJson(ReadAll(directory / "config.json"), "config.json"));
      const Json& quantization = config.at("quantization_config");
      EXPECT_EQ(quantization.at("bits"), bits);
      EXPECT_EQ(quantization.at("group_size"), group_size == 0 ? -1 : group_size);
      EXPECT_EQ(quantization.at("checkpoint_format"), "gptq_v2");
      EXPECT_EQ(quantization.at("sym"), symmetric);
    }
  }
}

TEST(ExportTest, GptqRefusesWhatItCannotHold) {
  const TemporaryDirectory directory;
  EXPECT_THAT(ExportModel(TinyModel(), ExportForm::kGptqV2, directory / ""),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("multiples of 32")));
  EXPECT_TRUE(std::filesystem::is_empty(directory / "")) << "nothing is left half";
}

TEST(ExportTest, GptqRefusesMatricesWithBitsOfTheirOwn) {
  const TemporaryDirectory directory;
  const PackedModel model = TinyModel(
      {.bits = 2, .group_size = 32, .matrix_bits = {{"model.layers.0.mlp.up_proj.weight", 4}}},
      EvenConfig());
  EXPECT_THAT(ExportModel(model, ExportForm::kGptqV2, directory / ""),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("1 matrices have bits of their own")));
  ASSERT_OK(ExportModel(model, ExportForm::kHuggingFace, directory / ""));
}

TEST(ExportTest, AFloatCheckpointIsWhatThePackedWeightsMean) {
  for (const int64_t shard_bytes : {int64_t{1} << 30, int64_t{20'000}}) {
    for (const int embedding_bits : {8, 16}) {
      ModelConfig config = TinyConfig();
      config.tie_word_embeddings = embedding_bits == 16;
      const PackedModel model =
          TinyModel({.bits = 3, .group_size = 32, .embedding_bits = embedding_bits}, config);
      const TemporaryDirectory directory;
      ASSERT_OK(ExportModel(model, ExportForm::kHuggingFace, directory / "", shard_bytes));
      EXPECT_EQ(std::filesystem::exists(directory / "model.safetensors.index.json"),
                shard_bytes < 30'000);
      ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(directory / ""));
      EXPECT_EQ(checkpoint->config(), model.config);
      EXPECT_EQ(checkpoint->tokenizer_json(), model.tokenizer_json);
      EXPECT_EQ(checkpoint->chat_template(), model.chat_template);
      for (const TensorSpec& spec : ModelTensors(config)) {
        ASSERT_OK_AND_ASSIGN(const TensorView view, checkpoint->Tensor(spec.name));
        ASSERT_EQ(view.dtype, DType::kF32);
        std::vector<float> values(view.num_elements());
        std::memcpy(values.data(), view.data, view.size_bytes);
        if (spec.kind == TensorSpec::Kind::kVector) {
          EXPECT_EQ(values, model.vectors.at(spec.name));
        } else if (model.matrices.contains(spec.name)) {
          EXPECT_EQ(values, Dequantize(model.matrices.at(spec.name)));
        } else {
          const HalfTensor& half = model.half_matrices.at(spec.name);
          for (size_t i = 0; i < values.size(); ++i) {
            ASSERT_EQ(values[i], HalfToFloat(half.data[i]));
          }
        }
      }
    }
  }
}

TEST(ExportTest, ChatTemplatesFindTheTokensThatTheyName) {
  PackedModel model = TinyModel();
  model.tokenizer_json = R"({"added_tokens":[{"id":1,"content":"<s>"},{"id":2,"content":"</s>"},
                            {"id":"x","content":"y"},{"id":3},7]})";
  const TemporaryDirectory directory;
  ASSERT_OK(ExportModel(model, ExportForm::kHuggingFace, directory / ""));
  ASSERT_OK_AND_ASSIGN(const Json config, ParseJson(ReadAll(directory / "tokenizer_config.json"),
                                                    "tokenizer_config.json"));
  EXPECT_EQ(config, (Json{{"tokenizer_class", "PreTrainedTokenizerFast"},
                          {"model_max_length", 64},
                          {"chat_template", model.chat_template},
                          {"bos_token", "<s>"},
                          {"eos_token", "</s>"}}));
  ASSERT_OK_AND_ASSIGN(const Json hf, ParseJson(ReadAll(directory / "config.json"), "config.json"));
  EXPECT_EQ(hf, (Json{{"architectures", {"LlamaForCausalLM"}},
                      {"model_type", "llama"},
                      {"hidden_size", 32},
                      {"intermediate_size", 48},
                      {"num_hidden_layers", 1},
                      {"num_attention_heads", 2},
                      {"num_key_value_heads", 1},
                      {"head_dim", 16},
                      {"vocab_size", 33},
                      {"max_position_embeddings", 64},
                      {"hidden_act", "silu"},
                      {"rms_norm_eps", 1e-5},
                      {"rope_theta", 10000.0},
                      {"tie_word_embeddings", true},
                      {"attention_bias", false},
                      {"mlp_bias", false},
                      {"bos_token_id", 1},
                      {"eos_token_id", {2}},
                      {"torch_dtype", "float32"}}));

  model.chat_template = "\xff";
  const TemporaryDirectory other;
  EXPECT_THAT(ExportModel(model, ExportForm::kHuggingFace, other / ""),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("UTF-8")));
}

TEST(ExportTest, EveryFamilyHasAConfig) {
  const auto expect_same = [](const ModelConfig& config) {
    ASSERT_OK_AND_ASSIGN(const Json json, ModelConfigToHuggingFace(config));
    ASSERT_OK_AND_ASSIGN(const ModelConfig again, ModelConfigFromHuggingFace(json, "config.json"));
    EXPECT_EQ(again, config);
  };
  ModelConfig config = TinyConfig();
  for (const bool biases : {false, true}) {
    config.qkv_bias = config.o_bias = config.mlp_bias = biases;
    expect_same(config);
  }
  config = TinyConfig();
  config.rope_theta = 5e5;
  config.rope_scaling = {.type = RopeScaling::Type::kLlama3, .factor = 8};
  expect_same(config);
  config.rope_scaling = {.type = RopeScaling::Type::kLinear, .factor = 2};
  expect_same(config);
  config.model_type = "mistral";
  config.eos_token_ids = {2, 5};
  config.bos_token_id = -1;
  expect_same(config);
  config.model_type = "qwen2";
  config.qkv_bias = true;
  expect_same(config);
  config.model_type = "qwen3";
  config.qkv_bias = false;
  config.qk_norm = true;
  expect_same(config);

  config.model_type = "mistral";
  EXPECT_THAT(ModelConfigToHuggingFace(config).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("MistralForCausalLM")));
  config.model_type = "gpt2";
  EXPECT_THAT(ModelConfigToHuggingFace(config).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("gpt2")));
}

}  // namespace
}  // namespace quern
