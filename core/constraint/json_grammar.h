#ifndef QUERN_CORE_CONSTRAINT_JSON_GRAMMAR_H_
#define QUERN_CORE_CONSTRAINT_JSON_GRAMMAR_H_

#include <absl/types/span.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/constraint/grammar.h"

namespace quern {

// 18 digits: fit 64 bits.
inline constexpr int64_t kMaxJsonInteger = 999'999'999'999'999'999;

struct JsonMember {
  std::string name;
  bool required = false;
  std::function<int(int from)> add_value;
};

// The parts of JSON's grammar (RFC 8259), appended to another as Grammar's builders are.
class JsonGrammar {
 public:
  explicit JsonGrammar(Grammar& grammar) : grammar_(grammar) {}

  // The rule of any value.
  int AnyValue();
  int AddBoolean(int from);
  // From `min` to `max`, within kMaxJsonInteger on both sides of 0.
  int AddInteger(int from, int64_t min, int64_t max);
  // At most 16 digits on each side of the point and 2 in the exponent: finite as a double.
  int AddNumber(int from, bool negative);
  // Of that many characters (code points).
  int AddString(int from, int64_t min_length, std::optional<int64_t> max_length);
  // Item i is of rules[i], those behind the last one of the last.
  int AddArray(int from, int64_t min_items, std::optional<int64_t> max_items,
               absl::Span<const int> rules);
  // `members` in their order, then any number of others of the rule `other`; their names are no
  // member's.
  int AddObject(int from, absl::Span<const JsonMember> members, std::optional<int> other);

 private:
  int AddSpace(int from);
  int AddDigits(int from, int least, int most);
  // From `low` to `high`, of equally many digits, up to the state `to`.
  void AddDigitRange(int from, absl::string_view low, absl::string_view high, int to);
  void AddNaturals(int from, int64_t min, int64_t max, int to);
  int AddOtherName(int from, absl::Span<const JsonMember> members);

  Grammar& grammar_;
  std::optional<int> any_value_;
};

}  // namespace quern

#endif  // QUERN_CORE_CONSTRAINT_JSON_GRAMMAR_H_
