#include "core/constraint/constraint.h"

#include <absl/strings/str_cat.h>

#include "tests/core/constraint/constraint_test_util.h"

namespace quern {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

const ConstraintSpec kObject = {.kind = ConstraintSpec::Kind::kJsonObject};

// What a mask says, told by brute force: a token may follow when its bytes, one by one, may.
TEST(ConstraintTest, MasksAreThoseOfEachTokenAlone) {
  const ConstraintSpec specs[] = {
      kObject, RegexSpec("(ab|a)*[a-f]{3}\\d?"), ChoiceSpec({"the", "there", "a thing"}),
      SchemaSpec(R"({"properties": {"name": {"type": "string", "maxLength": 5}, "n": {"type":
                  "integer", "minimum": 10, "maximum": 305}}, "required": ["n"]})")};
  for (const ConstraintSpec& spec : specs) {
    ASSERT_OK_AND_ASSIGN(const auto constraint, Compile(spec));
    for (uint32_t seed = 0; seed < 4; ++seed) {
      std::mt19937 random(seed);
      ConstraintState state(constraint);
      std::vector<int32_t> accepted;
      for (int step = 0; step < 25 && !state.must_end(); ++step) {
        const std::vector<int32_t> allowed = AllowedIds(state);
        std::vector<int32_t> expected;
        for (int32_t id = 0; id < kConstraintVocabulary; ++id) {
          if (ConstraintTokenizer()->IsSpecial(id)) continue;
          ConstraintState alone(constraint);
          for (const int32_t before : accepted) ASSERT_OK(alone.Accept(before));
          if (alone.Accept(id).ok()) expected.push_back(id);
        }
        ASSERT_EQ(allowed, expected) << "step " << step;
        ASSERT_FALSE(allowed.empty());
        accepted.push_back(allowed[random() % allowed.size()]);
        ASSERT_OK(state.Accept(accepted.back()));
      }
    }
  }
}

TEST(ConstraintTest, SpecialTokensAreNeverAllowed) {
  ASSERT_OK_AND_ASSIGN(const auto constraint, Compile(RegexSpec("(.|\\n)*")));
  ConstraintState state(constraint);
  EXPECT_TRUE(state.may_end());
  const std::vector<int32_t> allowed = AllowedIds(state);
  for (const int32_t id : {kTinyEndOfText, kTinyImStart, kTinyImEnd}) {
    EXPECT_THAT(allowed, testing::Not(testing::Contains(id)));
    EXPECT_EQ(state.Accept(id).code(), absl::StatusCode::kInternal);
  }
}

TEST(ConstraintTest, AChoiceIsOneOfTheTexts) {
  const std::vector<std::string> choices = {"yes", "yesterday", "no", "nö", "no way"};
  ASSERT_OK_AND_ASSIGN(const auto constraint, Compile(ChoiceSpec(choices)));
  for (const std::string& choice : choices) EXPECT_TRUE(Matches(constraint, choice)) << choice;
  for (const char* other : {"", "y", "yest", "now", "no way!"}) {
    EXPECT_FALSE(Matches(constraint, other)) << other;
  }
  for (uint32_t seed = 0; seed < 50; ++seed) {
    EXPECT_THAT(choices, testing::Contains(RandomText(constraint, seed)));
  }
}

TEST(ConstraintTest, ATextEndsOnlyWhereTheGrammarDoes) {
  ASSERT_OK_AND_ASSIGN(const auto constraint, Compile(ChoiceSpec({"a", "ab"})));
  ConstraintState state(constraint);
  EXPECT_FALSE(state.may_end());
  const auto token = [](absl::string_view text) { return ConstraintTokenizer()->TokenToId(text); };
  ASSERT_OK(state.Accept(token("a")));
  EXPECT_TRUE(state.may_end());
  EXPECT_FALSE(state.must_end());
  EXPECT_THAT(AllowedIds(state), ElementsAre(token("b")));
  ASSERT_OK(state.Accept(token("b")));
  EXPECT_TRUE(state.must_end());
  EXPECT_THAT(AllowedIds(state), IsEmpty());
}

TEST(ConstraintTest, AStateOutlivesTheAutomatonItBeganIn) {
  // Each character has states of its own: the automaton is renewed on the way.
  ASSERT_OK_AND_ASSIGN(const auto constraint, Compile(SchemaSpec(R"({"type": "array", "items":
      {"type": "string", "minLength": 4000, "maxLength": 4100}, "minItems": 3, "maxItems": 3})")));
  const int64_t begin = constraint->bytes();
  int64_t most = begin;
  bool renewed = false;
  ConstraintState state(constraint);
  std::string text;
  std::mt19937 random(1);
  while (!state.must_end()) {
    const std::vector<int32_t> ids = AllowedIds(state);
    ASSERT_FALSE(ids.empty()) << text;
    const int32_t id = ids[random() % ids.size()];
    ASSERT_OK(state.Accept(id));
    absl::StrAppend(&text, ConstraintTokenizer()->TokenBytes(id));
    const int64_t now = constraint->bytes();
    renewed = renewed || now < most;
    most = std::max(most, now);
  }
  ASSERT_OK_AND_ASSIGN(const Json json, ParseJson(text, "text"));
  EXPECT_EQ(json.size(), 3u);
  EXPECT_TRUE(renewed) << "bytes " << begin << " to " << most;
  EXPECT_LT(most, 60 << 20);
}

TEST(ConstraintCompilerTest, KeepsWhatWasUsedLast) {
  ConstraintCompiler compiler(ConstraintTokenizer(), kConstraintVocabulary);
  ASSERT_OK_AND_ASSIGN(const CompiledConstraint first, compiler.Compile(RegexSpec("first")));
  EXPECT_FALSE(first.from_cache);
  for (int i = 0; i < static_cast<int>(ConstraintCompiler::kMaxCached) - 1; ++i) {
    ASSERT_OK(compiler.Compile(RegexSpec("x" + std::to_string(i))));
  }
  ASSERT_OK_AND_ASSIGN(const CompiledConstraint again, compiler.Compile(RegexSpec("first")));
  EXPECT_TRUE(again.from_cache);
  EXPECT_EQ(again.constraint, first.constraint);
  // One more takes the place of the one that was used longest ago.
  ASSERT_OK(compiler.Compile(RegexSpec("another")));
  EXPECT_TRUE(compiler.Compile(RegexSpec("first"))->from_cache);
  EXPECT_FALSE(compiler.Compile(RegexSpec("x0"))->from_cache);
}

TEST(ConstraintCompilerTest, TellsKindsApart) {
  ConstraintCompiler compiler(ConstraintTokenizer(), kConstraintVocabulary);
  ASSERT_OK(compiler.Compile(RegexSpec("true")));
  EXPECT_FALSE(compiler.Compile(SchemaSpec("true"))->from_cache);
  ASSERT_OK(compiler.Compile(ChoiceSpec({"a", "b"})));
  EXPECT_FALSE(compiler.Compile(ChoiceSpec({"a1:b"}))->from_cache);
  EXPECT_TRUE(compiler.Compile(ChoiceSpec({"a", "b"}))->from_cache);
}

}  // namespace
}  // namespace quern
