#include "core/constraint/schema_grammar.h"

#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_replace.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/base/utf8.h"
#include "core/constraint/json_grammar.h"
#include "core/constraint/regex_grammar.h"

namespace quern {
namespace {

// Keeps the order of members, in which the answer has them.
using Schema = nlohmann::ordered_json;

constexpr int kMaxSchemaDepth = 64;
// An ordered object takes time that is quadratic in them.
constexpr size_t kMaxSchemaMembers = 2048;

// Say nothing about what is valid.
const std::set<absl::string_view> kAnnotations = {
    "$schema",  "$comment",  "title",      "description", "default",    "examples",
    "readOnly", "writeOnly", "deprecated", "$defs",       "definitions"};
// The whole schema is one of these; beside it stand only annotations (and `type` beside values).
const std::set<absl::string_view> kAlone = {"$ref", "anyOf", "oneOf", "allOf", "enum", "const"};
const std::set<absl::string_view> kTypes = {"null",   "boolean", "object", "array",
                                            "number", "integer", "string"};
// Assertions, by the type that they are about.
const std::map<absl::string_view, absl::string_view> kAssertions = {
    {"properties", "object"}, {"required", "object"},         {"additionalProperties", "object"},
    {"items", "array"},       {"prefixItems", "array"},       {"minItems", "array"},
    {"maxItems", "array"},    {"uniqueItems", "array"},       {"minLength", "string"},
    {"maxLength", "string"},  {"pattern", "string"},          {"minimum", "number"},
    {"maximum", "number"},    {"exclusiveMinimum", "number"}, {"exclusiveMaximum", "number"}};

bool IsOfType(const Schema& value, absl::string_view type) {
  if (type == "integer") return value.is_number_integer();
  return type == (value.is_number() ? "number" : absl::string_view(value.type_name()));
}

// Of any object within `value`.
size_t MostMembers(const Json& value) {
  size_t most = value.is_object() ? value.size() : 0;
  if (!value.is_structured()) return most;
  for (const Json& part : value) most = std::max(most, MostMembers(part));
  return most;
}

class SchemaBuilder {
 public:
  SchemaBuilder(Grammar& grammar, const Schema& root)
      : grammar_(grammar), json_(grammar), root_(root) {}

  void Build() {
    pending_.push_back({0, &root_, "#"});
    // Not recursion: references may follow each other for as long as the schema is.
    while (!pending_.empty() && grammar_.ok()) {
      const Pending next = pending_.back();
      pending_.pop_back();
      grammar_.EndRule(next.rule, Add(grammar_.StartOf(next.rule), *next.schema, next.path));
    }
  }

 private:
  struct Pending {
    int rule;
    const Schema* schema;
    std::string path;
  };

  int Fail(absl::string_view path, absl::string_view message) {
    grammar_.Fail(absl::InvalidArgumentError(absl::StrCat("JSON schema, ", path, ": ", message)));
    return 0;
  }
  int Unsupported(absl::string_view path, absl::string_view keyword, absl::string_view why = "") {
    return Fail(path, absl::StrCat("\"", keyword, "\" is not supported", why));
  }

  // A rule of its own for `schema`: what is called often is built once.
  int RuleFor(const Schema& schema, absl::string_view path) {
    const int rule = grammar_.NewRule();
    pending_.push_back({rule, &schema, std::string(path)});
    return rule;
  }

  // Appends the values valid under `schema`.
  int Add(int from, const Schema& schema, const std::string& path) {
    if (!grammar_.ok()) return from;
    if (schema.is_boolean()) {
      if (schema.get<bool>()) return grammar_.AddCall(from, json_.AnyValue());
      return Fail(path, "the schema false allows no value");
    }
    if (!schema.is_object()) return Fail(path, "a schema must be an object, true or false");
    const std::string alone = CheckKeywords(schema, path);
    if (!grammar_.ok()) return from;
    if (alone == "$ref") return AddRef(from, schema["$ref"], path);
    if (alone == "enum" || alone == "const") return AddValues(from, schema, alone, path);
    if (!alone.empty()) return AddAlternatives(from, schema[alone], alone, path);
    const std::vector<std::string> types = TypesOf(schema, path);
    if (types.empty()) return grammar_.ok() ? grammar_.AddCall(from, json_.AnyValue()) : from;
    return AddAnyOf(from, types.size(),
                    [&](int begin, size_t i) { return AddType(begin, types[i], schema, path); });
  }

