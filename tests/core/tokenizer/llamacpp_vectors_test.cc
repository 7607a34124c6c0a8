// Test vectors of llama.cpp, and known ids of published models, with their whole vocabularies.
// These files are not part of the tree; the tests skip without them.

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_split.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "core/checkpoint/gguf.h"
#include "core/checkpoint/gguf_vocabulary.h"
#include "core/tokenizer/chat.h"
#include "core/tokenizer/tokenizer.h"
#include "tests/core/tokenizer/fixtures.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

constexpr char kFolder[] = "../shared/data/tokenizers/";

std::string SourcePath(const std::string& path) {
  const char* root = std::getenv("QUERN_SOURCE_DIR");
  return absl::StrCat(root == nullptr ? "." : root, "/", path);
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> OpenGguf(const std::string& path) {
  auto file = GgufFile::Open(path);
  if (!file.ok()) return file.status();
  auto json = TokenizerJsonFromGguf(*file);
  if (!json.ok()) return json.status();
  return Tokenizer::FromJson(*json);
}

// Texts in `stem`.inp, ids of each on a line of `stem`.out.
void ExpectVectors(const Tokenizer& tokenizer, const std::string& stem) {
  const std::string input = ReadSourceFile(stem + ".inp");
  const std::string output = ReadSourceFile(stem + ".out");
  std::vector<std::string> texts = absl::StrSplit(input, "\n__ggml_vocab_test__\n");
  std::vector<std::string> lines = absl::StrSplit(output, '\n');
  texts.pop_back();
  lines.pop_back();
  ASSERT_GE(texts.size(), 40u);
  ASSERT_EQ(texts.size(), lines.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    SCOPED_TRACE(texts[i]);
    std::vector<int32_t> wanted;
    for (absl::string_view number : absl::StrSplit(lines[i], ' ', absl::SkipEmpty())) {
      ASSERT_TRUE(absl::SimpleAtoi(number, &wanted.emplace_back()));
    }
    EXPECT_EQ(Ids(tokenizer, texts[i], {.add_special_tokens = false}), wanted);
  }
}

class LlamaCppVectors : public testing::TestWithParam<const char*> {};

TEST_P(LlamaCppVectors, IdsAreLlamaCpps) {
  const std::string stem = absl::StrCat(kFolder, "llamacpp-vocab/ggml-vocab-", GetParam(), ".gguf");
  if (!std::filesystem::exists(SourcePath(stem)) ||
      !std::filesystem::exists(SourcePath(stem + ".out"))) {
    GTEST_SKIP() << "needs " << stem << " with .inp and .out";
  }
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, OpenGguf(SourcePath(stem)));
  ExpectVectors(*tokenizer, stem);
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, LlamaCppVectors,
                         testing::Values("gpt-2", "phi-3", "llama-bpe", "llama-spm", "qwen2",
                                         "starcoder"),
                         [](const auto& info) {
                           return absl::StrJoin(absl::StrSplit(info.param, '-'), "_");
                         });

// GPT-2's own files, whose merges are a text file.
TEST(Gpt2Files, IdsAreLlamaCpps) {
  const std::string vocab = ReadSourceFile(absl::StrCat(kFolder, "gpt2/vocab.json"));
  const std::string merges = ReadSourceFile(absl::StrCat(kFolder, "gpt2/merges.txt"));
  if (vocab.empty() || merges.empty()) GTEST_SKIP() << "needs " << kFolder << "gpt2";
  Json json = ByteLevelJson({}, {});
  json["model"]["vocab"] = Json::parse(vocab);
  for (absl::string_view line : absl::StrSplit(merges, '\n', absl::SkipEmpty())) {
    json["model"]["merges"].push_back(std::string(line));
  }
  ExpectVectors(*MakeTokenizer(json),
                absl::StrCat(kFolder, "llamacpp-vocab/ggml-vocab-gpt-2.gguf"));
}

class SmolLm2 : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("QUERN_SMOLLM2_GGUF");
    if (path == nullptr) GTEST_SKIP() << "needs QUERN_SMOLLM2_GGUF, the path of its GGUF";
    ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(path));
    ASSERT_OK_AND_ASSIGN(const std::string json, TokenizerJsonFromGguf(file));
    ASSERT_OK_AND_ASSIGN(tokenizer_, Tokenizer::FromJson(json));
    ASSERT_OK_AND_ASSIGN(template_, file.String("tokenizer.chat_template"));
  }
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string template_;
};

TEST_F(SmolLm2, KnownIds) {
  EXPECT_THAT(Ids(*tokenizer_, "Hello"), testing::ElementsAre(19556));
  EXPECT_THAT(Ids(*tokenizer_, "The capital of France is"),
              testing::ElementsAre(504, 3575, 282, 4649, 314));
  EXPECT_EQ(tokenizer_->vocab_size(), 49152);
}

// The ids of its template run by transformers: the model's own default system message, then the
// user's turn and the assistant's opening.
TEST_F(SmolLm2, ChatPrompt) {
  ASSERT_EQ(RecognizeChatFormat(template_, *tokenizer_), ChatFormat::kChatMl);
  ASSERT_OK_AND_ASSIGN(const auto ids, RenderChat(ChatFormat::kChatMl, template_, *tokenizer_,
                                                  {{ChatMessage::Role::kUser, "Hello"}}));
  EXPECT_EQ(tokenizer_->Decode(ids, /*keep_special=*/true),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(ids, Ids(*tokenizer_, tokenizer_->Decode(ids, /*keep_special=*/true)));
  EXPECT_THAT(ChatStopIds(ChatFormat::kChatMl, *tokenizer_), testing::ElementsAre(2));
}

}  // namespace
}  // namespace quern
