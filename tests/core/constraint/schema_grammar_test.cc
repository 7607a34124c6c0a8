#include "core/constraint/schema_grammar.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <functional>
#include <regex>
#include <set>

#include "tests/core/constraint/constraint_test_util.h"

namespace quern {
namespace {

bool IsSchemaMatch(absl::string_view schema, absl::string_view text) {
  const auto constraint = Compile(SchemaSpec(std::string(schema)));
  EXPECT_OK(constraint) << schema;
  return constraint.ok() && Matches(*constraint, text);
}

absl::Status Refusal(absl::string_view schema) {
  return Compile(SchemaSpec(std::string(schema))).status();
}

struct SchemaCase {
  const char* schema;
  std::function<bool(const Json&)> is_valid;
};

bool IsInteger(const Json& value, int64_t min, int64_t max) {
  return value.is_number_integer() && value.get<int64_t>() >= min && value.get<int64_t>() <= max;
}

int CodePoints(const Json& text) {
  const auto bytes = text.get<std::string>();
  return static_cast<int>(
      std::count_if(bytes.begin(), bytes.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::set<std::string> Names(const Json& object) {
  std::set<std::string> names;
  for (const auto& [name, value] : object.items()) names.insert(name);
  return names;
}

// Each with its own check, written by hand.
const SchemaCase kCases[] = {
    {"true", [](const Json&) { return true; }},
    {R"({"type": "object"})", [](const Json& v) { return v.is_object(); }},
    {R"({"type": ["string", "null"]})", [](const Json& v) { return v.is_string() || v.is_null(); }},
    {R"({"type": "string", "minLength": 2, "maxLength": 4})",
     [](const Json& v) { return v.is_string() && CodePoints(v) >= 2 && CodePoints(v) <= 4; }},
    {R"({"type": "string", "pattern": "^[A-Z]{2}\\d+$"})",
     [](const Json& v) {
       return std::regex_match(v.get<std::string>(), std::regex("[A-Z]{2}\\d+"));
     }},
    {R"({"type": "string", "pattern": "^a\"b\\\\[\\n\\t]$"})",
     [](const Json& v) { return v == "a\"b\\\n" || v == "a\"b\\\t"; }},
    {R"({"type": "string", "pattern": "^[^a-z]{3}$"})",
     [](const Json& v) { return v.is_string() && CodePoints(v) == 3; }},
    {R"({"type": "integer", "minimum": -17, "maximum": 203})",
     [](const Json& v) { return IsInteger(v, -17, 203); }},
    {R"({"type": "integer", "exclusiveMinimum": 9.5, "exclusiveMaximum": 12})",
     [](const Json& v) { return IsInteger(v, 10, 11); }},
    {R"({"type": "integer"})", [](const Json& v) { return v.is_number_integer(); }},
    {R"({"type": "number"})", [](const Json& v) { return v.is_number(); }},
    {R"({"type": "number", "minimum": 0})",
     [](const Json& v) { return v.is_number() && v.get<double>() >= 0; }},
    {R"({"enum": ["red", 3, null, {"a": [1, 2]}, "a \"quote\""]})",
     [](const Json& v) {
       return v == "red" || v == 3 || v.is_null() || v == Json({{"a", {1, 2}}}) ||
              v == "a \"quote\"";
     }},
    {R"({"type": "string", "enum": ["x", 1, "y"]})",
     [](const Json& v) { return v == "x" || v == "y"; }},
    {R"({"const": {"k": [true]}})",
     [](const Json& v) {
       return v == Json({{"k", {true}}});
     }},
    {R"({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3})",
     [](const Json& v) {
       return v.is_array() && v.size() >= 2 && v.size() <= 3 &&
              std::all_of(v.begin(), v.end(), [](const Json& i) { return i.is_boolean(); });
     }},
    {R"({"prefixItems": [{"type": "integer"}, {"type": "string"}], "items": false,
         "minItems": 1})",
     [](const Json& v) {
       return v.is_array() && v.size() >= 1 && v.size() <= 2 && v[0].is_number_integer() &&
              (v.size() == 1 || v[1].is_string());
     }},
    {R"({"prefixItems": [{"const": 1}], "items": {"const": 2}})",
     [](const Json& v) {
       for (size_t i = 0; i < v.size(); ++i) {
         if (v[i] != (i == 0 ? 1 : 2)) return false;
       }
       return v.is_array();
     }},
    {R"({"type": "array", "maxItems": 0})", [](const Json& v) { return v == Json::array(); }},
    {R"({"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"},
         "c": {"type": "null"}}, "required": ["a"], "additionalProperties": false})",
     [](const Json& v) {
       for (const std::string& name : Names(v)) {
         if (name != "a" && name != "b" && name != "c") return false;
       }
       return v.contains("a") && v["a"].is_string() &&
              (!v.contains("b") || v["b"].is_number_integer()) &&
              (!v.contains("c") || v["c"].is_null());
     }},
    {R"({"properties": {"ab": {"const": 1}, "a": {"const": 2}, "abc\"": {"const": 3}},
         "additionalProperties": {"type": "boolean"}, "required": ["z"]})",
     [](const Json& v) {
       for (const auto& [name, value] : v.items()) {
         const bool good = name == "ab"      ? value == 1
                           : name == "a"     ? value == 2
                           : name == "abc\"" ? value == 3
                                             : value.is_boolean();
         if (!good) return false;
       }
       return v.is_object() && v.contains("z");
     }},
    {R"({"type": "object", "additionalProperties": {"type": "integer"}})",
     [](const Json& v) {
       return v.is_object() &&
              std::all_of(v.begin(), v.end(), [](const Json& i) { return i.is_number_integer(); });
     }},
    {R"({"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"x": {"const": 0}},
         "required": ["x"]}]})",
     [](const Json& v) { return v.is_number_integer() || (v.is_object() && v["x"] == 0); }},
    {R"({"oneOf": [{"type": "integer"}, {"type": ["string", "null"]}]})",
     [](const Json& v) { return v.is_number_integer() || v.is_string() || v.is_null(); }},
    {R"({"allOf": [{"$ref": "#/$defs/n"}], "$defs": {"n": {"const": 4}}})",
     [](const Json& v) { return v == 4; }},
    {R"({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties":
         {"value": {"type": "integer"}, "children": {"type": "array", "items":
         {"$ref": "#/$defs/tree"}, "maxItems": 2}}, "required": ["value", "children"]}}})",
     [](const Json& v) {
       const std::function<bool(const Json&)> is_tree = [&](const Json& t) {
         return t.is_object() && t.size() == 2 && t["value"].is_number_integer() &&
                t["children"].is_array() && t["children"].size() <= 2 &&
                std::all_of(t["children"].begin(), t["children"].end(), is_tree);
       };
       return is_tree(v);
     }},
};