  template <typename AddOne>
  int AddAnyOf(int from, size_t count, AddOne add_one) {
    if (count == 1) return add_one(from, size_t{0});
    const int to = grammar_.NewState();
    for (size_t i = 0; i < count; ++i) {
      const int begin = grammar_.NewState();
      grammar_.AddEmpty(from, begin);
      grammar_.AddEmpty(add_one(begin, i), to);
    }
    return to;
  }

  // The keyword that stands alone, or "".
  std::string CheckKeywords(const Schema& schema, const std::string& path) {
    std::string alone;
    std::string assertion;
    for (const auto& [keyword, value] : schema.items()) {
      if (kAnnotations.contains(keyword) || (keyword == "$id" && &schema == &root_)) continue;
      if (kAlone.contains(keyword)) {
        if (!alone.empty()) {
          Unsupported(path, keyword, absl::StrCat(" beside \"", alone, "\""));
        }
        alone = keyword;
      } else if (keyword == "type" || kAssertions.contains(keyword)) {
        if (keyword != "type" || assertion.empty()) assertion = keyword;
      } else {
        Unsupported(path, keyword);
      }
    }
    const bool is_values = alone == "enum" || alone == "const";
    if (!alone.empty() && !assertion.empty() && !(is_values && assertion == "type")) {
      Unsupported(path, assertion, absl::StrCat(" beside \"", alone, "\""));
    }
    return alone;
  }

  // Those named; else those that an assertion is about, since the others need no text; empty: any.
  std::vector<std::string> TypesOf(const Schema& schema, const std::string& path) {
    std::vector<std::string> types;
    if (const auto it = schema.find("type"); it != schema.end()) {
      const Schema list = it->is_array() ? *it : Schema::array({*it});
      if (list.empty()) Fail(path, "\"type\" has no types");
      for (const Schema& type : list) {
        if (!type.is_string() || !kTypes.contains(type.get<std::string>())) {
          Fail(path, absl::StrCat("\"type\" must be of ", absl::StrJoin(kTypes, ", ")));
          return {};
        }
        types.push_back(type.get<std::string>());
      }
      return types;
    }
    for (const auto& [keyword, type] : kAssertions) {
      if (schema.contains(std::string(keyword)) &&
          std::find(types.begin(), types.end(), type) == types.end()) {
        types.emplace_back(type);
      }
    }
    return types;
  }

  int AddType(int from, absl::string_view type, const Schema& schema, const std::string& path) {
    if (!grammar_.ok()) return from;
    if (type == "null") return grammar_.AddLiteral(from, "null");
    if (type == "boolean") return json_.AddBoolean(from);
    if (type == "integer") return AddInteger(from, schema, path);
    if (type == "number") return AddNumber(from, schema, path);
    if (type == "string") return AddString(from, schema, path);
    if (type == "array") return AddArray(from, schema, path);
    return AddObject(from, schema, path);
  }

  // --- What stands alone ----------------------------------------------------------------------

