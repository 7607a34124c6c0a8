#include <absl/strings/str_cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/base/half.h"
#include "core/base/json.h"
#include "core/base/sha256.h"
#include "core/checkpoint/checkpoint.h"
#include "core/model/tensor_names.h"
#include "core/safetensors/safetensors.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class HfCheckpointTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Checkpoint>> WriteAndOpen(const TinyModelOptions& options) {
    if (absl::Status status = WriteTinyCheckpoint(path_, options); !status.ok()) return status;
    return OpenCheckpoint(path_);
  }
  void Write(const std::string& name, const std::string& text) {
    ASSERT_OK(WriteFileDurably(path_ + "/" + name, text));
  }

  TempDirectory directory_;
  const std::string path_ = directory_.Path("model");
};

TEST_F(HfCheckpointTest, SingleFilesAndShardsHoldTheSameModel) {
  for (const int num_shards : {1, 3}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      TinyModelOptions options;
      options.num_shards = num_shards;
      options.dtype = dtype;
      options.tie_word_embeddings = false;
      TempDirectory directory;
      ASSERT_OK(WriteTinyCheckpoint(directory.path(), options));
      ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(directory.path()));
      int64_t weight_bytes = 0;
      for (const auto& [name, tensor] : TinyModelWeights(options)) {
        SCOPED_TRACE(name);
        ASSERT_OK_AND_ASSIGN(const TensorView view, checkpoint->Tensor(name));
        ASSERT_EQ(view.dtype, dtype);
        ASSERT_EQ(view.shape, tensor.shape);
        weight_bytes += static_cast<int64_t>(view.size_bytes);
        for (size_t i = 0; i < tensor.values.size(); ++i) {
          uint32_t bits = 0;
          std::memcpy(&bits, static_cast<const char*>(view.data) + i * SizeOf(dtype),
                      SizeOf(dtype));
          const uint32_t wanted = dtype == DType::kF32   ? std::bit_cast<uint32_t>(tensor.values[i])
                                  : dtype == DType::kF16 ? FloatToHalf(tensor.values[i])
                                                         : FloatToBfloat16(tensor.values[i]);
          ASSERT_EQ(bits, wanted);
        }
      }
      EXPECT_EQ(checkpoint->weight_bytes(), weight_bytes);
    }
  }
}

TEST_F(HfCheckpointTest, CarriesConfigTokenizerAndTemplate) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, WriteAndOpen({}));
  // generation_config.json names <|endoftext|> beside config.json's <|im_end|>.
  EXPECT_THAT(checkpoint->config().eos_token_ids, ElementsAre(kTinyImEnd, kTinyEndOfText));
  EXPECT_EQ(checkpoint->tokenizer_json(), TinyTokenizerJson(300));
  EXPECT_EQ(checkpoint->chat_template(), TinyChatTemplate());
  EXPECT_THAT(checkpoint->Tensor(kHeadName), StatusIs(absl::StatusCode::kNotFound, testing::_));
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ReadCheckpointConfig(path_));
  EXPECT_EQ(config, checkpoint->config());
}

TEST_F(HfCheckpointTest, TheContextCanBeReplacedBeforeAWindowIsJudged) {
  ASSERT_OK(WriteTinyCheckpoint(path_));
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadFile(path_ + "/config.json", 1 << 20));
  ASSERT_OK_AND_ASSIGN(Json config, ParseJson(text, "config"));
  config["model_type"] = "mistral";
  config["sliding_window"] = 100;
  Write("config.json", config.dump());
  EXPECT_THAT(OpenCheckpoint(path_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("sliding_window")));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint,
                       OpenCheckpoint(path_, {.max_position_embeddings = 100}));
  EXPECT_EQ(checkpoint->config().max_position_embeddings, 100);
  EXPECT_THAT(OpenCheckpoint(path_, {.max_position_embeddings = -1}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("found -1")));
}

TEST_F(HfCheckpointTest, ATemplateFileOfItsOwnWins) {
  ASSERT_OK(WriteTinyCheckpoint(path_));
  Write("chat_template.jinja", "own");
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(path_));
  EXPECT_EQ(checkpoint->chat_template(), "own");
}

TEST_F(HfCheckpointTest, OfNamedTemplatesTheDefaultIsTaken) {
  ASSERT_OK(WriteTinyCheckpoint(path_));
  Write(
      "tokenizer_config.json",
      R"({"chat_template":[{"name":"tool_use","template":"t"},{"name":"default","template":"d"}]})");
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(path_));
  EXPECT_EQ(checkpoint->chat_template(), "d");
}

TEST_F(HfCheckpointTest, ATokenizerIsNotRequired) {
  ASSERT_OK(WriteTinyCheckpoint(path_));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    ASSERT_OK(RemoveTree(path_ + "/" + name));
  }
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(path_));
  EXPECT_TRUE(checkpoint->tokenizer_json().empty());
  EXPECT_TRUE(checkpoint->chat_template().empty());
  EXPECT_THAT(checkpoint->config().eos_token_ids, ElementsAre(kTinyImEnd));
}

TEST_F(HfCheckpointTest, TheDigestIsThatOfAListOfDigests) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, WriteAndOpen({}));
  std::string list;
  for (const char* name : {"config.json", "generation_config.json", "model.safetensors",
                           "tokenizer.json", "tokenizer_config.json"}) {
    ASSERT_OK_AND_ASSIGN(const std::string bytes, ReadFile(path_ + "/" + name, 1 << 24));
    absl::StrAppend(&list, Sha256Hex(bytes), "  ", name, "\n");
  }
  EXPECT_EQ(*checkpoint->DigestHex(), Sha256Hex(list));
  Write("chat_template.jinja", "another");
  ASSERT_OK_AND_ASSIGN(const auto other, OpenCheckpoint(path_));
  EXPECT_NE(*other->DigestHex(), *checkpoint->DigestHex());
}

// What transformers stored for a tied model, or older versions for RoPE, is not in the way.
TEST_F(HfCheckpointTest, HarmlessExtraTensorsAreLeftAlone) {
  ASSERT_OK(WriteTinyCheckpoint(path_));
  ASSERT_OK_AND_ASSIGN(const SafetensorsFile file,
                       SafetensorsFile::Open(path_ + "/model.safetensors"));
  std::map<std::string, TensorView> tensors = file.tensors();
  const std::string head(kHeadName);
  tensors[head] = tensors.at(std::string(kEmbeddingName));
  const float frequencies[8] = {};
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {DType::kF32, {8}, frequencies, 32};
  ASSERT_OK(WriteSafetensors(path_ + "/model.safetensors", tensors, {}));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(path_));
  EXPECT_FALSE(checkpoint->Tensor(kHeadName).ok());
  EXPECT_FALSE(checkpoint->Tensor("model.layers.0.self_attn.rotary_emb.inv_freq").ok());

  const std::vector<float> other(300 * 64, 1.0f);
  tensors[head] = {DType::kF32, {300, 64}, other.data(), other.size() * 4};
  ASSERT_OK(WriteSafetensors(path_ + "/model.safetensors", tensors, {}));
  EXPECT_THAT(OpenCheckpoint(path_),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("lm_head.weight differs from model.embed_tokens.weight")));
}

}  // namespace
}  // namespace quern
