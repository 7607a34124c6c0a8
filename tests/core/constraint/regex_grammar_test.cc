// Patterns against std::regex, whose ECMAScript syntax ours is a part of.

#include "core/constraint/regex_grammar.h"

#include <algorithm>
#include <regex>

#include "tests/core/constraint/constraint_test_util.h"

namespace quern {
namespace {

const char* const kPatterns[] = {
    "abc",
    "a|bc|",
    "(ab|a)(bc|c)?",
    "[0-9]{3}-[0-9]{4}",
    "[a-c]*x+y?",
    "(?:a|b){2,3}",
    "a{2}",
    "a{2,}",
    "a{0,2}b",
    "(a*)*b",
    "(a|aa)+",
    "[^a-y]+",
    "\\d+\\.\\d{1,2}",
    "\\w+@\\w+\\.(com|org)",
    "[\\w.-]+",
    "[a\\]\\-]+",
    "\\S+ \\S+",
    "^a.c$",
    "a+?b*?",
    "\\x41\\u0042",
    "\\(\\)\\[\\]\\{\\}\\*\\+\\?\\.\\|\\\\",
};

// Short texts over the letters that the patterns are about.
std::vector<std::string> Texts() {
  std::vector<std::string> texts = {
      "",   "555-1234",      "555-123", "3.14", "3.", "me@site.org", "me@site.net",
      "AB", "()[]{}*+?.|\\", "a\nc",    "xy z"};
  const std::string letters = "abcxyz-] .1";
  for (const char a : letters) {
    texts.push_back({a});
    for (const char b : letters) {
      texts.push_back({a, b});
      for (const char c : letters) texts.push_back({a, b, c});
    }
  }
  return texts;
}

TEST(RegexGrammarTest, MatchesWhatStdRegexMatches) {
  const std::vector<std::string> texts = Texts();
  for (const char* pattern : kPatterns) {
    ASSERT_OK_AND_ASSIGN(const auto constraint, Compile(RegexSpec(pattern)));
    const std::regex expected(pattern);
    for (const std::string& text : texts) {
      EXPECT_EQ(Matches(constraint, text), std::regex_match(text, expected))
          << pattern << " on " << text;
    }
  }
}

TEST(RegexGrammarTest, RandomTextsMatch) {
  for (const char* pattern : kPatterns) {
    ASSERT_OK_AND_ASSIGN(const auto constraint, Compile(RegexSpec(pattern)));
    for (uint32_t seed = 0; seed < 10; ++seed) {
      const std::string text = RandomText(constraint, seed, 10);
      // std::regex knows bytes, and "." of ours is a character: alike for what is ASCII.
      if (std::any_of(text.begin(), text.end(), [](char c) { return (c & 0x80) != 0; })) continue;
      EXPECT_TRUE(std::regex_match(text, std::regex(pattern))) << pattern << " on " << text;
    }
  }
}

TEST(RegexGrammarTest, ACharacterIsACodePoint) {
  ASSERT_OK_AND_ASSIGN(const auto any, Compile(RegexSpec(".")));
  for (const char* text : {"a", "é", "€", "😀", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(Matches(any, text)) << text;
  }
  for (const char* text : {"", "ab", "\n", "\xff", "\xc3", "\xc0\x80", "\xed\xa0\x80",
                           "\xf4\x90\x80\x80", "\xe0\x80\x80"}) {
    EXPECT_FALSE(Matches(any, text)) << text;
  }
  ASSERT_OK_AND_ASSIGN(const auto greek, Compile(RegexSpec("[α-ω]{2}")));
  EXPECT_TRUE(Matches(greek, "αω"));
  EXPECT_FALSE(Matches(greek, "αa"));
  ASSERT_OK_AND_ASSIGN(const auto not_greek, Compile(RegexSpec("[^α-ω]")));
  EXPECT_TRUE(Matches(not_greek, "ϊ"));  // the one behind ω
  EXPECT_FALSE(Matches(not_greek, "β"));
}

TEST(RegexGrammarTest, WhatIsNotSupportedIsRefusedWithItsPlace) {
  const std::pair<const char*, const char*> kCases[] = {
      {"a(?=b)", "look-around"},
      {"(?<!a)b", "look-around"},
      {"(?i)a", "flags"},
      {"(a)\\1", "offset 4: \\1 is not supported"},
      {"\\bword", "\\b is not supported"},
      {"\\p{L}", "\\p is not supported"},
      {"a^b", "^ is supported only at the beginning"},
      {"a$b", "$ is supported only at the end"},
      {"^a|b$", "put the alternatives beside ^ or $ into a group"},
      {"(a", "without its \")\""},
      {"a)", "\")\" without a \"(\""},
      {"[a", "without its \"]\""},
      {"[]", "an empty class"},
      {"[z-a]", "a lower and a higher one"},
      {"*a", "a repetition of nothing"},
      {"a**", "a repetition of a repetition"},
      {"a{2,1}", "its greater number first"},
      {"a{,2}", "wanted {n}"},
      {"a{x}", "wanted {n}"},
      {"[[:alpha:]]", "[:names:]"},
      {"a\\", "nothing is behind"},
      {"\\ud800", "a surrogate"},
      {"\\xg1", "hexadecimal"},
  };
  for (const auto& [pattern, message] : kCases) {
    const auto constraint = Compile(RegexSpec(pattern));
    EXPECT_EQ(constraint.status().code(), absl::StatusCode::kInvalidArgument) << pattern;
    EXPECT_THAT(constraint.status().message(), testing::HasSubstr(message)) << pattern;
  }
}

}  // namespace
}  // namespace quern