  int AddRef(int from, const Schema& ref, const std::string& path) {
    const std::string pointer = ref.is_string() ? ref.get<std::string>() : "";
    if (pointer != "#" && !absl::StartsWith(pointer, "#/")) {
      return Fail(path, absl::StrCat("\"$ref\" must be # or #/..., a place in this schema, got ",
                                     Quoted(ref.is_string() ? pointer : ref.dump())));
    }
    const auto known = ref_rules_.find(pointer);
    if (known != ref_rules_.end()) return grammar_.AddCall(from, known->second);
    const Schema* at = &root_;
    if (pointer != "#") {
      for (const absl::string_view part : absl::StrSplit(pointer.substr(2), '/')) {
        const std::string name =
            absl::StrReplaceAll(absl::StrReplaceAll(part, {{"~1", "/"}}), {{"~0", "~"}});
        size_t index = 0;
        const Schema* next = nullptr;
        if (at->is_object() && at->contains(name)) {
          next = &(*at)[name];
        } else if (at->is_array() && absl::SimpleAtoi(name, &index) && index < at->size()) {
          next = &(*at)[index];
        }
        if (next == nullptr) {
          return Fail(path, absl::StrCat("\"$ref\" ", Quoted(pointer), " leads nowhere"));
        }
        at = next;
      }
    }
    const int rule = RuleFor(*at, pointer);
    ref_rules_[pointer] = rule;
    return grammar_.AddCall(from, rule);
  }

  int AddValues(int from, const Schema& schema, const std::string& keyword,
                const std::string& path) {
    const Schema& found = schema[keyword];
    const Schema values = keyword == "const" ? Schema::array({found}) : found;
    if (!values.is_array()) return Fail(path, "\"enum\" must be an array");
    std::vector<std::string> types;
    if (schema.contains("type")) types = TypesOf(schema, path);
    std::vector<std::string> texts;
    for (const Schema& value : values) {
      const auto fits = [&](const std::string& type) { return IsOfType(value, type); };
      if (types.empty() || std::any_of(types.begin(), types.end(), fits)) {
        texts.push_back(value.dump());
      }
    }
    if (texts.empty()) return Fail(path, absl::StrCat("\"", keyword, "\" allows no value"));
    return grammar_.AddLiterals(from, texts);
  }

  int AddAlternatives(int from, const Schema& parts, const std::string& keyword,
                      const std::string& path) {
    if (!parts.is_array() || parts.empty()) {
      return Fail(path, absl::StrCat("\"", keyword, "\" must be an array that is not empty"));
    }
    if (keyword == "allOf" && parts.size() > 1) {
      return Unsupported(path, keyword, " with more than one schema");
    }
    if (keyword == "oneOf" && !TypesAreDisjoint(parts)) {
      return Unsupported(path, keyword,
                         " unless each of its schemas has a \"type\" that no other has; use "
                         "\"anyOf\"");
    }
    return AddAnyOf(from, parts.size(), [&](int begin, size_t i) {
      return Add(begin, parts[i], absl::StrCat(path, "/", keyword, "/", i));
    });
  }

  // No value fits two of them, whatever else they say.
  static bool TypesAreDisjoint(const Schema& parts) {
    std::set<std::string> seen;
    for (const Schema& part : parts) {
      if (!part.is_object() || !part.contains("type")) return false;
      const Schema& type = part["type"];
      for (const Schema& one : type.is_array() ? type : Schema::array({type})) {
        if (!one.is_string()) return false;
        const auto name = one.get<std::string>();
        if (!seen.insert(name == "integer" ? "number" : name).second) return false;
      }
    }
    return true;
  }

  // --- Scalars --------------------------------------------------------------------------------

  std::optional<int64_t> Count(const Schema& schema, const char* keyword, const std::string& path) {
    const auto it = schema.find(keyword);
    if (it == schema.end()) return std::nullopt;
    if (!it->is_number_unsigned() || it->get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
      Fail(path, absl::StrCat("\"", keyword, "\" must be a whole number from 0 to 2147483647"));
      return std::nullopt;
    }
    return it->get<int64_t>();
  }