TEST(SchemaGrammarTest, EveryTextParsesAndIsValid) {
  for (const SchemaCase& test : kCases) {
    const auto constraint = Compile(SchemaSpec(test.schema));
    ASSERT_OK(constraint) << test.schema;
    for (uint32_t seed = 0; seed < 40; ++seed) {
      const std::string text = RandomText(*constraint, seed);
      // Not the strict reader: that one refuses names that come twice.
      const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
      ASSERT_FALSE(value.is_discarded()) << text;
      EXPECT_TRUE(test.is_valid(value)) << test.schema << "\n" << text;
    }
  }
}

TEST(SchemaGrammarTest, AnObjectIsAnyObject) {
  ASSERT_OK_AND_ASSIGN(const auto constraint, Compile({.kind = ConstraintSpec::Kind::kJsonObject}));
  for (uint32_t seed = 0; seed < 100; ++seed) {
    const std::string text = RandomText(constraint, seed, 60);
    EXPECT_TRUE(Json::parse(text, nullptr, false).is_object()) << text;
  }
  for (const char* text :
       {"{}", R"({"a": [1, -2.5e+10, {"b": null}], "c\n\u00e9": "\"é😀"})", "{\n  \"a\": true\n}"}) {
    EXPECT_TRUE(Matches(constraint, text)) << text;
  }
  for (const char* text : {"", "[]", " {}", "{}}", "{\"a\" 1}", "{\"a\": 01}",
                           "{\"a\": \"\\ud800\"}", "{\"a\": 1,}", "{\"a\": \"\n\"}", "{'a': 1}"}) {
    EXPECT_FALSE(Matches(constraint, text)) << text;
  }
}

