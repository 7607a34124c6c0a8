#ifndef QUERN_CORE_PLAN_PROTO_JSON_H_
#define QUERN_CORE_PLAN_PROTO_JSON_H_

// Reads messages in proto3 JSON form, strictly: what is not known is refused. For the tasks here.

#include <absl/status/status.h>
#include <absl/strings/ascii.h>
#include <absl/strings/escaping.h>
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_split.h>
#include <absl/strings/string_view.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/base/sha256.h"

namespace quern {

inline constexpr size_t kMaxTaskPathBytes = 4096;

// "sample_count" -> "sampleCount", as protobuf's JSON names are made.
inline std::string CamelCase(absl::string_view name) {
  std::string camel;
  bool upper = false;
  for (char c : name) {
    if (c == '_') {
      upper = true;
    } else {
      camel.push_back(upper ? absl::ascii_toupper(c) : c);
      upper = false;
    }
  }
  return camel;
}

// One name of an enum and what it stands for.
template <typename T>
struct EnumName {
  absl::string_view name;
  int number;
  T value;
};

template <typename T>
using EnumNames = std::vector<EnumName<T>>;

// The name that is not "unspecified".
template <typename T>
absl::string_view NameOf(const EnumNames<T>& names, T value) {
  for (const EnumName<T>& entry : names) {
    if (entry.number != 0 && entry.value == value) return entry.name;
  }
  return "";
}

template <typename T>
Json NameOrNull(const EnumNames<std::optional<T>>& names, const std::optional<T>& value) {
  return value.has_value() ? Json(std::string(NameOf(names, value))) : Json(nullptr);
}

// One message in proto3 JSON form. Each reader marks its field as known; the first error sticks
// (and later readers do nothing), so that parsing reads as a list of fields.
class ProtoJson {
 public:
  ProtoJson(const Json* value, std::string where) : where_(std::move(where)) {
    if (value == nullptr || value->is_null()) return;
    if (value->is_object()) {
      object_ = value;
    } else {
      Fail("", "wanted an object");
    }
  }

  bool present() const { return object_ != nullptr; }

