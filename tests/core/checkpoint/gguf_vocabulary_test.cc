#include "core/checkpoint/gguf_vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/checkpoint/gguf_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"

namespace quern {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

absl::StatusOr<Json> Translate(const GgufWriter& writer) {
  TempDirectory directory;
  const std::string path = directory.Path("vocabulary.gguf");
  OverwriteFile(path, writer.Finish());
  absl::StatusOr<GgufFile> file = GgufFile::Open(path);
  if (!file.ok()) return file.status();
  absl::StatusOr<std::string> text = TokenizerJsonFromGguf(*file);
  if (!text.ok()) return text.status();
  return ParseJson(*text, "tokenizer.json");
}

// Tokens 0..5: <|s|> (control), a, b, ab, [user] (user-defined), pad (unused).
GgufWriter ByteLevel(const std::string& pre) {
  GgufWriter writer;
  writer.String("tokenizer.ggml.model", "gpt2");
  if (!pre.empty()) writer.String("tokenizer.ggml.pre", pre);
  writer.Strings("tokenizer.ggml.tokens", {"<|s|>", "a", "b", "ab", "[user]", "pad"});
  writer.Int32s("tokenizer.ggml.token_type", {3, 1, 1, 1, 4, 5});
  writer.Strings("tokenizer.ggml.merges", {"a b"});
  writer.Uint32("tokenizer.ggml.bos_token_id", 0);
  return writer;
}

// Pieces with the scores SentencePiece gives: the later it made one, the lower.
GgufWriter SentencePiece() {
  GgufWriter writer;
  writer.String("tokenizer.ggml.model", "llama");
  writer.Strings("tokenizer.ggml.tokens",
                 {"<unk>", "<s>", "</s>", "<0x0A>", "ab", "abc", "bc", "a", "b", "c", "▁"});
  writer.Float32s("tokenizer.ggml.scores", {0, 0, 0, 0, -1, -3, -2, -4, -5, -6, -7});
  writer.Int32s("tokenizer.ggml.token_type", {2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1});
  writer.Uint32("tokenizer.ggml.unknown_token_id", 0);
  writer.Uint32("tokenizer.ggml.bos_token_id", 1);
  return writer;
}

TEST(GgufVocabularyTest, ByteLevelKeepsIdsMergesAndKinds) {
  ASSERT_OK_AND_ASSIGN(const Json json, Translate(ByteLevel("smollm")));
  EXPECT_EQ(json["model"]["type"], "BPE");
  // The control token stands before the others, so it is in the vocabulary; the user's stands
  // behind; the unused one is nowhere.
  EXPECT_EQ(json["model"]["vocab"], (Json{{"<|s|>", 0}, {"a", 1}, {"b", 2}, {"ab", 3}}));
  EXPECT_EQ(json["model"]["merges"], Json::array({"a b"}));
  ASSERT_EQ(json["added_tokens"].size(), 2u);
  EXPECT_EQ(json["added_tokens"][0]["content"], "<|s|>");
  EXPECT_EQ(json["added_tokens"][0]["special"], true);
  EXPECT_EQ(json["added_tokens"][1]["id"], 4);
  EXPECT_EQ(json["added_tokens"][1]["special"], false);
  EXPECT_TRUE(json["post_processor"].is_null());
  EXPECT_EQ(json["decoder"]["type"], "ByteLevel");
}

TEST(GgufVocabularyTest, PreTokenizersAreThoseOfTheFamilies) {
  ASSERT_OK_AND_ASSIGN(Json json, Translate(ByteLevel("gpt-2")));
  EXPECT_EQ(json["pre_tokenizer"]["type"], "ByteLevel");
  EXPECT_EQ(json["pre_tokenizer"]["use_regex"], true);

  ASSERT_OK_AND_ASSIGN(json, Translate(ByteLevel("smollm")));
  EXPECT_EQ(json["pre_tokenizer"]["pretokenizers"][0],
            (Json{{"type", "Digits"}, {"individual_digits", true}}));
  EXPECT_EQ(json["pre_tokenizer"]["pretokenizers"][1]["use_regex"], true);

  ASSERT_OK_AND_ASSIGN(json, Translate(ByteLevel("qwen2")));
  EXPECT_EQ(json["normalizer"], (Json{{"type", "NFC"}}));
  EXPECT_EQ(
      json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
  EXPECT_EQ(json["pre_tokenizer"]["pretokenizers"][1]["use_regex"], false);
  EXPECT_EQ(json["model"]["ignore_merges"], false);

  ASSERT_OK_AND_ASSIGN(json, Translate(ByteLevel("llama-bpe")));
  EXPECT_EQ(
      json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
  EXPECT_EQ(json["model"]["ignore_merges"], true);
}

TEST(GgufVocabularyTest, Llama3AddsBosUnlessTold) {
  ASSERT_OK_AND_ASSIGN(Json json, Translate(ByteLevel("llama-bpe")));
  const Json& post = json["post_processor"];
  EXPECT_EQ(post["type"], "TemplateProcessing");
  ASSERT_EQ(post["single"].size(), 2u);
  EXPECT_EQ(post["single"][0]["SpecialToken"]["id"], "<|s|>");
  EXPECT_EQ(post["single"][1]["Sequence"]["id"], "A");
  EXPECT_EQ(post["special_tokens"]["<|s|>"]["ids"], Json::array({0}));
  EXPECT_EQ(post["special_tokens"]["<|s|>"]["tokens"], Json::array({"<|s|>"}));

  GgufWriter without = ByteLevel("llama-bpe");
  without.Bool("tokenizer.ggml.add_bos_token", false);
  ASSERT_OK_AND_ASSIGN(json, Translate(without));
  EXPECT_TRUE(json["post_processor"].is_null());
}

TEST(GgufVocabularyTest, MergesFollowFromScores) {
  ASSERT_OK_AND_ASSIGN(const Json json, Translate(SentencePiece()));
  // By score of the result: ab (-1), bc (-2), then abc (-3), where the longer left half goes first.
  EXPECT_EQ(json["model"]["merges"], Json::array({"a b", "b c", "ab c", "a bc"}));
  EXPECT_EQ(json["model"]["byte_fallback"], true);
  EXPECT_EQ(json["model"]["fuse_unk"], true);
  EXPECT_EQ(json["model"]["unk_token"], "<unk>");
  EXPECT_EQ(json["model"]["vocab"]["<0x0A>"], 3);
  EXPECT_EQ(json["model"]["vocab"].size(), 11u);
  EXPECT_EQ(json["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
}

TEST(GgufVocabularyTest, NoMergeMakesAControlToken) {
  GgufWriter writer;
  writer.String("tokenizer.ggml.model", "llama");
  writer.Strings("tokenizer.ggml.tokens", {"</s>", "</", "s>"});
  writer.Float32s("tokenizer.ggml.scores", {0, -1, -2});
  writer.Int32s("tokenizer.ggml.token_type", {3, 1, 1});
  writer.Bool("tokenizer.ggml.add_bos_token", false);
  ASSERT_OK_AND_ASSIGN(const Json json, Translate(writer));
  EXPECT_TRUE(json["model"]["merges"].empty());
}

TEST(GgufVocabularyTest, TheLeadingSpaceIsAskedFor) {
  ASSERT_OK_AND_ASSIGN(Json json, Translate(SentencePiece()));
  EXPECT_EQ(json["normalizer"]["normalizers"][0], (Json{{"type", "Prepend"}, {"prepend", "▁"}}));
  EXPECT_EQ(json["normalizer"]["normalizers"][1]["content"], "▁");
  EXPECT_EQ(json["decoder"]["decoders"].back()["type"], "Strip");
  GgufWriter without = SentencePiece();
  without.Bool("tokenizer.ggml.add_space_prefix", false);
  ASSERT_OK_AND_ASSIGN(json, Translate(without));
  ASSERT_EQ(json["normalizer"]["normalizers"].size(), 1u);
  EXPECT_EQ(json["normalizer"]["normalizers"][0]["type"], "Replace");
  EXPECT_EQ(json["decoder"]["decoders"].back()["type"], "Fuse");
}

// All a^i b^j of up to 200 characters: 20,300 pieces, of which nearly every split is two pieces.
TEST(GgufVocabularyTest, TheNumberOfMergesIsBounded) {
  std::vector<std::string> tokens;
  for (size_t a = 0; a <= 200; ++a) {
    for (size_t b = a == 0 ? 1 : 0; a + b <= 200; ++b) {
      tokens.push_back(std::string(a, 'a') + std::string(b, 'b'));
    }
  }
  GgufWriter writer;
  writer.String("tokenizer.ggml.model", "llama");
  writer.Strings("tokenizer.ggml.tokens", tokens);
  writer.Float32s("tokenizer.ggml.scores", std::vector<float>(tokens.size(), 0.0f));
  EXPECT_THAT(Translate(writer),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("more than 2097152 merges")));
}

struct BadVocabulary {
  std::string name;
  std::function<void(GgufWriter&)> fill;
  std::string message;
  absl::StatusCode code = absl::StatusCode::kDataLoss;
};

void PrintTo(const BadVocabulary& value, std::ostream* out) { *out << value.name; }

class BadVocabularyTest : public testing::TestWithParam<BadVocabulary> {};

TEST_P(BadVocabularyTest, IsRefusedByName) {
  GgufWriter writer;
  GetParam().fill(writer);
  EXPECT_THAT(Translate(writer), StatusIs(GetParam().code, AllOf(HasSubstr("vocabulary.gguf"),
                                                                 HasSubstr(GetParam().message))));
}

void Fill(GgufWriter& writer, const std::string& model, const std::vector<std::string>& tokens,
          const std::vector<int32_t>& types, const std::vector<float>& scores) {
  writer.String("tokenizer.ggml.model", model);
  writer.String("tokenizer.ggml.pre", "gpt-2");
  writer.Strings("tokenizer.ggml.tokens", tokens);
  writer.Int32s("tokenizer.ggml.token_type", types);
  writer.Float32s("tokenizer.ggml.scores", scores);
  writer.Strings("tokenizer.ggml.merges", {});
  writer.Bool("tokenizer.ggml.add_bos_token", false);
}

const BadVocabulary kBadVocabularies[] = {
    {"PreUnknown", [](GgufWriter& w) { w = ByteLevel("kimi"); }, "found \"kimi\"", kInvalid},
    {"PreMissing", [](GgufWriter& w) { w = ByteLevel(""); }, "convert the model again", kInvalid},
    {"ModelUnknown", [](GgufWriter& w) { w.String("tokenizer.ggml.model", "t5"); },
     "wanted gpt2 or llama", kInvalid},
    {"TokensMissing", [](GgufWriter& w) { w.String("tokenizer.ggml.model", "llama"); },
     "tokenizer.ggml.tokens: found nothing", kInvalid},
    {"NoTokens", [](GgufWriter& w) { Fill(w, "gpt2", {}, {}, {}); }, "tokens: found 0"},
    {"TypesShort",
     [](GgufWriter& w) {
       Fill(w, "gpt2", {"a", "b"}, {1}, {});
     },
     "token_type: found 1 entries"},
    {"TypeZero", [](GgufWriter& w) { Fill(w, "gpt2", {"a"}, {0}, {}); }, "found 0 for id 0"},
    {"TypeNegative", [](GgufWriter& w) { Fill(w, "gpt2", {"a"}, {-1}, {}); }, "found -1"},
    {"TokenEmpty",
     [](GgufWriter& w) {
       Fill(w, "gpt2", {"a", ""}, {1, 1}, {});
     },
     "id 1 has 0 bytes"},
    {"TokenLong", [](GgufWriter& w) { Fill(w, "gpt2", {std::string(4097, 'a')}, {1}, {}); },
     "4097 bytes"},
    {"PieceLong", [](GgufWriter& w) { Fill(w, "llama", {std::string(513, 'a')}, {1}, {0}); },
     "513 bytes"},
    {"TokenNotUtf8", [](GgufWriter& w) { Fill(w, "gpt2", {"\xc0\x80"}, {1}, {}); }, "not UTF-8"},
    {"TokenSurrogate", [](GgufWriter& w) { Fill(w, "gpt2", {"\xed\xa0\x80"}, {1}, {}); },
     "not UTF-8"},
    {"TokenTwice",
     [](GgufWriter& w) {
       Fill(w, "gpt2", {"a", "b", "a"}, {1, 1, 3}, {});
     },
     "\"a\" occurs twice, again as id 2"},
    {"ByteNegative", [](GgufWriter& w) { Fill(w, "llama", {"<0x-1>"}, {6}, {0}); },
     "wanted <0x00> to <0xFF>"},
    {"ByteNotHex", [](GgufWriter& w) { Fill(w, "llama", {"<0xG0>"}, {6}, {0}); }, "<0xG0>"},
    {"ByteShort", [](GgufWriter& w) { Fill(w, "llama", {"<0x1>"}, {6}, {0}); }, "<0x1>"},
    {"ByteLong", [](GgufWriter& w) { Fill(w, "llama", {"<0x100>"}, {6}, {0}); }, "<0x100>"},
    {"ScoresShort",
     [](GgufWriter& w) {
       Fill(w, "llama", {"a", "b"}, {1, 1}, {0});
     },
     "scores: found 1"},
    {"ScoreNan", [](GgufWriter& w) { Fill(w, "llama", {"a"}, {1}, {std::nanf("")}); },
     "not finite"},
    {"PieceWithSpace", [](GgufWriter& w) { Fill(w, "llama", {"a b"}, {1}, {0}); }, "has a space"},
    {"EosOutside",
     [](GgufWriter& w) {
       w = SentencePiece();
       w.Bool("tokenizer.ggml.add_eos_token", true);
       w.Uint32("tokenizer.ggml.eos_token_id", 11);
     },
     "one of the 11 tokens", kInvalid},
    {"EosWantedButMissing",
     [](GgufWriter& w) {
       w = ByteLevel("llama-bpe");
       w.Bool("tokenizer.ggml.add_eos_token", true);
     },
     "tokenizer.ggml.eos_token_id: found nothing", kInvalid},
    {"EosUnused",
     [](GgufWriter& w) {
       w = ByteLevel("smollm");
       w.Bool("tokenizer.ggml.add_eos_token", true);
       w.Uint32("tokenizer.ggml.eos_token_id", 5);
     },
     "tokenizer.ggml.eos_token_id: found 5", kInvalid},
};

INSTANTIATE_TEST_SUITE_P(All, BadVocabularyTest, testing::ValuesIn(kBadVocabularies),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace quern
