#include "core/constraint/json_grammar.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/constraint/regex_grammar.h"

namespace quern {
namespace {

constexpr int kMaxIndent = 16;

std::string JsonText(const std::string& text) { return nlohmann::json(text).dump(); }

}  // namespace

// Nothing, a space, or a new line with its indent. Models that may go on with white space do.
int JsonGrammar::AddSpace(int from) {
  const int to = grammar_.NewState();
  grammar_.AddEmpty(from, to);
  grammar_.AddBytes(from, ' ', ' ', to);
  int at = grammar_.NewState();
  grammar_.AddBytes(from, '\n', '\n', at);
  for (int i = 0; i < kMaxIndent; ++i) {
    const int next = grammar_.NewState();
    grammar_.AddEmpty(at, to);
    grammar_.AddBytes(at, ' ', ' ', next);
    at = next;
  }
  grammar_.AddEmpty(at, to);
  return to;
}

int JsonGrammar::AddBoolean(int from) {
  return grammar_.AddLiterals(from, std::vector<std::string>{"true", "false"});
}

int JsonGrammar::AddDigits(int from, int least, int most) {
  const int to = grammar_.NewState();
  for (int i = 0; i < most; ++i) {
    if (i >= least) grammar_.AddEmpty(from, to);
    const int next = grammar_.NewState();
    grammar_.AddBytes(from, '0', '9', next);
    from = next;
  }
  grammar_.AddEmpty(from, to);
  return to;
}

void JsonGrammar::AddDigitRange(int from, absl::string_view low, absl::string_view high, int to) {
  if (low.empty()) return grammar_.AddEmpty(from, to);
  const auto length = static_cast<int>(low.size());
  if (low.find_first_not_of('0') == low.npos && high.find_first_not_of('9') == high.npos) {
    return grammar_.AddEmpty(AddDigits(from, length, length), to);
  }
  const auto digit = [&](char first, char last, absl::string_view rest_low,
                         absl::string_view rest_high) {
    if (first > last) return;
    const int next = grammar_.NewState();
    grammar_.AddBytes(from, static_cast<uint8_t>(first), static_cast<uint8_t>(last), next);
    AddDigitRange(next, rest_low, rest_high, to);
  };
  const std::string zeros(low.size() - 1, '0'), nines(low.size() - 1, '9');
  if (low[0] == high[0]) return digit(low[0], high[0], low.substr(1), high.substr(1));
  digit(low[0], low[0], low.substr(1), nines);
  digit(static_cast<char>(low[0] + 1), static_cast<char>(high[0] - 1), zeros, nines);
  digit(high[0], high[0], zeros, high.substr(1));
}

void JsonGrammar::AddNaturals(int from, int64_t min, int64_t max, int to) {
  int64_t first = 0, last = 9;  // of that many digits
  while (first <= max) {
    const int64_t low = std::max(min, first), high = std::min(max, last);
    if (low <= high) AddDigitRange(from, absl::StrCat(low), absl::StrCat(high), to);
    if (last >= kMaxJsonInteger) break;
    first = last + 1;
    last = last * 10 + 9;
  }
}

int JsonGrammar::AddInteger(int from, int64_t min, int64_t max) {
  const int to = grammar_.NewState();
  const int start = grammar_.NewState();
  grammar_.AddEmpty(from, start);
  if (max >= 0) AddNaturals(start, std::max<int64_t>(min, 0), max, to);
  if (min < 0) {
    const int negative = grammar_.NewState();
    grammar_.AddBytes(start, '-', '-', negative);
    AddNaturals(negative, std::max<int64_t>(-max, 1), -min, to);
  }
  return to;
}

int JsonGrammar::AddNumber(int from, bool negative) {
  const int sign = grammar_.NewState();
  grammar_.AddEmpty(from, sign);
  const int whole = grammar_.NewState();
  grammar_.AddEmpty(sign, whole);
  if (negative) grammar_.AddBytes(sign, '-', '-', whole);
  const int after_whole = grammar_.NewState();
  grammar_.AddBytes(whole, '0', '0', after_whole);
  const int first = grammar_.NewState();
  grammar_.AddBytes(whole, '1', '9', first);
  grammar_.AddEmpty(AddDigits(first, 0, 15), after_whole);
  const int after_fraction = grammar_.NewState();
  grammar_.AddEmpty(after_whole, after_fraction);
  grammar_.AddEmpty(AddDigits(grammar_.AddLiteral(after_whole, "."), 1, 16), after_fraction);
  const int to = grammar_.NewState();
  grammar_.AddEmpty(after_fraction, to);
  const int exponent = grammar_.NewState();
  grammar_.AddBytes(after_fraction, 'e', 'e', exponent);
  grammar_.AddBytes(after_fraction, 'E', 'E', exponent);
  const int after_sign = grammar_.NewState();
  grammar_.AddEmpty(exponent, after_sign);
  grammar_.AddBytes(exponent, '+', '+', after_sign);
  grammar_.AddBytes(exponent, '-', '-', after_sign);
  grammar_.AddEmpty(AddDigits(after_sign, 1, 2), to);
  return to;
}

int JsonGrammar::AddString(int from, int64_t min_length, std::optional<int64_t> max_length) {
  from = grammar_.AddLiteral(from, "\"");
  for (int64_t i = 0; i < min_length && grammar_.ok(); ++i) from = AddJsonCharacter(grammar_, from);
  if (!max_length.has_value()) {
    const int loop = grammar_.NewState();
    grammar_.AddEmpty(from, loop);
    grammar_.AddEmpty(AddJsonCharacter(grammar_, loop), loop);
    return grammar_.AddLiteral(loop, "\"");
  }
  const int end = grammar_.NewState();
  grammar_.AddEmpty(from, end);
  for (int64_t i = min_length; i < *max_length && grammar_.ok(); ++i) {
    from = AddJsonCharacter(grammar_, from);
    grammar_.AddEmpty(from, end);
  }
  return grammar_.AddLiteral(end, "\"");
}

int JsonGrammar::AddArray(int from, int64_t min_items, std::optional<int64_t> max_items,
                          absl::Span<const int> rules) {
  from = grammar_.AddLiteral(from, "[");
  const int end = grammar_.NewState();
  const auto add_item = [&](int begin, int64_t i) {
    if (i > 0) begin = grammar_.AddLiteral(begin, ",");
    return grammar_.AddCall(AddSpace(begin),
                            rules[std::min<size_t>(static_cast<size_t>(i), rules.size() - 1)]);
  };
  // Those that are counted, one by one; without a limit, the last rule's go round.
  const int64_t counted =
      max_items.value_or(std::max(min_items, static_cast<int64_t>(rules.size())));
  for (int64_t i = 0; i < counted && grammar_.ok(); ++i) {
    if (i >= min_items) grammar_.AddEmpty(from, end);
    from = add_item(from, i);
  }
  grammar_.AddEmpty(from, end);
  if (!max_items.has_value()) {
    const int loop = grammar_.NewState();
    grammar_.AddEmpty(from, loop);
    grammar_.AddEmpty(loop, end);
    grammar_.AddEmpty(add_item(loop, counted), loop);
  }
  return grammar_.AddLiteral(AddSpace(end), "]");
}

// A name in quotes that is no member's. Of ASCII without escapes, so that one name has one text.
int JsonGrammar::AddOtherName(int from, absl::Span<const JsonMember> members) {
  if (members.empty()) return AddString(from, 0, std::nullopt);
  std::map<std::string, int> prefixes;  // of members, as JSON has them, and their states
  std::set<std::string> whole;
  for (const JsonMember& member : members) {
    const std::string text = JsonText(member.name);
    const std::string inner = text.substr(1, text.size() - 2);
    for (size_t length = 0; length <= inner.size() && grammar_.ok(); ++length) {
      const auto [it, is_new] = prefixes.try_emplace(inner.substr(0, length), 0);
      if (is_new) it->second = grammar_.NewState();
    }
    whole.insert(inner);
  }
  const int to = grammar_.NewState();
  const int other = grammar_.NewState();  // no member begins with this
  const auto is_plain = [](int c) { return c >= 0x20 && c < 0x7f && c != '"' && c != '\\'; };
  for (const auto& [prefix, state] : prefixes) {
    if (!whole.contains(prefix)) grammar_.AddBytes(state, '"', '"', to);
    for (int c = 0x20; c < 0x7f; ++c) {
      if (!is_plain(c)) continue;
      const auto longer = prefixes.find(absl::StrCat(prefix, std::string(1, static_cast<char>(c))));
      const auto byte = static_cast<uint8_t>(c);
      grammar_.AddBytes(state, byte, byte, longer == prefixes.end() ? other : longer->second);
    }
  }
  for (int c = 0x20; c < 0x7f; ++c) {
    const auto byte = static_cast<uint8_t>(c);
    if (is_plain(c)) grammar_.AddBytes(other, byte, byte, other);
  }
  grammar_.AddBytes(other, '"', '"', to);
  grammar_.AddEmpty(grammar_.AddLiteral(from, "\""), prefixes.begin()->second);
  return to;
}

int JsonGrammar::AddObject(int from, absl::Span<const JsonMember> members,
                           std::optional<int> other) {
  // Before any member, and behind one; what cannot be is a state that nothing leads to.
  int empty = grammar_.AddLiteral(from, "{");
  int filled = grammar_.NewState();
  const auto begin_member = [&] {
    const int begin = grammar_.NewState();
    grammar_.AddEmpty(empty, begin);
    grammar_.AddBytes(filled, ',', ',', begin);
    return AddSpace(begin);
  };
  for (const JsonMember& member : members) {
    if (!grammar_.ok()) return from;
    const int value =
        AddSpace(grammar_.AddLiteral(begin_member(), absl::StrCat(JsonText(member.name), ":")));
    const int after = grammar_.NewState();
    grammar_.AddEmpty(member.add_value(value), after);
    if (member.required) {
      empty = grammar_.NewState();
    } else {
      grammar_.AddEmpty(filled, after);
    }
    filled = after;
  }
  if (other.has_value()) {
    const int loop = grammar_.NewState();
    grammar_.AddEmpty(filled, loop);
    filled = loop;
    const int name = AddOtherName(begin_member(), members);
    const int value = AddSpace(grammar_.AddLiteral(name, ":"));
    grammar_.AddEmpty(grammar_.AddCall(value, *other), loop);
  }
  const int end = grammar_.NewState();
  grammar_.AddEmpty(empty, end);
  grammar_.AddEmpty(filled, end);
  return grammar_.AddLiteral(AddSpace(end), "}");
}

int JsonGrammar::AnyValue() {
  if (any_value_.has_value()) return *any_value_;
  const int rule = grammar_.NewRule();
  any_value_ = rule;
  const int start = grammar_.StartOf(rule);
  const auto alternative = [&] {
    const int begin = grammar_.NewState();
    grammar_.AddEmpty(start, begin);
    return begin;
  };
  grammar_.EndRule(rule, AddBoolean(alternative()));
  grammar_.EndRule(rule, grammar_.AddLiteral(alternative(), "null"));
  grammar_.EndRule(rule, AddNumber(alternative(), /*negative=*/true));
  grammar_.EndRule(rule, AddString(alternative(), 0, std::nullopt));
  grammar_.EndRule(rule, AddArray(alternative(), 0, std::nullopt, {rule}));
  grammar_.EndRule(rule, AddObject(alternative(), {}, rule));
  return rule;
}

}  // namespace quern
