#include "core/convert/gguf.h"

#include <cstdlib>
#include <cstring>

#include "core/base/file.h"
#include "core/base/half.h"
#include "core/checkpoint/checkpoint.h"
#include "core/checkpoint/gguf.h"
#include "core/checkpoint/gguf_vocabulary.h"
#include "core/checkpoint/gguf_writer.h"
#include "tests/core/artifact/fixture.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::HasSubstr;

constexpr int kVocabulary = 300;

ModelConfig Config(const std::string& model_type) {
  ModelConfig config = EvenConfig();
  config.model_type = model_type;
  config.vocab_size = kVocabulary;
  config.qkv_bias = model_type == "qwen2";
  config.qk_norm = model_type == "qwen3";
  return config;
}

PackedModel Model(const QuantFormat& format, const ModelConfig& config) {
  PackedModel model = TinyModel(format, config);
  model.tokenizer_json = TinyTokenizerJson(kVocabulary);
  model.chat_template = TinyChatTemplate();
  return model;
}

std::vector<float> Expected(const PackedModel& model, const TensorSpec& spec) {
  if (spec.kind == TensorSpec::Kind::kVector) return model.vectors.at(spec.name);
  if (model.matrices.contains(spec.name)) return Dequantize(model.matrices.at(spec.name));
  const HalfTensor& half = model.half_matrices.at(spec.name);
  std::vector<float> values;
  for (int64_t i = 0; i < int64_t{half.rows} * half.cols; ++i) {
    values.push_back(HalfToFloat(half.data[i]));
  }
  return values;
}

// What the checkpoint reader, which was made for other programs' files, takes the file for.
void ExpectSameModel(const PackedModel& model, const std::string& path) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(path));
  EXPECT_EQ(checkpoint->chat_template(), model.chat_template);
  EXPECT_TRUE(SameVocabulary(checkpoint->tokenizer_json(), model.tokenizer_json));
  for (const TensorSpec& spec : ModelTensors(model.config)) {
    ASSERT_OK_AND_ASSIGN(const TensorView view, checkpoint->Tensor(spec.name));
    std::vector<float> values(view.num_elements());
    if (view.dtype == DType::kF16) {
      const auto* halves = static_cast<const uint16_t*>(view.data);
      for (size_t i = 0; i < values.size(); ++i) values[i] = HalfToFloat(halves[i]);
    } else {
      ASSERT_EQ(view.dtype, DType::kF32);
      std::memcpy(values.data(), view.data, view.size_bytes);
    }
    EXPECT_EQ(values, Expected(model, spec)) << spec.name;
  }
}

TEST(ExportGgufTest, EveryWidthIsExactInTheSmallestTypeThatHoldsIt) {
  for (const auto& [bits, symmetric, type] :
       {std::tuple(2, false, GgmlType::kQ4_0), std::tuple(2, true, GgmlType::kQ4_0),
        std::tuple(3, false, GgmlType::kQ4_0), std::tuple(4, true, GgmlType::kQ4_0),
        std::tuple(4, false, GgmlType::kQ5_0), std::tuple(8, true, GgmlType::kQ8_0)}) {
    SCOPED_TRACE(testing::Message() << bits << " bits, symmetric " << symmetric);
    const TemporaryDirectory directory;
    const PackedModel model =
        Model({.bits = bits, .group_size = 32, .symmetric = symmetric}, Config("llama"));
    ASSERT_OK(ExportGguf(model, directory / "model.gguf"));
    ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(directory / "model.gguf"));
    EXPECT_EQ(file.tensors().find("blk.0.ffn_up.weight")->second.type, type);
    ExpectSameModel(model, directory / "model.gguf");
  }
}

TEST(ExportGgufTest, EveryFamilyAndScalingOfRope) {
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    for (const auto scaling :
         {RopeScaling::Type::kNone, RopeScaling::Type::kLinear, RopeScaling::Type::kLlama3}) {
      SCOPED_TRACE(testing::Message() << family << " " << static_cast<int>(scaling));
      const TemporaryDirectory directory;
      ModelConfig config = Config(family);
      config.tie_word_embeddings = scaling == RopeScaling::Type::kNone;
      config.rope_scaling = {.type = scaling, .factor = 8};
      if (scaling == RopeScaling::Type::kNone) config.rope_scaling = {};
      const PackedModel model = Model({.bits = 4, .group_size = 64, .embedding_bits = 16}, config);
      ASSERT_OK(ExportGguf(model, directory / "model.gguf"));
      ExpectSameModel(model, directory / "model.gguf");
    }
  }
}

