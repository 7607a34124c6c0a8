#include "core/base/json.h"

#include <string>

#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(ParseJsonTest, ReadsEveryKindOfValue) {
  ASSERT_OK_AND_ASSIGN(
      Json json, ParseJson(R"({"a":[1,-2,3.5,true,null,"x"],"b":{"c":{}},"d":[[],{}]})", "t"));
  EXPECT_EQ(DumpCanonicalJson(json), R"({"a":[1,-2,3.5,true,null,"x"],"b":{"c":{}},"d":[[],{}]})");
}

TEST(ParseJsonTest, CanonicalFormSortsKeys) {
  ASSERT_OK_AND_ASSIGN(Json json, ParseJson(R"({"b":1,"a":{"d":2,"c":3}})", "t"));
  EXPECT_EQ(DumpCanonicalJson(json), R"({"a":{"c":3,"d":2},"b":1})");
}

struct BadJson {
  const char* name;
  std::string text;
  const char* message;
};

class BadJsonTest : public testing::TestWithParam<BadJson> {};

TEST_P(BadJsonTest, IsRefusedNamingTheFile) {
  EXPECT_THAT(ParseJson(GetParam().text, "some/config.json"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("some/config.json"), HasSubstr(GetParam().message))));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadJsonTest,
    testing::Values(BadJson{"Empty", "", "not valid"}, BadJson{"Truncated", "{\"a\":", "not valid"},
                    BadJson{"TrailingGarbage", "{} x", "not valid"},
                    BadJson{"TrailingComma", "[1,]", "not valid"},
                    BadJson{"Twice", "{\"a\":1,\"a\":2}", "occurs twice"},
                    BadJson{"TwiceNested", "{\"b\":{\"a\":{},\"a\":[]}}", "occurs twice"},
                    BadJson{"Deep", std::string(100000, '['), "deeper than 32"},
                    BadJson{"DeepObjects", std::string(33, '[') + std::string(33, ']'), "deeper"},
                    BadJson{"HugeInteger", "[18446744073709551616]", "64 bits"},
                    BadJson{"HugeNegative", "[-9223372036854775809]", "64 bits"},
                    BadJson{"HugeNumber", "[1e400]", "not valid"},
                    BadJson{"NotUtf8", "[\"\xff\"]", "not valid"},
                    BadJson{"LoneSurrogate", "[\"\\ud800\"]", "not valid"},
                    BadJson{"ByteOrderMark", "\xef\xbb\xbf{}", "byte order mark"},
                    BadJson{"Nan", "[NaN]", "not valid"},
                    BadJson{"Nul", std::string("{}\0", 3), "not valid"}),
    [](const auto& info) { return info.param.name; });

class JsonObjectTest : public testing::Test {
 protected:
  const Json json_ = Json::parse(
      R"({"n":5,"f":1.0,"s":"text","t":true,"z":null,"big":18446744073709551615,"o":{"x":1},"l":[1]})");
  const JsonObject object_ = JsonObject::Of(json_, "file").value();
};

TEST_F(JsonObjectTest, IntegersAreStrict) {
  EXPECT_EQ(object_.Int("n", 0, 10).value(), 5);
  EXPECT_THAT(object_.Int("n", 6, 10),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("file: n"), HasSubstr("found 5"), HasSubstr("[6, 10]"))));
  for (const char* key : {"f", "s", "t", "z", "missing", "big", "o"}) {
    EXPECT_THAT(object_.Int(key, INT64_MIN, INT64_MAX),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(key)));
  }
}

TEST_F(JsonObjectTest, DefaultsFillMissingAndNull) {
  EXPECT_EQ(object_.IntOr("missing", 0, 9, 7).value(), 7);
  EXPECT_EQ(object_.IntOr("z", 0, 9, 7).value(), 7);
  EXPECT_FALSE(object_.IntOr("s", 0, 9, 7).ok());
  EXPECT_EQ(object_.NumberOr("f", 0, 2, 9).value(), 1.0);
  EXPECT_EQ(object_.BoolOr("missing", true).value(), true);
  EXPECT_FALSE(object_.BoolOr("n", true).ok());
  EXPECT_EQ(object_.StringOr("missing", "d").value(), "d");
  EXPECT_FALSE(object_.StringOr("n", "d").ok());
}

TEST_F(JsonObjectTest, NestedValues) {
  ASSERT_OK_AND_ASSIGN(JsonObject inner, object_.Object("o"));
  EXPECT_THAT(inner.Int("x", 2, 3),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("file: o: x")));
  EXPECT_FALSE(object_.Object("l").ok());
  EXPECT_EQ(object_.Array("l").value()->size(), 1u);
  EXPECT_FALSE(object_.Array("o").ok());
  EXPECT_FALSE(JsonObject::Of(Json::array(), "file").ok());
}

}  // namespace
}  // namespace quern
