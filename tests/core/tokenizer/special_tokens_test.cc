#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "core/tokenizer/tokenizer.h"
#include "tests/core/tokenizer/fixtures.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr Tokenizer::EncodeOptions kOrdinary = {.add_special_tokens = false,
                                                .parse_special_tokens = false};

TEST(SpecialTokens, TextBecomesTheTokenOnlyWhenParsed) {
  const auto tokenizer = MakeTokenizer(ByteLevelJson({}, {"<|end|>"}));
  const int32_t end = tokenizer->TokenToId("<|end|>");
  EXPECT_EQ(end, 256);
  EXPECT_TRUE(tokenizer->IsSpecial(end));
  EXPECT_THAT(Ids(*tokenizer, "a<|end|>b"), ElementsAre('a', end, 'b'));
  const auto ordinary = Ids(*tokenizer, "a<|end|>b", kOrdinary);
  EXPECT_THAT(ordinary, Not(Contains(end)));
  EXPECT_EQ(tokenizer->Decode(ordinary), "a<|end|>b");
}

TEST(SpecialTokens, LongestOfTheLeftmostWins) {
  const auto tokenizer = MakeTokenizer(ByteLevelJson({}, {"<|a|>", "<|a|><|b|>", "<|b|>"}));
  EXPECT_THAT(Ids(*tokenizer, "<|a|><|b|><|a|><|a"), ElementsAre(257, 256, '<', '|', 'a'));
  EXPECT_THAT(Ids(*tokenizer, "<|b|><|a|><|b|>"), ElementsAre(258, 257));
}

// A vocabulary whose merges spell a special token must not let text become it.
TEST(SpecialTokens, MergesDoNotForgeOne) {
  Json json = ByteLevelJson({{"e", "n"}, {"en", "d"}}, {});
  const int end = json["model"]["vocab"]["end"];
  EXPECT_THAT(Ids(*MakeTokenizer(json), "end", kOrdinary), ElementsAre(end));
  json["added_tokens"].push_back(AddedTokenJson(end, "end"));
  const int32_t en = json["model"]["vocab"]["en"];
  EXPECT_THAT(Ids(*MakeTokenizer(json), "end"), ElementsAre(end));
  EXPECT_THAT(Ids(*MakeTokenizer(json), "end", kOrdinary), ElementsAre(en, 'd'));

  // Nor does the rule that a word which is a token is that token.
  json["model"]["ignore_merges"] = true;
  EXPECT_THAT(Ids(*MakeTokenizer(json), "end", kOrdinary), ElementsAre(en, 'd'));
}

TEST(SpecialTokens, NotSpecialOnesAreAlwaysFoundAndDecoded) {
  Json json = ByteLevelJson({}, {});
  json["added_tokens"].push_back(AddedTokenJson(256, "<tool>", /*special=*/false));
  const auto tokenizer = MakeTokenizer(json);
  EXPECT_FALSE(tokenizer->IsSpecial(256));
  EXPECT_THAT(Ids(*tokenizer, "<tool>", kOrdinary), ElementsAre(256));
  EXPECT_EQ(tokenizer->Decode({256}), "<tool>");
}

TEST(SpecialTokens, DecodeLeavesThemOutUnlessAsked) {
  const auto tokenizer = MakeTokenizer(ByteLevelJson({}, {"<|end|>"}));
  EXPECT_EQ(tokenizer->Decode({'a', 256, 'b'}), "ab");
  EXPECT_EQ(tokenizer->Decode({'a', 256, 'b'}, /*keep_special=*/true), "a<|end|>b");
  EXPECT_EQ(tokenizer->Decode({-1, 'a', 257, 1 << 30}), "a");
}

TEST(SpecialTokens, BosIsThePostProcessors) {
  const auto pieces = MakeTokenizer(PiecesJson({}));
  EXPECT_EQ(pieces->bos_id(), 1);
  EXPECT_EQ(pieces->vocab_size(), 265);
  EXPECT_THAT(Ids(*pieces, "a"), ElementsAre(1, 259, 260));
  EXPECT_THAT(Ids(*pieces, "a", {.add_special_tokens = false}), ElementsAre(259, 260));
  EXPECT_THAT(Ids(*pieces, ""), ElementsAre(1));
  EXPECT_EQ(MakeTokenizer(ByteLevelJson({}, {"<s>"}))->bos_id(), -1);
}

TEST(SpecialTokens, PrefixSpaceOnlyWhereTextBeginsTheInput) {
  Json json = PiecesJson({});
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {{"type", "Metaspace"},
                           {"replacement", "\u2581"},
                           {"prepend_scheme", "first"},
                           {"split", false}};
  const auto tokenizer = MakeTokenizer(json);
  EXPECT_THAT(Ids(*tokenizer, "a</s>a", {.add_special_tokens = false}),
              ElementsAre(259, 260, 2, 260));
  EXPECT_THAT(Ids(*tokenizer, "a", {.add_special_tokens = false, .at_start = false}),
              ElementsAre(260));
}

TEST(Encode, TextMustBeUtf8) {
  const auto tokenizer = MakeTokenizer(ByteLevelJson({}, {}));
  for (const char* text :
       {"ab\xff", "ab\xc0\x80", "ab\xed\xa0\x80", "ab\xe2\x82", "ab\xf4\x90\x80\x80"}) {
    EXPECT_THAT(tokenizer->Encode(text),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("byte 2 is not UTF-8")));
  }
  EXPECT_THAT(Ids(*tokenizer, std::string("\0", 1)), ElementsAre(0));
}

TEST(Encode, UnknownCharactersBecomeTheirBytes) {
  const auto tokenizer = MakeTokenizer(PiecesJson({{"\u2581", "a"}}));
  EXPECT_THAT(Ids(*tokenizer, "a\u20acb"), ElementsAre(1, 265, 3 + 0xE2, 3 + 0x82, 3 + 0xAC, 261));
  EXPECT_EQ(tokenizer->Decode(Ids(*tokenizer, "a\u20acb")), "a\u20acb");
}

}  // namespace
}  // namespace quern
