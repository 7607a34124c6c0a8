#include "core/base/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace quern {
namespace {

TEST(Utf8Test, TakesTheEdgesOfEveryLength) {
  for (const char* text :
       {"", "a", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(IsUtf8(text)) << text;
  }
}

// Unicode 15, table 3-7: overlong forms, surrogates, beyond U+10FFFF, cut off, stray.
TEST(Utf8Test, RefusesWhatIsNoCharacterAndSaysWhere) {
  for (const char* bad :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xed\xa0\x80",
        "\xed\xbf\xbf", "\xe2\x82", "\xf0\x8f\xbf\xbf", "\xf0\x9f\x98", "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80", "\xff"}) {
    EXPECT_FALSE(IsUtf8(bad)) << bad;
    EXPECT_EQ(FindInvalidUtf8(std::string("a\xc3\xa9") + bad), 3u) << bad;
  }
}

TEST(Utf8Test, TellsUnfinishedFromImpossible) {
  EXPECT_EQ(NextUtf8("\xf0\x9f\x98").kind, Utf8Step::Kind::kIncomplete);
  EXPECT_EQ(NextUtf8("\xf0\x9f\x98").num_bytes, 3u);
  EXPECT_EQ(NextUtf8("\xf0\x9f\x41").kind, Utf8Step::Kind::kInvalid);
  EXPECT_EQ(NextUtf8("\xf0\x9f\x41").num_bytes, 2u);
  EXPECT_EQ(NextUtf8("\xf0\x9f\x98\x80z").code_point, char32_t{0x1f600});
}

TEST(Utf8Test, ReplacesWhatIsNoCharacter) {
  EXPECT_EQ(ReplaceInvalidUtf8("caf\xc3\xa9"), "caf\xc3\xa9");
  EXPECT_EQ(ReplaceInvalidUtf8("\xf0\x9f\x98"), "\uFFFD");
  EXPECT_EQ(ReplaceInvalidUtf8("a\xff\xc3z\x80"), "a\uFFFD\uFFFDz\uFFFD");
  EXPECT_EQ(ReplaceInvalidUtf8(""), "");
}

TEST(Utf8Test, QuotesForMessages) {
  EXPECT_EQ(Quoted("caf\xc3\xa9 \"\n\x1b"), "\"caf\xc3\xa9 \\\"\\n\\033\"");
  EXPECT_EQ(Quoted("\xc3\xa9\xff"), "\"\\303\\251\\377\"");
  EXPECT_EQ(Quoted("abcdef", 3), "\"abc...\"");
  // The cut goes through a character.
  EXPECT_EQ(Quoted("ab\xc3\xa9", 3), "\"ab...\"");
  EXPECT_EQ(Quoted(""), "\"\"");
}

}  // namespace
}  // namespace quern