TEST(ExportGgufTest, GroupsThatNoBlockFitsBecomeFloats) {
  const TemporaryDirectory directory;
  ModelConfig config = TinyConfig();  // 48 inner channels
  config.vocab_size = kVocabulary;
  const PackedModel model = Model({.bits = 3, .group_size = 32}, config);
  ASSERT_OK(ExportGguf(model, directory / "model.gguf"));
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(directory / "model.gguf"));
  EXPECT_EQ(file.tensors().find("blk.0.ffn_down.weight")->second.type, GgmlType::kF32);
  EXPECT_EQ(file.tensors().find("blk.0.ffn_up.weight")->second.type, GgmlType::kQ4_0);
  ExpectSameModel(model, directory / "model.gguf");
}

TEST(ExportGgufTest, RefusesATokenizerThatTheFormatCannotExpress) {
  const TemporaryDirectory directory;
  PackedModel model = Model({.bits = 4, .group_size = 32}, Config("llama"));
  const auto refused = [&](const Json& tokenizer, const char* why) {
    model.tokenizer_json = tokenizer.dump();
    EXPECT_THAT(ExportGguf(model, directory / "model.gguf"),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(why)));
    EXPECT_TRUE(std::filesystem::is_empty(directory / "")) << "nothing is left half";
  };
  const Json good = Json::parse(TinyTokenizerJson(kVocabulary));
  Json tokenizer = good;
  tokenizer["model"] = {{"type", "WordPiece"}, {"vocab", Json::object()}};
  refused(tokenizer, "WordPiece is no BPE");
  tokenizer = good;
  tokenizer["normalizer"] = {{"type", "Lowercase"}};
  refused(tokenizer, "Lowercase");
  tokenizer = good;
  tokenizer["pre_tokenizer"]["pretokenizers"].insert(
      tokenizer["pre_tokenizer"]["pretokenizers"].begin(), {{"type", "Whitespace"}});
  refused(tokenizer, "Whitespace");
  tokenizer = good;
  tokenizer["model"]["ignore_merges"] = true;
  refused(tokenizer, "no name");
  tokenizer = good;
  tokenizer["added_tokens"][0]["id"] = kVocabulary;
  refused(tokenizer, "has id 300 of 300");
  model.config.eos_token_ids = {0, 1, 2, 3};
  refused(good, "4 tokens end a text");
}

// What the format's own tools made of published vocabularies.
class GgufVocabularies : public testing::TestWithParam<const char*> {};

TEST_P(GgufVocabularies, AreWrittenAsTheyWereRead) {
  const char* root = std::getenv("QUERN_SOURCE_DIR");
  const std::string path =
      std::string(root == nullptr ? "." : root) + "/../shared/data/" + GetParam();
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "needs " << path;
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(path));
  ASSERT_OK_AND_ASSIGN(const std::string json, TokenizerJsonFromGguf(file));
  ASSERT_OK_AND_ASSIGN(const auto tokens, file.Strings("tokenizer.ggml.tokens"));
  ModelConfig config;
  config.vocab_size = static_cast<int>(tokens.size());
  ASSERT_OK_AND_ASSIGN(const int64_t bos,
                       file.IntOr("tokenizer.ggml.bos_token_id", 0, INT32_MAX, -1));
  config.bos_token_id = static_cast<int>(bos);
  GgufWriter writer;
  ASSERT_OK(AddVocabularyToGguf(json, config, writer));
  const TemporaryDirectory directory;
  ASSERT_OK(WriteFileDurably(directory / "again.gguf", writer.Finish()));
  ASSERT_OK_AND_ASSIGN(const GgufFile again, GgufFile::Open(directory / "again.gguf"));
  ASSERT_OK_AND_ASSIGN(const std::string json_again, TokenizerJsonFromGguf(again));
  EXPECT_TRUE(SameVocabulary(json, json_again));
  EXPECT_FALSE(SameVocabulary(json, TinyTokenizerJson(kVocabulary)));
}

INSTANTIATE_TEST_SUITE_P(Files, GgufVocabularies,
                         testing::Values("tokenizers/llamacpp-vocab/ggml-vocab-gpt-2.gguf",
                                         "tokenizers/llamacpp-vocab/ggml-vocab-phi-3.gguf",
                                         "models/stories260Ktok512.gguf"));

}  // namespace
}  // namespace quern