  int AddString(int from, const Schema& schema, const std::string& path) {
    const std::optional<int64_t> min = Count(schema, "minLength", path);
    const std::optional<int64_t> max = Count(schema, "maxLength", path);
    const auto pattern = schema.find("pattern");
    if (pattern == schema.end()) {
      if (max.has_value() && *max < min.value_or(0)) {
        return Fail(path, "\"maxLength\" is less than \"minLength\"");
      }
      return json_.AddString(from, min.value_or(0), max);
    }
    if (min.has_value() || max.has_value()) {
      return Unsupported(path, "pattern", " beside \"minLength\" or \"maxLength\"");
    }
    if (!pattern->is_string()) return Fail(path, "\"pattern\" must be a string");
    from = grammar_.AddLiteral(from, "\"");
    const bool was_ok = grammar_.ok();
    from = AddRegex(grammar_, from, pattern->get<std::string>(), RegexUse::kJsonString);
    if (was_ok && !grammar_.ok()) grammar_.Locate(absl::StrCat("JSON schema, ", path, ": "));
    return grammar_.AddLiteral(from, "\"");
  }

  // `keyword`'s bound as a whole number, within the ones that are written; `toward`: which way a
  // bound between two of them moves.
  std::optional<int64_t> Bound(const Schema& schema, const char* keyword, bool upward,
                               bool exclusive, const std::string& path) {
    const auto it = schema.find(keyword);
    if (it == schema.end()) return std::nullopt;
    if (!it->is_number()) {
      Fail(path, absl::StrCat("\"", keyword, "\" must be a number"));
      return std::nullopt;
    }
    constexpr double kLimit = static_cast<double>(kMaxJsonInteger);
    int64_t bound = 0;
    bool whole = true;
    if (it->is_number_integer()) {
      const bool huge = it->is_number_unsigned() && it->get<uint64_t>() > kMaxJsonInteger;
      bound = huge ? kMaxJsonInteger + 1
                   : std::clamp(it->get<int64_t>(), -kMaxJsonInteger - 1, kMaxJsonInteger + 1);
    } else {
      const double value = it->get<double>();
      const double rounded = upward ? std::ceil(value) : std::floor(value);
      whole = rounded == value;
      bound = static_cast<int64_t>(std::clamp(rounded, -kLimit - 1, kLimit + 1));
    }
    if (exclusive && whole) bound += upward ? 1 : -1;
    return bound;
  }

  int AddInteger(int from, const Schema& schema, const std::string& path) {
    int64_t min = -kMaxJsonInteger, max = kMaxJsonInteger;
    for (const bool exclusive : {false, true}) {
      const auto low =
          Bound(schema, exclusive ? "exclusiveMinimum" : "minimum", true, exclusive, path);
      const auto high =
          Bound(schema, exclusive ? "exclusiveMaximum" : "maximum", false, exclusive, path);
      min = std::max(min, low.value_or(min));
      max = std::min(max, high.value_or(max));
    }
    if (!grammar_.ok()) return from;
    if (min > max) {
      return Fail(path, "no integer of at most 18 digits lies between its bounds");
    }
    return json_.AddInteger(from, min, max);
  }

  int AddNumber(int from, const Schema& schema, const std::string& path) {
    bool negative = true;
    for (const char* keyword : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}) {
      if (!schema.contains(keyword)) continue;
      if (keyword == absl::string_view("minimum") && schema[keyword].is_number() &&
          schema[keyword] == 0) {
        negative = false;
      } else {
        return Unsupported(path, keyword,
                           " for numbers (but \"minimum\": 0); use \"type\": \"integer\"");
      }
    }
    return json_.AddNumber(from, negative);
  }

  // --- Arrays and objects ---------------------------------------------------------------------

  int AddArray(int from, const Schema& schema, const std::string& path) {
    const int64_t min = Count(schema, "minItems", path).value_or(0);
    std::optional<int64_t> max = Count(schema, "maxItems", path);
    if (schema.value("uniqueItems", Schema(false)) != false) {
      return Unsupported(path, "uniqueItems");
    }
    std::vector<int> rules;  // of the first items
    if (const auto it = schema.find("prefixItems"); it != schema.end()) {
      if (!it->is_array()) return Fail(path, "\"prefixItems\" must be an array");
      for (size_t i = 0; i < it->size(); ++i) {
        rules.push_back(RuleFor((*it)[i], absl::StrCat(path, "/prefixItems/", i)));
      }
    }
    const auto num_first = static_cast<int64_t>(rules.size());
    const auto items = schema.find("items");
    if (items != schema.end() && *items == false)
      max = std::min(max.value_or(num_first), num_first);
    if (!grammar_.ok()) return from;
    if (max.has_value() && *max < min) {
      return Fail(path, "at most fewer items are allowed than are wanted at least");
    }
    const bool has_rest = !max.has_value() || *max > num_first;
    if (has_rest) {
      rules.push_back(items == schema.end() ? json_.AnyValue()
                                            : RuleFor(*items, absl::StrCat(path, "/items")));
    }
    return json_.AddArray(from, min, max, rules);
  }

