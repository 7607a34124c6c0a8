#include "core/base/json.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"

namespace quern {
namespace {

// Builds the value and refuses what the library's own parser takes silently.
class StrictBuilder : public nlohmann::json_sax<Json> {
 public:
  explicit StrictBuilder(int max_depth) : max_depth_(max_depth) {}

  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t& token) override {
    // The lexer falls back to a float for an integer beyond 64 bits.
    if (token.find_first_of(".eE") == std::string::npos) {
      return Fail(absl::StrCat("integer ", token.substr(0, 40), " does not fit 64 bits"));
    }
    if (!std::isfinite(value)) return Fail("number is too large");
    return Add(value);
  }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t&) override { return Fail("binary value"); }
  bool start_object(size_t) override { return Open(Json::object()); }
  bool end_object() override { return Close(); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_array() override { return Close(); }
  bool key(string_t& value) override {
    if (open_.back()->contains(value)) {
      return Fail(absl::StrCat("key \"", absl::CEscape(value.substr(0, 80)), "\" occurs twice"));
    }
    key_ = std::move(value);
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // It quotes what it read last, which may be all there is.
    error_ = absl::StrCat("byte ", position, ": ",
                          absl::CEscape(absl::string_view(error.what()).substr(0, 200)));
    return false;
  }

  Json& root() { return root_; }
  const std::string& error() const { return error_; }

 private:
  Json* Place(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    Json& member = parent[key_];
    member = std::move(value);
    return &member;
  }
  bool Add(Json value) {
    Place(std::move(value));
    return true;
  }
  bool Open(Json value) {
    if (static_cast<int>(open_.size()) >= max_depth_) {
      return Fail(absl::StrCat("nested deeper than ", max_depth_));
    }
    open_.push_back(Place(std::move(value)));
    return true;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }
  bool Fail(std::string error) {
    error_ = std::move(error);
    return false;
  }

  const int max_depth_;
  Json root_;
  std::vector<Json*> open_;
  std::string key_;
  std::string error_;
};

std::string Describe(const Json* value) {
  if (value == nullptr) return "nothing";
  if (value->is_object()) return "an object";
  if (value->is_array()) return absl::StrCat("an array of ", value->size());
  std::string text = value->dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 80) text = absl::StrCat(text.substr(0, 77), "...");
  return text;
}

}  // namespace

absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view where,
                               const JsonLimits& limits) {
  if (text.substr(0, 3) == "\xef\xbb\xbf") {
    return absl::InvalidArgumentError(absl::StrCat(where, ": starts with a byte order mark"));
  }
  // The lexer takes a NUL for the end of the input and would leave what follows unread.
  if (const size_t nul = text.find('\0'); nul != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": not valid JSON: byte ", nul, " is NUL"));
  }
  StrictBuilder builder(limits.max_depth);
  const bool parsed = Json::sax_parse(text.begin(), text.end(), &builder);
  if (!parsed) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": not valid JSON: ", builder.error()));
  }
  return std::move(builder.root());
}

absl::StatusOr<JsonObject> JsonObject::Of(const Json& value, absl::string_view where) {
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": found ", Describe(&value), ", wanted an object"));
  }
  return JsonObject(&value, std::string(where));
}

const Json* JsonObject::Find(absl::string_view key) const {
  const auto it = value_->find(std::string(key));
  return it == value_->end() ? nullptr : &*it;
}

bool JsonObject::Has(absl::string_view key) const { return Find(key) != nullptr; }

absl::Status JsonObject::Wrong(absl::string_view key, absl::string_view wanted) const {
  return absl::InvalidArgumentError(
      absl::StrCat(where_, ": ", key, ": found ", Describe(Find(key)), ", wanted ", wanted));
}

absl::StatusOr<int64_t> JsonObject::Int(absl::string_view key, int64_t min, int64_t max) const {
  const Json* value = Find(key);
  const std::string wanted = absl::StrFormat("an integer in [%d, %d]", min, max);
  if (value == nullptr || !value->is_number_integer()) return Wrong(key, wanted);
  if (value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    return Wrong(key, wanted);
  }
  const int64_t number = value->get<int64_t>();
  if (number < min || number > max) return Wrong(key, wanted);
  return number;
}

absl::StatusOr<int64_t> JsonObject::IntOr(absl::string_view key, int64_t min, int64_t max,
                                          int64_t fallback) const {
  const Json* value = Find(key);
  if (value == nullptr || value->is_null()) return fallback;
  return Int(key, min, max);
}

absl::StatusOr<double> JsonObject::Number(absl::string_view key, double min, double max) const {
  const Json* value = Find(key);
  const std::string wanted = absl::StrFormat("a number in [%g, %g]", min, max);
  if (value == nullptr || !value->is_number()) return Wrong(key, wanted);
  const double number = value->get<double>();
  if (!(number >= min && number <= max)) return Wrong(key, wanted);
  return number;
}

absl::StatusOr<double> JsonObject::NumberOr(absl::string_view key, double min, double max,
                                            double fallback) const {
  const Json* value = Find(key);
  if (value == nullptr || value->is_null()) return fallback;
  return Number(key, min, max);
}

absl::StatusOr<bool> JsonObject::BoolOr(absl::string_view key, bool fallback) const {
  const Json* value = Find(key);
  if (value == nullptr || value->is_null()) return fallback;
  if (!value->is_boolean()) return Wrong(key, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonObject::String(absl::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr || !value->is_string()) return Wrong(key, "a string");
  return value->get<std::string>();
}

absl::StatusOr<std::string> JsonObject::StringOr(absl::string_view key,
                                                 absl::string_view fallback) const {
  const Json* value = Find(key);
  if (value == nullptr || value->is_null()) return std::string(fallback);
  return String(key);
}

absl::StatusOr<JsonObject> JsonObject::Object(absl::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr || !value->is_object()) return Wrong(key, "an object");
  return JsonObject(value, absl::StrCat(where_, ": ", key));
}

absl::StatusOr<const Json*> JsonObject::Array(absl::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr || !value->is_array()) return Wrong(key, "an array");
  return value;
}

std::string DumpCanonicalJson(const Json& value) { return value.dump(); }

}  // namespace quern
