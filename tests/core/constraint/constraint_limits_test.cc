// Hostile constraints end in INVALID_ARGUMENT that names the limit, soon.

#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include "tests/core/constraint/constraint_test_util.h"

namespace quern {
namespace {

void ExpectRefused(const ConstraintSpec& spec, absl::string_view message) {
  const absl::Status status = Compile(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
  EXPECT_THAT(status.message(), testing::HasSubstr(message));
  EXPECT_LT(status.message().size(), 400u);
}

std::string Repeated(absl::string_view text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) absl::StrAppend(&all, text);
  return all;
}

TEST(ConstraintLimitsTest, Sizes) {
  ExpectRefused(RegexSpec(std::string(kMaxConstraintBytes + 1, 'a')), "at most 65536");
  ExpectRefused(SchemaSpec(std::string(kMaxConstraintBytes + 1, ' ')), "at most 65536");
  ExpectRefused(ChoiceSpec({}), "wanted 1 to 1024");
  ExpectRefused(ChoiceSpec(std::vector<std::string>(1025, "a")), "wanted 1 to 1024");
  ExpectRefused(ChoiceSpec({std::string(40000, 'a'), std::string(40000, 'b')}), "at most 65536");
  ExpectRefused(ChoiceSpec({"a", ""}), "must not be empty");
  ExpectRefused(ChoiceSpec({"\xff"}), "is not UTF-8");
}

TEST(ConstraintLimitsTest, Depths) {
  ExpectRefused(SchemaSpec(Repeated(R"({"items":)", 2000) + "true" + std::string(2000, '}')),
                "deep");
  ExpectRefused(RegexSpec(std::string(2000, '(') + "a" + std::string(2000, ')')),
                "more than 64 groups inside each other");
  ExpectRefused(SchemaSpec(R"({"const":)" + std::string(2000, '[') + std::string(2000, ']') + "}"),
                "deep");
}

TEST(ConstraintLimitsTest, Counts) {
  const std::string too_many_states = "more than 65536 states";
  ExpectRefused(RegexSpec("a{1,1000000}"), "more than 10000 times");
  ExpectRefused(RegexSpec("(a{1,1000}){1000}"), too_many_states);
  ExpectRefused(RegexSpec("((((((){1000}){1000}){1000}){1000}){1000}){1000}"), too_many_states);
  ExpectRefused(RegexSpec("(((((a?){1,1000})*){1000})+){1000}"), too_many_states);
  ExpectRefused(SchemaSpec(R"({"type":"string","maxLength":1000000000})"), too_many_states);
  ExpectRefused(SchemaSpec(R"({"type":"array","minItems":1000000000})"), too_many_states);
  ExpectRefused(SchemaSpec(R"({"type":"array","maxItems":2147483647})"), too_many_states);
}

TEST(ConstraintLimitsTest, ManyMembers) {
  std::vector<std::string> members;
  for (int i = 0; i < 2000; ++i)
    members.push_back(absl::StrCat("\"m", i, "\":{\"type\":\"null\"}"));
  ExpectRefused(SchemaSpec("{\"properties\":{" + absl::StrJoin(members, ",") + "}}"),
                "more than 65536 states");
  members.clear();
  for (int i = 0; i < 3000; ++i) members.push_back(absl::StrCat("\"m", i, "\":1"));
  ExpectRefused(SchemaSpec("{\"const\":{" + absl::StrJoin(members, ",") + "}}"), "at most 2048");
}

TEST(ConstraintLimitsTest, ReferencesAreNotCopied) {
  // Each one twice the one before: 2^40 values, built once each.
  std::string schema = R"({"$ref":"#/$defs/d40","$defs":{"d0":{"const":1})";
  for (int i = 1; i <= 40; ++i) {
    const std::string ref = absl::StrCat(R"({"$ref":"#/$defs/d)", i - 1, "\"}");
    absl::StrAppend(&schema, ",\"d", i, R"(":{"properties":{"a":)", ref, ",\"b\":", ref, "}}");
  }
  ASSERT_OK_AND_ASSIGN(const auto constraint, Compile(SchemaSpec(schema + "}}")));
  EXPECT_TRUE(Matches(constraint, R"({"a":{},"b":{"b":{}}})"));
}

TEST(ConstraintLimitsTest, WaysThatStayOpenAreLimited) {
  // Behind each letter the text may be at thousands of places.
  ExpectRefused(RegexSpec("(a?b?c?d?e?f?g?h?i?j?){1000}"), "too many ways open at once");
}

TEST(ConstraintLimitsTest, WaysThatOpenLaterEndTheirTextAlone) {
  ASSERT_OK_AND_ASSIGN(const auto constraint, Compile(RegexSpec("7(a?b?c?d?e?f?g?h?i?j?){1000}")));
  ConstraintState state(constraint);
  EXPECT_THAT(AllowedIds(state), testing::Not(testing::IsEmpty()));
  ASSERT_OK(state.Accept(ConstraintTokenizer()->TokenToId("7")));
  for (int i = 0; i < 2; ++i) {
    const absl::Status status = state.AllowedTokens().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), testing::HasSubstr("too many ways open at once"));
  }
  // Another text of the same constraint begins as ever.
  ConstraintState another(constraint);
  EXPECT_THAT(AllowedIds(another), testing::Not(testing::IsEmpty()));
}

}  // namespace
}  // namespace quern
