#ifndef QUERN_CORE_BASE_JSON_H_
#define QUERN_CORE_BASE_JSON_H_

// The one JSON reader. nlohmann-json's SAX interface builds the value, so that what its own parser
// takes silently is refused: nesting deeper than a limit, a key twice in one object, bytes that are
// not UTF-8, integers beyond 64 bits, a byte order mark.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace quern {

using Json = nlohmann::json;

struct JsonLimits {
  int max_depth = 32;
};

// Parses one whole document. INVALID_ARGUMENT with `where`, the byte offset and the reason.
absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view where,
                               const JsonLimits& limits = {});

// Typed access to the members of an object. Each reports "where: key: found X, wanted Y".
// The readers without a default fail when the key is missing; those with one return the default
// then, and when the value is null.
class JsonObject {
 public:
  // `value` must outlive this. `where` names the file (and object) in messages.
  static absl::StatusOr<JsonObject> Of(const Json& value, absl::string_view where);

  bool Has(absl::string_view key) const;
  // The member, or null when there is none.
  const Json* Find(absl::string_view key) const;

  // An integer token (not 1.0, not "1") in [min, max].
  absl::StatusOr<int64_t> Int(absl::string_view key, int64_t min, int64_t max) const;
  absl::StatusOr<int64_t> IntOr(absl::string_view key, int64_t min, int64_t max,
                                int64_t fallback) const;
  // A finite number in [min, max].
  absl::StatusOr<double> Number(absl::string_view key, double min, double max) const;
  absl::StatusOr<double> NumberOr(absl::string_view key, double min, double max,
                                  double fallback) const;
  absl::StatusOr<bool> BoolOr(absl::string_view key, bool fallback) const;
  absl::StatusOr<std::string> String(absl::string_view key) const;
  absl::StatusOr<std::string> StringOr(absl::string_view key, absl::string_view fallback) const;
  absl::StatusOr<JsonObject> Object(absl::string_view key) const;
  // A member that must be an array.
  absl::StatusOr<const Json*> Array(absl::string_view key) const;

  const Json& json() const { return *value_; }
  const std::string& where() const { return where_; }

 private:
  JsonObject(const Json* value, std::string where) : value_(value), where_(std::move(where)) {}
  absl::Status Wrong(absl::string_view key, absl::string_view wanted) const;
  const Json* value_;
  std::string where_;
};

// Compact text with sorted keys: equal values give equal bytes. Strings must be UTF-8.
std::string DumpCanonicalJson(const Json& value);

}  // namespace quern

#endif  // QUERN_CORE_BASE_JSON_H_