TEST(SchemaGrammarTest, PatternsAreSearched) {
  const char* schema = R"({"type": "string", "pattern": "b\"c|d$"})";
  for (const char* text : {R"("b\"c")", R"("xb\"cx")", R"("\u00e9 b\"c\n")"}) {
    EXPECT_FALSE(IsSchemaMatch(R"({"pattern": "^b$"})", text));
    EXPECT_TRUE(IsSchemaMatch(R"({"type": "string", "pattern": "b\"c"})", text)) << text;
  }
  EXPECT_FALSE(Refusal(schema).ok());
  EXPECT_TRUE(IsSchemaMatch(R"({"pattern": "d$"})", R"("abcd")"));
  EXPECT_FALSE(IsSchemaMatch(R"({"pattern": "d$"})", R"("abcde")"));
}

TEST(SchemaGrammarTest, NestingEndsAtTheLimitWithoutADeadEnd) {
  ASSERT_OK_AND_ASSIGN(const auto constraint, Compile({.kind = ConstraintSpec::Kind::kJsonObject}));
  ConstraintState state(constraint);
  const auto token = [](absl::string_view text) { return ConstraintTokenizer()->TokenToId(text); };
  for (const char* text : {"{", "\"", "\"", ":"}) ASSERT_OK(state.Accept(token(text)));
  int depth = 0;
  while (state.Accept(token("[")).ok()) ++depth;
  EXPECT_EQ(depth, kMaxGrammarDepth);
  // The innermost array is empty, and everything can be closed.
  EXPECT_FALSE(state.Accept(token("7")).ok());
  for (int i = 0; i < depth; ++i) ASSERT_OK(state.Accept(token("]")));
  ASSERT_OK(state.Accept(token("}")));
  EXPECT_TRUE(state.must_end());
}

TEST(SchemaGrammarTest, IntegersAreWithinTheirBounds) {
  for (const auto& [min, max] : std::vector<std::pair<int, int>>{
           {0, 0}, {0, 9}, {-1, 1}, {5, 12}, {99, 1001}, {-120, -7}, {-305, 44}, {100, 999}}) {
    const std::string schema = Json{{"type", "integer"}, {"minimum", min}, {"maximum", max}}.dump();
    ASSERT_OK_AND_ASSIGN(const auto constraint, Compile(SchemaSpec(schema)));
    for (int value = -320; value <= 1020; value += value % 10 == 5 && value > 130 ? 7 : 1) {
      EXPECT_EQ(Matches(constraint, std::to_string(value)), min <= value && value <= max)
          << schema << " " << value;
    }
    for (const char* text : {"", "-", "-0", "00", "01", "1.0", "1e1"}) {
      EXPECT_FALSE(Matches(constraint, text)) << schema << " " << text;
    }
  }
  EXPECT_TRUE(IsSchemaMatch(R"({"type": "integer"})", "-999999999999999999"));
  EXPECT_FALSE(IsSchemaMatch(R"({"type": "integer"})", "1000000000000000000"));
}

TEST(SchemaGrammarTest, MembersComeInTheOrderOfTheSchema) {
  const char* schema =
      R"({"properties": {"z": {"const": 1}, "a": {"const": 2}, "m": {"const": 3}}})";
  EXPECT_TRUE(IsSchemaMatch(schema, R"({"z":1,"a":2,"m":3})"));
  EXPECT_TRUE(IsSchemaMatch(schema, R"({"z":1, "m":3})"));
  EXPECT_TRUE(IsSchemaMatch(schema, R"({ "a": 2 })"));
  EXPECT_TRUE(IsSchemaMatch(schema, "{}"));
  EXPECT_FALSE(IsSchemaMatch(schema, R"({"a":2,"z":1})"));
  EXPECT_FALSE(IsSchemaMatch(schema, R"({"z":1,"z":1})"));
  EXPECT_FALSE(IsSchemaMatch(schema, R"({"z":1,})"));
  EXPECT_FALSE(IsSchemaMatch(schema, R"({,"z":1})"));
}

TEST(SchemaGrammarTest, OtherMembersHaveOtherNames) {
  const char* schema = R"({"properties": {"ab": {"const": 1}}, "additionalProperties": true})";
  for (const char* name : {"a", "abc", "b", "", "A b"}) {
    EXPECT_TRUE(IsSchemaMatch(schema, absl::StrCat("{\"", name, "\":null}"))) << name;
  }
  EXPECT_FALSE(IsSchemaMatch(schema, R"({"ab":null})"));
  EXPECT_FALSE(IsSchemaMatch(schema, R"({"a\u0062":null})"));
  EXPECT_TRUE(IsSchemaMatch(schema, R"({"ab":1,"x":[],"y":2})"));
}

