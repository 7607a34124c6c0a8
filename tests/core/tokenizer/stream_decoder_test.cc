#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/tokenizer/tokenizer.h"
#include "tests/core/tokenizer/fixtures.h"

namespace quern {
namespace {

// Pieces of text, one per byte of `bytes`, and what Finish gives.
std::vector<std::string> StreamBytes(const std::string& bytes) {
  StreamDecoder stream(MakeTokenizer(ByteLevelJson({}, {})));
  std::vector<std::string> pieces;
  for (char c : bytes) pieces.push_back(stream.Append(static_cast<uint8_t>(c)));
  pieces.push_back(stream.Finish());
  return pieces;
}

using Pieces = std::vector<std::string>;

TEST(StreamDecoder, HoldsBackUntilACharacterIsWhole) {
  EXPECT_EQ(StreamBytes("a\u20acb"), (Pieces{"a", "", "", "\u20ac", "b", ""}));
  EXPECT_EQ(StreamBytes("\U0001f600"), (Pieces{"", "", "", "\U0001f600", ""}));
}

TEST(StreamDecoder, UnfinishedCharacterEndsAsReplacement) {
  EXPECT_EQ(StreamBytes("a\xf0\x9f\x98"), (Pieces{"a", "", "", "", "\ufffd"}));
  EXPECT_EQ(StreamBytes("\xc3"), (Pieces{"", "\ufffd"}));
}

// The examples of Unicode's chapter 3.9, table 3-8 and on: one U+FFFD per maximal subpart.
TEST(StreamDecoder, BytesThatCannotBecomeACharacterAreReplacedAtOnce) {
  EXPECT_EQ(StreamBytes("\xff"
                        "a"),
            (Pieces{"\ufffd", "a", ""}));
  EXPECT_EQ(StreamBytes("\x80\xc0\xaf"), (Pieces{"\ufffd", "\ufffd", "\ufffd", ""}));
  EXPECT_EQ(StreamBytes("\xe2\x82"
                        "a"),
            (Pieces{"", "",
                    "\ufffd"
                    "a",
                    ""}));
  EXPECT_EQ(StreamBytes("\xed\xa0\x80"), (Pieces{"", "\ufffd\ufffd", "\ufffd", ""}));
  EXPECT_EQ(StreamBytes("\xf0\x9f\xe2\x82\xac"), (Pieces{"", "", "\ufffd", "", "\u20ac", ""}));
}

TEST(StreamDecoder, SpecialTokensAndUnknownIdsGiveNothing) {
  StreamDecoder stream(MakeTokenizer(ByteLevelJson({}, {"<|end|>"})));
  EXPECT_EQ(stream.Append(0xC3), "");
  EXPECT_EQ(stream.Append(256), "");
  EXPECT_EQ(stream.Append(-1), "");
  EXPECT_EQ(stream.Append(100000), "");
  EXPECT_EQ(stream.Append(0xA9), "\u00e9");
}

TEST(StreamDecoder, LeadingSpaceOfSentencePieceIsDroppedOnce) {
  const auto tokenizer = MakeTokenizer(PiecesJson({{"\u2581", "a"}}));
  const int32_t space_a = tokenizer->TokenToId("\u2581a");
  StreamDecoder text(tokenizer);
  EXPECT_EQ(text.Append(tokenizer->bos_id()), "");
  EXPECT_EQ(text.Append(space_a), "a");
  EXPECT_EQ(text.Append(space_a), " a");

  StreamDecoder continued(tokenizer, /*continues_text=*/true);
  EXPECT_EQ(continued.Append(space_a), " a");

  StreamDecoder bytes(tokenizer);
  EXPECT_EQ(bytes.Append(tokenizer->TokenToId("<0xE2>")), "");
  EXPECT_EQ(bytes.Append(tokenizer->TokenToId("<0x82>")), "");
  EXPECT_EQ(bytes.Append(tokenizer->TokenToId("<0xAC>")), "\u20ac");
  EXPECT_EQ(bytes.Append(space_a), " a");
}

TEST(StreamDecoder, ByteLevelKeepsLeadingSpace) {
  EXPECT_EQ(StreamBytes(" a"), (Pieces{" ", "a", ""}));
}

}  // namespace
}  // namespace quern
