// Files that other programs wrote. Not in the tree: the tests skip where they are absent.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/checkpoint/checkpoint.h"
#include "core/checkpoint/gguf.h"
#include "core/checkpoint/gguf_vocabulary.h"
#include "core/model/tensor_names.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;

std::string SharedData(const std::string& name) {
  return std::string(std::getenv("QUERN_SOURCE_DIR")) + "/../shared/data/" + name;
}

bool Exists(const std::string& path) { return std::ifstream(path).good(); }

// llama2.c's stories260K.bin holds the same weights in its own, interleaved row order; its header
// is seven 32-bit integers, then the embedding, then attention norms, then wq of all layers.
TEST(RealFilesTest, Stories260KRowsAreInHuggingFaceOrder) {
  const std::string gguf_path = SharedData("models/stories260Ktok512.gguf");
  const std::string bin_path = SharedData("models/stories260K.bin");
  if (!Exists(gguf_path) || !Exists(bin_path)) GTEST_SKIP() << gguf_path << " is not here";
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(gguf_path));
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(config.hidden_size, 64);
  EXPECT_EQ(config.num_hidden_layers, 5);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.max_position_embeddings, 128);
  EXPECT_FALSE(config.tie_word_embeddings) << "it carries its own output.weight";

  ASSERT_OK_AND_ASSIGN(const std::string bin, ReadFile(bin_path, 1 << 24));
  const auto value = [&](size_t index) {
    float number;
    std::memcpy(&number, bin.data() + 28 + 4 * index, 4);
    return number;
  };
  const size_t wq = 512 * 64 + 5 * 64;
  ASSERT_OK_AND_ASSIGN(const TensorView view,
                       checkpoint->Tensor("model.layers.0.self_attn.q_proj.weight"));
  const auto* rows = static_cast<const float*>(view.data);
  for (size_t row = 0; row < 64; ++row) {
    const size_t interleaved = row / 8 * 8 + row % 4 * 2 + row % 8 / 4;
    for (size_t column = 0; column < 64; ++column) {
      ASSERT_EQ(rows[row * 64 + column], value(wq + interleaved * 64 + column));
    }
  }
}

TEST(RealFilesTest, VocabulariesOfLlamaCpp) {
  const struct {
    const char* name;
    size_t num_tokens;
  } files[] = {{"gpt-2", 50256}, {"phi-3", 32000}};
  for (const auto& file : files) {
    const std::string path =
        SharedData("tokenizers/llamacpp-vocab/ggml-vocab-" + std::string(file.name) + ".gguf");
    if (!Exists(path)) GTEST_SKIP() << path << " is not here";
    ASSERT_OK_AND_ASSIGN(const GgufFile gguf, GgufFile::Open(path));
    ASSERT_OK_AND_ASSIGN(const std::string text, TokenizerJsonFromGguf(gguf));
    ASSERT_OK_AND_ASSIGN(const Json json, ParseJson(text, file.name));
    EXPECT_EQ(json["model"]["vocab"].size(), file.num_tokens);
    EXPECT_GT(json["model"]["merges"].size(), 49000u);
    // Without tensors it is no checkpoint.
    EXPECT_FALSE(OpenCheckpoint(path).ok());
  }
}

TEST(RealFilesTest, AVocabularyWithoutPreTokenizerIsRefused) {
  const std::string path = SharedData("tokenizers/llamacpp-vocab/ggml-vocab-gpt-neox.gguf");
  if (!Exists(path)) GTEST_SKIP() << path << " is not here";
  ASSERT_OK_AND_ASSIGN(const GgufFile gguf, GgufFile::Open(path));
  EXPECT_THAT(
      TokenizerJsonFromGguf(gguf),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tokenizer.ggml.pre: found nothing")));
}

}  // namespace
}  // namespace quern
