// Texts that would take minutes where time grew with the square of their length. The test's time
// limit judges; the ids are checked besides.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/tokenizer/tokenizer.h"
#include "tests/core/tokenizer/fixtures.h"

namespace quern {
namespace {

std::string Repeat(const std::string& text, size_t count) {
  std::string result;
  for (size_t i = 0; i < count; ++i) result += text;
  return result;
}

constexpr size_t kMegabyte = 1'000'000;

TEST(LongText, OneWordOfBytes) {
  const auto tokenizer = MakeTokenizer(ByteLevelJson({{"a", "a"}, {"aa", "aa"}}, {}));
  const int32_t four = tokenizer->TokenToId("aaaa");
  EXPECT_EQ(Ids(*tokenizer, Repeat("a", kMegabyte)), std::vector<int32_t>(kMegabyte / 4, four));
}

TEST(LongText, OneWordOfPieces) {
  const auto tokenizer = MakeTokenizer(PiecesJson({{"a", "b"}, {"ab", "ab"}}));
  std::vector<int32_t> wanted(kMegabyte / 4, tokenizer->TokenToId("abab"));
  wanted.insert(wanted.begin(), {tokenizer->bos_id(), tokenizer->TokenToId("\u2581")});
  EXPECT_EQ(Ids(*tokenizer, Repeat("ab", kMegabyte / 2)), wanted);
}

// Patterns whose alternatives all begin at a run of spaces.
TEST(LongText, SpacesAndNewlines) {
  Json json = ByteLevelJson({}, {});
  json["pre_tokenizer"] = Json::parse(R"x({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})x");
  const auto tokenizer = MakeTokenizer(json);
  EXPECT_EQ(Ids(*tokenizer, Repeat(" ", kMegabyte) + "x").size(), kMegabyte + 1);
  EXPECT_EQ(Ids(*tokenizer, Repeat(" \n", kMegabyte / 2)).size(), kMegabyte);
  EXPECT_EQ(Ids(*tokenizer, Repeat("'", kMegabyte)).size(), kMegabyte);
}

// Two marks of different classes in turn: NFC sorts the whole run.
TEST(LongText, CombiningMarks) {
  Json json = ByteLevelJson({}, {});
  json["normalizer"] = {{"type", "NFC"}};
  const auto tokenizer = MakeTokenizer(json);
  constexpr size_t kPairs = 100'000;
  const std::vector<int32_t> ids = Ids(*tokenizer, "q" + Repeat("\u0301\u0316", kPairs));
  EXPECT_EQ(tokenizer->Decode(ids), "q" + Repeat("\u0316", kPairs) + Repeat("\u0301", kPairs));
}

// At each place the text goes on for long as if it were the token.
TEST(LongText, AlmostAnAddedToken) {
  const std::string token = Repeat("<", 500) + ">";
  const auto tokenizer = MakeTokenizer(ByteLevelJson({}, {token}));
  const std::vector<int32_t> ids = Ids(*tokenizer, Repeat("<", 20'000) + ">");
  EXPECT_EQ(ids.size(), 20'000 - 500 + 1);
  EXPECT_EQ(ids.back(), tokenizer->TokenToId(token));
}

}  // namespace
}  // namespace quern