  // Names that must be there, in the order of `required`.
  std::vector<std::string> Required(const Schema& schema, const std::string& path) {
    std::vector<std::string> names;
    const auto it = schema.find("required");
    if (it == schema.end()) return names;
    for (const Schema& name : it->is_array() ? *it : Schema::array({*it})) {
      if (!it->is_array() || !name.is_string()) {
        Fail(path, "\"required\" must be an array of names");
        return {};
      }
      names.push_back(name.get<std::string>());
    }
    return names;
  }

  int AddObject(int from, const Schema& schema, const std::string& path) {
    const std::vector<std::string> required = Required(schema, path);
    const std::set<std::string> required_set(required.begin(), required.end());
    const auto properties = schema.find("properties");
    const auto additional = schema.find("additionalProperties");
    const bool closed = additional != schema.end() && *additional == false;
    if (properties != schema.end() && !properties->is_object()) {
      return Fail(path, "\"properties\" must be an object");
    }
    std::vector<JsonMember> members;
    std::set<std::string> names;
    if (properties != schema.end()) {
      for (const auto& [name, value] : properties->items()) {
        names.insert(name);
        members.push_back(
            {.name = name,
             .required = required_set.contains(name),
             .add_value = [this, &value = value, at = absl::StrCat(path, "/properties/", name)](
                              int begin) { return Add(begin, value, at); }});
      }
    }
    std::optional<int> other;  // rule of additional members
    if (!closed && (additional != schema.end() || members.empty())) {
      other = additional == schema.end()
                  ? json_.AnyValue()
                  : RuleFor(*additional, absl::StrCat(path, "/additionalProperties"));
    }
    for (const std::string& name : required) {
      if (!names.insert(name).second) continue;
      if (closed) {
        return Fail(path, absl::StrCat("\"required\" wants ", Quoted(name),
                                       ", which \"additionalProperties\" forbids"));
      }
      const int rule = other.has_value() ? *other : json_.AnyValue();
      members.push_back({.name = name, .required = true, .add_value = [this, rule](int begin) {
                           return grammar_.AddCall(begin, rule);
                         }});
    }
    return json_.AddObject(from, members, other);
  }

  Grammar& grammar_;
  JsonGrammar json_;
  const Schema& root_;
  std::vector<Pending> pending_;
  std::map<std::string, int> ref_rules_;
};

}  // namespace

void AddJsonSchema(Grammar& grammar, absl::string_view schema) {
  // The strict reader refuses what the library takes silently, but sorts.
  const absl::StatusOr<Json> strict =
      ParseJson(schema, "JSON schema", {.max_depth = kMaxSchemaDepth});
  if (!strict.ok()) return grammar.Fail(strict.status());
  if (const size_t count = MostMembers(*strict); count > kMaxSchemaMembers) {
    return grammar.Fail(absl::InvalidArgumentError(absl::StrCat("JSON schema: an object has ",
                                                                count, " members, at most ",
                                                                kMaxSchemaMembers, " are taken")));
  }
  const Schema ordered = Schema::parse(schema.begin(), schema.end(), nullptr, false);
  SchemaBuilder(grammar, ordered).Build();
}

void AddJsonObject(Grammar& grammar) {
  JsonGrammar json(grammar);
  grammar.EndRule(0, json.AddObject(grammar.StartOf(0), {}, json.AnyValue()));
}

}  // namespace quern