  void Int(absl::string_view field, int64_t min, int64_t max, int64_t& out) {
    const Json* value = Take(field);
    if (value == nullptr) return;
    int64_t number = 0;
    const bool is_integer =
        value->is_string() ? absl::SimpleAtoi(value->get_ref<const std::string&>(), &number)
                           : value->is_number_integer() &&
                                 !(value->is_number_unsigned() &&
                                   value->get<uint64_t>() >
                                       static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
    if (is_integer && !value->is_string()) number = value->get<int64_t>();
    if (!is_integer || number < min || number > max) {
      Fail(field,
           absl::StrCat("is ", Shown(*value), ", wanted an integer in [", min, ", ", max, "]"));
      return;
    }
    out = number;
  }

  void Int(absl::string_view field, int min, int max, int& out) {
    int64_t wide = out;
    Int(field, int64_t{min}, int64_t{max}, wide);
    out = static_cast<int>(wide);
  }

  void Int(absl::string_view field, int min, int max, std::optional<int>& out) {
    if (Find(field) == nullptr) {
      Take(field);
      return;
    }
    int64_t wide = 0;
    Int(field, int64_t{min}, int64_t{max}, wide);
    out = static_cast<int>(wide);
  }

  void Number(absl::string_view field, double min, double max, std::optional<double>& out) {
    const Json* value = Take(field);
    if (value == nullptr) return;
    double number = std::numeric_limits<double>::quiet_NaN();
    if (value->is_number()) number = value->get<double>();
    if (value->is_string() && !absl::SimpleAtod(value->get_ref<const std::string&>(), &number)) {
      number = std::numeric_limits<double>::quiet_NaN();
    }
    if (!(number >= min && number <= max)) {
      Fail(field,
           absl::StrCat("is ", Shown(*value), ", wanted a number in [", min, ", ", max, "]"));
      return;
    }
    out = number;
  }

  void Bool(absl::string_view field, bool& out) {
    const Json* value = Take(field);
    if (value == nullptr) return;
    if (!value->is_boolean()) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", wanted true or false"));
      return;
    }
    out = value->get<bool>();
  }

  void Bool(absl::string_view field, std::optional<bool>& out) {
    bool value = false;
    if (Find(field) == nullptr) {
      Take(field);
      return;
    }
    Bool(field, value);
    out = value;
  }

  void String(absl::string_view field, std::string& out) {
    const Json* value = Take(field);
    if (value == nullptr) return;
    if (!value->is_string()) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", wanted a string"));
      return;
    }
    out = value->get<std::string>();
  }

  // A path below a root, '/'-separated, in one of the endings (any, when there are none).
  void Path(absl::string_view field, const std::vector<absl::string_view>& endings,
            std::string& out) {
    String(field, out);
    if (!status_.ok() || !present()) return;
    if (out.empty()) return Fail(field, "is empty, wanted a path below the service's root");
    const auto segments = std::vector<absl::string_view>(absl::StrSplit(out, '/'));
    const bool climbs = std::find(segments.begin(), segments.end(), "..") != segments.end();
    const bool control =
        std::any_of(out.begin(), out.end(), [](unsigned char c) { return absl::ascii_iscntrl(c); });
    if (out[0] == '/' || climbs || control || out.size() > kMaxTaskPathBytes) {
      return Fail(field,
                  absl::StrCat("is ", Shown(out), ", wanted a relative path of at most ",
                               kMaxTaskPathBytes, " bytes without '..' and control characters"));
    }
    const bool known = endings.empty() ||
                       std::any_of(endings.begin(), endings.end(), [&](absl::string_view ending) {
                         return absl::EndsWith(out, ending);
                       });
    if (!known) {
      Fail(field, absl::StrCat("is ", Shown(out), ", wanted a name that ends in ",
                               absl::StrJoin(endings, ", ")));
    }
  }

  // "artifacts/" and a SHA-256; `id` is its 64 hex digits.
  void ArtifactName(absl::string_view field, std::string& id) {
    std::string name;
    String(field, name);
    if (!status_.ok()) return;
    absl::string_view digits = name;
    if (!absl::ConsumePrefix(&digits, "artifacts/") || !Digest::Parse(digits).ok()) {
      return Fail(field, absl::StrCat("is ", Shown(name), ", wanted artifacts/ and 64 hex digits"));
    }
    id = std::string(digits);
  }

  template <typename T>
  void Enum(absl::string_view field, const EnumNames<T>& names, T& out) {
    const Json* value = Take(field);
    if (value == nullptr) return;
    for (const EnumName<T>& entry : names) {
      const bool by_name = value->is_string() && value->get_ref<const std::string&>() == entry.name;
      if (by_name || (value->is_number_integer() && *value == entry.number)) {
        out = entry.value;
        return;
      }
    }
    Fail(field, absl::StrCat("is ", Shown(*value), ", wanted one of ",
                             absl::StrJoin(names, ", ", [](std::string* text, const auto& entry) {
                               absl::StrAppend(text, entry.name);
                             })));
  }

  // Parses a nested message with `parse`; its error becomes this one's.
  template <typename Parse>
  void Message(absl::string_view field, Parse parse) {
    const Json* value = Take(field);
    if (!status_.ok()) return;
    ProtoJson nested(value, absl::StrCat(Name(field)));
    parse(nested);
    status_ = nested.Finish();
  }

  // The same for each message of a list of at most `max_count`.
  template <typename Parse>
  void Messages(absl::string_view field, size_t max_count, Parse parse) {
    const Json* value = Take(field);
    if (value == nullptr || !status_.ok()) return;
    if (!value->is_array() || value->size() > max_count) {
      return Fail(field, absl::StrCat("wanted a list of at most ", max_count));
    }
    for (size_t i = 0; i < value->size() && status_.ok(); ++i) {
      ProtoJson nested(&(*value)[i], absl::StrCat(Name(field), "[", i, "]"));
      parse(nested);
      status_ = nested.Finish();
    }
  }

  void Refuse(absl::string_view field, absl::string_view why) {
    if (Take(field) != nullptr) Fail(field, why);
  }

  void Fail(absl::string_view field, absl::string_view what) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat(Name(field), " ", what));
    }
  }

  // The first error, or one for a key that no reader asked for.
  absl::Status Finish() {
    if (!status_.ok() || object_ == nullptr) return status_;
    for (const auto& [key, value] : object_->items()) {
      if (!known_.contains(key)) {
        return absl::InvalidArgumentError(absl::StrCat(
            Name(absl::CEscape(absl::string_view(key).substr(0, 80))), " is not a known field"));
      }
    }
    return absl::OkStatus();
  }

 private:
  static std::string Shown(const Json& value) {
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return text.size() <= 80 ? text : absl::StrCat(text.substr(0, 77), "...");
  }

  std::string Name(absl::string_view field) const {
    if (where_.empty()) return field.empty() ? "task" : std::string(field);
    return field.empty() ? where_ : absl::StrCat(where_, ".", field);
  }

  const Json* Find(absl::string_view field) const {
    if (object_ == nullptr || !status_.ok()) return nullptr;
    for (const std::string& key : {std::string(field), CamelCase(field)}) {
      const auto it = object_->find(key);
      if (it != object_->end() && !it->is_null()) return &*it;
    }
    return nullptr;
  }

  // Marks both spellings as known. Null when the field is not set.
  const Json* Take(absl::string_view field) {
    const std::string camel = CamelCase(field);
    known_.insert(std::string(field));
    known_.insert(camel);
    if (object_ != nullptr && camel != field && object_->contains(camel) &&
        object_->contains(std::string(field))) {
      Fail(field, absl::StrCat("is given twice, also as ", camel));
    }
    return Find(field);
  }

  const Json* object_ = nullptr;
  const std::string where_;
  std::set<std::string> known_;
  absl::Status status_;
};

}  // namespace quern

#endif  // QUERN_CORE_PLAN_PROTO_JSON_H_