TEST(SchemaGrammarTest, RefusesWhatItDoesNotEnforceByName) {
  const std::pair<const char*, const char*> kRefused[] = {
      {R"({"type": "number", "multipleOf": 2})", "#: \"multipleOf\" is not supported"},
      {R"({"properties": {"a": {"type": "array", "uniqueItems": true}}})",
       "#/properties/a: \"uniqueItems\" is not supported"},
      {R"({"not": {"type": "null"}})", "\"not\""},
      {R"({"if": true, "then": true})", "\"if\""},
      {R"({"type": "array", "contains": true})", "\"contains\""},
      {R"({"patternProperties": {"a": true}})", "\"patternProperties\""},
      {R"({"type": "string", "format": "date"})", "\"format\""},
      {R"({"minProperties": 1})", "\"minProperties\""},
      {R"({"propertyNames": {}})", "\"propertyNames\""},
      {R"({"dependentRequired": {}})", "\"dependentRequired\""},
      {R"({"unevaluatedProperties": false})", "\"unevaluatedProperties\""},
      {R"({"$dynamicRef": "#a"})", "\"$dynamicRef\""},
      {R"({"x-own": 1})", "\"x-own\""},
      {R"({"type": "number", "maximum": 3})", "\"maximum\" is not supported for numbers"},
      {R"({"allOf": [true, true]})", "\"allOf\" is not supported with more than one"},
      {R"({"oneOf": [{"const": 1}, {"const": 2}]})", "\"oneOf\" is not supported unless"},
      {R"({"oneOf": [{"type": "integer"}, {"type": "number"}]})", "\"oneOf\""},
      {R"({"anyOf": [true], "type": "string"})", "\"type\" is not supported beside \"anyOf\""},
      {R"({"enum": ["a"], "minLength": 1})", "\"minLength\" is not supported beside \"enum\""},
      {R"({"enum": ["a"], "const": "a"})", "is not supported beside"},
      {R"({"type": "string", "pattern": "a", "maxLength": 3})", "\"pattern\" is not supported"},
      {R"x({"properties": {"a": {"pattern": "(?=a)"}}})x", "#/properties/a: regular expression"},
  };
  for (const auto& [schema, message] : kRefused) {
    const absl::Status status = Refusal(schema);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << schema;
    EXPECT_THAT(status.message(), testing::HasSubstr(message)) << schema;
  }
}

TEST(SchemaGrammarTest, RefusesFaults) {
  const std::pair<const char*, const char*> kFaults[] = {
      {"", "must not be empty"},
      {"{", "JSON schema"},
      {R"({"type": "text"})", "\"type\" must be of"},
      {R"({"type": []})", "\"type\" has no types"},
      {"[]", "must be an object, true or false"},
      {"false", "allows no value"},
      {R"({"enum": []})", "allows no value"},
      {R"({"type": "null", "enum": [1]})", "allows no value"},
      {R"({"minLength": -1})", "\"minLength\" must be a whole number"},
      {R"({"minLength": 3, "maxLength": 2})", "\"maxLength\" is less"},
      {R"({"minItems": 3, "maxItems": 2})", "at most fewer items"},
      {R"({"type": "integer", "minimum": 3, "maximum": 2})", "no integer"},
      {R"({"type": "integer", "maximum": -1e300})", "no integer"},
      {R"({"required": "a"})", "\"required\" must be an array"},
      {R"({"required": ["a"], "additionalProperties": false})", "forbids"},
      {R"({"$ref": "http://example.com/a"})", "\"$ref\" must be"},
      {R"({"$ref": "#/$defs/none"})", "leads nowhere"},
      {R"({"properties": {"a": true, "a": true}})", "occurs twice"},
      {R"({"$ref": "#"})", "leads to itself"},
      {R"({"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": {"anyOf":
          [{"$ref": "#"}]}}})",
       "leads to itself"},
      {R"({"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}},
          "required": ["a"]}}})",
       "no text satisfies the constraint"},
  };
  for (const auto& [schema, message] : kFaults) {
    const absl::Status status = Refusal(schema);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << schema;
    EXPECT_THAT(status.message(), testing::HasSubstr(message)) << schema;
  }
}

}  // namespace
}  // namespace quern
