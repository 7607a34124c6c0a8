#include "services/quantizer/text_file.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "services/quantizer/calibration.h"
#include "services/quantizer/token_file.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class TextTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "quern_XXXXXX").string();
    root_ = mkdtemp(pattern.data());
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::string Write(const std::string& name, const std::string& bytes) {
    std::ofstream(root_ + "/" + name, std::ios::binary) << bytes;
    return root_ + "/" + name;
  }
  std::string root_;
};

TEST_F(TextTest, JsonLinesGiveTheirTexts) {
  const std::string path = Write("a.jsonl",
                                 "{\"text\":\"one\",\"id\":1}\r\n\n{\"text\":\"\"}\n"
                                 "{\"text\":\"tw\\u00f6\"}");
  ASSERT_OK_AND_ASSIGN(const auto documents, ReadDocuments(path));
  EXPECT_THAT(documents, ElementsAre("one", "tw\xc3\xb6"));
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadText(path));
  EXPECT_EQ(text, "one\n\ntw\xc3\xb6");
}

TEST_F(TextTest, PlainTextIsCutAtBlankLinesAndNothingIsLost) {
  const std::string paragraph = std::string(5000, 'x') + "\n";
  const std::string path =
      Write("a.txt", paragraph + "\n" + paragraph + " \n" + paragraph + "\n" + paragraph);
  ASSERT_OK_AND_ASSIGN(const auto documents, ReadDocuments(path));
  ASSERT_EQ(documents.size(), 2u);
  EXPECT_EQ(documents[0], paragraph + "\n" + paragraph);
  EXPECT_EQ(documents[1], paragraph + "\n" + paragraph);
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadText(path));
  EXPECT_EQ(text.size(), 4 * paragraph.size() + 4);
}

TEST_F(TextTest, BadFilesAreRefusedWithPlace) {
  const auto expect = [&](const std::string& name, const std::string& bytes,
                          const std::string& message) {
    EXPECT_THAT(ReadDocuments(Write(name, bytes)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect("a.txt", "", "holds no text");
  expect("b.txt", " \n\n\t", "holds no text");
  expect("c.txt", "\xc0\x80", "not UTF-8");
  expect("d.jsonl", "[]\n", "line 1: found an array");
  expect("e.jsonl", "{\"text\":7}\n", "line 1: text: found 7, wanted a string");
  expect("f.jsonl", "{\"text\":\"a\",\"text\":\"b\"}\n", "line 1");
  expect("g.jsonl", std::string(200'000, '['), "line 1");
  expect("h.jsonl", "{\"text\":\"" + std::string(17 << 20, 'a') + "\"}", "at most 16777216");
  expect("i.jsonl", "\n\n{\"text\":\" \"}\n", "holds no text");
  EXPECT_THAT(ReadDocuments(root_ + "/none.txt"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none.txt")));
  EXPECT_THAT(ReadDocuments(root_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(root_)));
  // 2 GiB of holes: refused by size, not read.
  std::filesystem::resize_file(Write("big.txt", "x"), int64_t{2} << 30);
  EXPECT_THAT(ReadDocuments(root_ + "/big.txt"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("use a part of it")));
}

TEST_F(TextTest, DocumentsAreShuffledByTheSeedAndCut) {
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::FromJson(TinyTokenizerJson(300)));
  std::vector<std::string> documents;
  for (int i = 0; i < 50; ++i)
    documents.push_back("<|im_end|> document number " + std::to_string(i));
  const Cancellation cancellation;
  const CalibrationShape shape{.num_sequences = 5, .length_tokens = 16};
  ASSERT_OK_AND_ASSIGN(const auto first,
                       CutDocuments(*tokenizer, documents, shape, 1, cancellation));
  ASSERT_OK_AND_ASSIGN(const auto same,
                       CutDocuments(*tokenizer, documents, shape, 1, cancellation));
  ASSERT_OK_AND_ASSIGN(const auto other,
                       CutDocuments(*tokenizer, documents, shape, 2, cancellation));
  ASSERT_EQ(first.size(), 5u);
  for (const auto& sequence : first) {
    EXPECT_EQ(sequence.size(), 16u);
    // Text cannot forge special tokens.
    for (const int32_t id : sequence) EXPECT_NE(id, kTinyImEnd);
  }
  EXPECT_EQ(first, same);
  EXPECT_NE(first, other);
  EXPECT_THAT(CutDocuments(*tokenizer, documents, {.num_sequences = 500, .length_tokens = 512}, 1,
                           cancellation),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("tokens, the task wants 256000 (500 sequences of 512)")));
}

TEST(CalibrationTest, SampledSequencesLieEvenlyAmongThoseAfterBlockAps) {
  const auto order = [](int num_sequences, int num_block_sequences, int num_sampled) {
    TokenSequences of_text;
    for (int i = 0; i < num_sequences - num_sampled; ++i) of_text.push_back({'t'});
    std::string order;
    for (const auto& sequence :
         Interleave({.num_sequences = num_sequences,
         .num_sampled = num_sampled,
         .num_block_sequences = num_block_sequences},
                    std::move(of_text), TokenSequences(static_cast<size_t>(num_sampled), {'s'}))) {
      order += static_cast<char>(sequence[0]);
    }
    return order;
  };
  EXPECT_EQ(order(6, 2, 0), "tttttt");
  EXPECT_EQ(order(6, 2, 1), "ttttts");
  EXPECT_EQ(order(6, 2, 2), "tttsts");
  EXPECT_EQ(order(9, 2, 3), "tttststts");
  EXPECT_EQ(order(6, 2, 3), "ttssts");
  EXPECT_EQ(order(6, 2, 4), "ttssss");
  EXPECT_EQ(order(3, 3, 3), "sss");
}

TEST_F(TextTest, TokensAreKeptUnderTheirKey) {
  const std::string path = root_ + "/tokens.safetensors";
  const TokenSequences tokens = {{1, 2, 3}, {4, 5, 6}};
  EXPECT_THAT(LoadTokens(path, "key", 2, 3), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
  ASSERT_OK(SaveTokens(path, "key", tokens));
  ASSERT_OK_AND_ASSIGN(const TokenSequences loaded, LoadTokens(path, "key", 2, 3));
  EXPECT_EQ(loaded, tokens);
  const auto kOther = absl::StatusCode::kFailedPrecondition;
  EXPECT_THAT(LoadTokens(path, "another", 2, 3), StatusIs(kOther, HasSubstr("another task")));
  EXPECT_THAT(LoadTokens(path, "key", 3, 2), StatusIs(kOther, HasSubstr("another task")));
  EXPECT_NE(DigestOf(tokens), DigestOf({{1, 2, 3, 4, 5, 6}}));

  std::string bytes;
  {
    std::ifstream file(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(file), {});
  }
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  Write("tokens.safetensors", bytes);
  EXPECT_THAT(LoadTokens(path, "key", 2, 3),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("do not fit their digest")));
}

}  // namespace
}  // namespace quern
