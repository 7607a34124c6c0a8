#include "core/constraint/regex_grammar.h"

#include <absl/strings/ascii.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/base/utf8.h"

namespace quern {
namespace {

constexpr int kMaxGroups = 64;      // inside each other
constexpr int kMaxRepeats = 10000;  // a count; how much it may take is the grammar's limit
constexpr int kUnlimited = -1;
constexpr char32_t kLastCodePoint = 0x10ffff;

using Ranges = std::vector<CodePointRange>;

// Sorted, joined where they meet.
Ranges Normalized(Ranges ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  Ranges out;
  for (const CodePointRange& range : ranges) {
    if (!out.empty() && range.first <= out.back().last + 1) {
      out.back().last = std::max(out.back().last, range.last);
    } else {
      out.push_back(range);
    }
  }
  return out;
}

Ranges Negated(const Ranges& ranges) {
  Ranges out;
  char32_t next = 0;
  for (const CodePointRange& range : Normalized(ranges)) {
    if (range.first > next) out.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastCodePoint) out.push_back({next, kLastCodePoint});
  return out;
}

// Ranges of \d, \w and \s and their negations; nothing for another letter.
std::optional<Ranges> ClassOfLetter(char letter) {
  Ranges ranges;
  switch (absl::ascii_tolower(letter)) {
    case 'd':
      ranges = {{'0', '9'}};
      break;
    case 'w':
      ranges = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
      break;
    case 's':
      ranges = {{'\t', '\r'}, {' ', ' '}};
      break;
    default:
      return std::nullopt;
  }
  return absl::ascii_isupper(letter) ? Negated(ranges) : ranges;
}

struct Node {
  enum class Kind { kCharacter, kSequence, kAlternatives, kRepeat };
  Kind kind = Kind::kSequence;
  Ranges ranges;  // kCharacter
  std::vector<std::unique_ptr<Node>> parts;
  int min = 0;  // kRepeat
  int max = kUnlimited;
};

class Parser {
 public:
  Parser(absl::string_view pattern, Grammar& grammar) : pattern_(pattern), grammar_(grammar) {}

  bool anchored_begin() const { return anchored_begin_; }
  bool anchored_end() const { return anchored_end_; }

  // Null after a fault.
  std::unique_ptr<Node> Parse() {
    if (const size_t invalid = FindInvalidUtf8(pattern_); invalid != absl::string_view::npos) {
      at_ = invalid;
      Fail("the pattern is not UTF-8");
      return nullptr;
    }
    anchored_begin_ = Skip('^');
    std::unique_ptr<Node> node = Alternatives();
    if (grammar_.ok() && at_ < pattern_.size()) Fail("\")\" without a \"(\"");
    if (grammar_.ok() && (anchored_begin_ || anchored_end_) &&
        node->kind == Node::Kind::kAlternatives) {
      // There ^ and $ belong to the first and the last alternative alone.
      Fail("put the alternatives beside ^ or $ into a group");
    }
    return grammar_.ok() ? std::move(node) : nullptr;
  }

 private:
  bool AtEnd() const { return at_ >= pattern_.size() || !grammar_.ok(); }
  char Peek() const { return pattern_[at_]; }
  bool Skip(char c) {
    if (AtEnd() || Peek() != c) return false;
    ++at_;
    return true;
  }
  bool SkipText(absl::string_view text) {
    if (AtEnd() || pattern_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }
  void Fail(absl::string_view message) {
    grammar_.Fail(absl::InvalidArgumentError(
        absl::StrCat("regular expression, offset ", at_, ": ", message)));
  }

  std::unique_ptr<Node> Alternatives() {
    auto node = std::make_unique<Node>();
    node->kind = Node::Kind::kAlternatives;
    do {
      node->parts.push_back(Sequence());
    } while (Skip('|'));
    return node->parts.size() == 1 ? std::move(node->parts.front()) : std::move(node);
  }

  std::unique_ptr<Node> Sequence() {
    auto node = std::make_unique<Node>();
    while (!AtEnd() && Peek() != '|' && Peek() != ')') {
      if (Peek() == '$') {
        if (at_ + 1 < pattern_.size()) {
          Fail("$ is supported only at the end");
        } else {
          ++at_;
          anchored_end_ = true;
        }
        break;
      }
      node->parts.push_back(Repeated(Atom()));
    }
    return node;
  }

  std::unique_ptr<Node> Repeated(std::unique_ptr<Node> atom) {
    int min = 0, max = kUnlimited;
    if (Skip('*')) {
    } else if (Skip('+')) {
      min = 1;
    } else if (Skip('?')) {
      max = 1;
    } else if (!AtEnd() && Peek() == '{') {
      ++at_;
      Counts(min, max);
    } else {
      return atom;
    }
    Skip('?');  // lazy: the same texts
    if (!AtEnd() && (Peek() == '*' || Peek() == '+' || Peek() == '?' || Peek() == '{')) {
      Fail("a repetition of a repetition; put the inner one into a group");
    }
    auto node = std::make_unique<Node>();
    node->kind = Node::Kind::kRepeat;
    node->min = min;
    node->max = max;
    node->parts.push_back(std::move(atom));
    return node;
  }

  std::optional<int> Number() {
    std::optional<int> number;
    for (; !AtEnd() && absl::ascii_isdigit(Peek()); ++at_) {
      number = std::min(number.value_or(0) * 10 + (Peek() - '0'), kMaxRepeats + 1);
    }
    return number;
  }

  void Counts(int& min, int& max) {
    const std::optional<int> first = Number();
    std::optional<int> last = first;
    if (Skip(',')) {
      last = Number();
      max = last.value_or(kUnlimited);
    } else {
      max = first.value_or(0);
    }
    min = first.value_or(0);
    if (!Skip('}') || !first.has_value()) {
      Fail("wanted {n}, {n,} or {n,m}; a brace itself is \\{");
    } else if (min > kMaxRepeats || max > kMaxRepeats) {
      Fail(absl::StrCat("a repetition of more than ", kMaxRepeats, " times"));
    } else if (max != kUnlimited && max < min) {
      Fail("a repetition with its greater number first");
    }
  }

  std::unique_ptr<Node> Character(Ranges ranges) {
    auto node = std::make_unique<Node>();
    node->kind = Node::Kind::kCharacter;
    node->ranges = Normalized(std::move(ranges));
    return node;
  }

  std::unique_ptr<Node> Atom() {
    switch (Peek()) {
      case '(':
        ++at_;
        return Group();
      case '[':
        ++at_;
        return Character(Class());
      case '.':
        ++at_;
        return Character(Negated({{'\n', '\n'}}));
      case '\\':
        ++at_;
        return Character(Escape());
      case '*':
      case '+':
      case '?':
      case '{':
        Fail("a repetition of nothing");
        return std::make_unique<Node>();
      case '^':
        Fail("^ is supported only at the beginning");
        return std::make_unique<Node>();
      default: {
        const char32_t c = CodePoint();
        return Character({{c, c}});
      }
    }
  }

  char32_t CodePoint() {
    const Utf8Step step = NextUtf8(pattern_.substr(at_));
    at_ += step.num_bytes;
    return step.code_point;
  }

  std::unique_ptr<Node> Group() {
    if (++depth_ > kMaxGroups) {
      Fail(absl::StrCat("more than ", kMaxGroups, " groups inside each other"));
    } else if (SkipText("?:")) {
    } else if (SkipText("?P<") || (!AtEnd() && pattern_.substr(at_, 3) != "?<=" &&
                                   pattern_.substr(at_, 3) != "?<!" && SkipText("?<"))) {
      while (!AtEnd() && Peek() != '>') ++at_;
      Skip('>');
    } else if (!AtEnd() && Peek() == '?') {
      Fail("look-around, flags and other (?...) are not supported");
    }
    std::unique_ptr<Node> node = Alternatives();
    if (grammar_.ok() && !Skip(')')) Fail("a \"(\" without its \")\"");
    --depth_;
    return node;
  }

  // After the backslash. One character is one range of one.
  Ranges Escape() {
    if (AtEnd()) {
      Fail("nothing is behind the \\");
      return {};
    }
    const char c = Peek();
    if (!absl::ascii_isalnum(c)) {
      const char32_t literal = CodePoint();
      return {{literal, literal}};
    }
    ++at_;
    if (const std::optional<Ranges> ranges = ClassOfLetter(c)) return *ranges;
    const auto one = [](char32_t code) { return Ranges{{code, code}}; };
    switch (c) {
      case 't':
        return one('\t');
      case 'n':
        return one('\n');
      case 'v':
        return one('\v');
      case 'f':
        return one('\f');
      case 'r':
        return one('\r');
      case '0':
        if (AtEnd() || !absl::ascii_isdigit(Peek())) return one(0);
        break;
      case 'x':
        return one(Hex(2));
      case 'u':
        return one(Hex(4));
      default:
        break;
    }
    --at_;
    Fail(absl::StrCat("\\", absl::string_view(&c, 1), " is not supported"));
    return {};
  }

  char32_t Hex(int digits) {
    char32_t value = 0;
    for (int i = 0; i < digits; ++i, ++at_) {
      if (AtEnd() || !absl::ascii_isxdigit(Peek())) {
        Fail(absl::StrCat("wanted ", digits, " hexadecimal digits"));
        return 0;
      }
      const char c = absl::ascii_tolower(Peek());
      value = value * 16 + static_cast<char32_t>(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    if (value >= 0xd800 && value <= 0xdfff) Fail("a surrogate is no character");
    return value;
  }

  // After the bracket.
  Ranges Class() {
    const bool negated = Skip('^');
    Ranges ranges;
    bool is_first = true;
    while (!AtEnd() && (Peek() != ']' || is_first)) {
      if (is_first && Peek() == ']') break;  // ECMA-262's empty class is a mistake
      is_first = false;
      if (SkipText("[:")) {
        Fail("[:names:] are not supported");
        break;
      }
      const Ranges low = ClassItem();
      const bool is_range =
          !AtEnd() && Peek() == '-' && at_ + 1 < pattern_.size() && pattern_[at_ + 1] != ']';
      if (!is_range) {
        ranges.insert(ranges.end(), low.begin(), low.end());
        continue;
      }
      ++at_;
      const Ranges high = ClassItem();
      if (!grammar_.ok()) break;
      const auto is_one = [](const Ranges& r) { return r.size() == 1 && r[0].first == r[0].last; };
      if (!is_one(low) || !is_one(high) || low[0].first > high[0].first) {
        Fail("a range of characters wants a lower and a higher one");
        break;
      }
      ranges.push_back({low[0].first, high[0].last});
    }
    if (grammar_.ok() && ranges.empty()) Fail("an empty class");
    if (grammar_.ok() && !Skip(']')) Fail("a \"[\" without its \"]\"");
    return negated ? Negated(ranges) : ranges;
  }

  Ranges ClassItem() {
    if (Skip('\\')) {
      if (Skip('b')) return {{'\b', '\b'}};
      return Escape();
    }
    const char32_t c = CodePoint();
    return {{c, c}};
  }

  const absl::string_view pattern_;
  Grammar& grammar_;
  size_t at_ = 0;
  int depth_ = 0;
  bool anchored_begin_ = false;
  bool anchored_end_ = false;
};

// JSON's short escapes of control characters, and of what a string must not hold bare.
std::string JsonEscape(char32_t c) {
  switch (c) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      return absl::StrFormat("\\u%04x", static_cast<uint32_t>(c));
  }
}

// What stands in a JSON string as it is.
const CodePointRange kJsonRaw[] = {
    {0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, kLastCodePoint}};

int AddJsonRanges(Grammar& grammar, int from, const Ranges& ranges) {
  Ranges raw;
  std::vector<std::string> escaped;
  for (const CodePointRange& range : ranges) {
    for (const CodePointRange& part : kJsonRaw) {
      const CodePointRange both = {std::max(range.first, part.first),
                                   std::min(range.last, part.last)};
      if (both.first <= both.last) raw.push_back(both);
    }
    for (const char32_t c : {U'"', U'\\'}) {
      if (range.first <= c && c <= range.last) escaped.push_back(JsonEscape(c));
    }
    for (char32_t c = range.first; c <= std::min<char32_t>(range.last, 0x1f); ++c) {
      escaped.push_back(JsonEscape(c));
    }
  }
  const int to = grammar.AddCharacter(from, raw);
  if (!escaped.empty()) grammar.AddEmpty(grammar.AddLiterals(from, escaped), to);
  return to;
}

int AddNode(Grammar& grammar, int from, const Node& node, RegexUse use) {
  if (!grammar.ok()) return from;
  switch (node.kind) {
    case Node::Kind::kCharacter:
      return use == RegexUse::kJsonString ? AddJsonRanges(grammar, from, node.ranges)
                                          : grammar.AddCharacter(from, node.ranges);
    case Node::Kind::kSequence:
      for (const auto& part : node.parts) from = AddNode(grammar, from, *part, use);
      return from;
    case Node::Kind::kAlternatives: {
      const int to = grammar.NewState();
      for (const auto& part : node.parts) {
        const int begin = grammar.NewState();
        grammar.AddEmpty(from, begin);
        grammar.AddEmpty(AddNode(grammar, begin, *part, use), to);
      }
      return to;
    }
    case Node::Kind::kRepeat:
      break;
  }
  const Node& part = *node.parts.front();
  // A state each time, also around an empty part: counts inside counts meet the grammar's limit.
  const auto once = [&](int begin) {
    const int inner = grammar.NewState();
    grammar.AddEmpty(begin, inner);
    return AddNode(grammar, inner, part, use);
  };
  for (int i = 0; i < node.min && grammar.ok(); ++i) from = once(from);
  if (node.max == kUnlimited) {
    const int loop = grammar.NewState();
    grammar.AddEmpty(from, loop);
    grammar.AddEmpty(once(loop), loop);
    return loop;
  }
  const int to = grammar.NewState();
  grammar.AddEmpty(from, to);
  for (int i = node.min; i < node.max && grammar.ok(); ++i) {
    from = once(from);
    grammar.AddEmpty(from, to);
  }
  return to;
}

}  // namespace

int AddRegex(Grammar& grammar, int from, absl::string_view pattern, RegexUse use) {
  Parser parser(pattern, grammar);
  const std::unique_ptr<Node> node = parser.Parse();
  if (node == nullptr) return from;
  const bool searches = use == RegexUse::kJsonString;
  const auto any = [&](int begin) {
    const int loop = grammar.NewState();
    grammar.AddEmpty(begin, loop);
    grammar.AddEmpty(AddJsonCharacter(grammar, loop), loop);
    return loop;
  };
  if (searches && !parser.anchored_begin()) from = any(from);
  from = AddNode(grammar, from, *node, use);
  if (searches && !parser.anchored_end()) from = any(from);
  return from;
}

int AddJsonCharacter(Grammar& grammar, int from) {
  const int to = grammar.AddCharacter(from, kJsonRaw);
  const int escape = grammar.NewState();
  grammar.AddBytes(from, '\\', '\\', escape);
  for (const char c : absl::string_view("\"\\/bfnrt")) {
    grammar.AddBytes(escape, static_cast<uint8_t>(c), static_cast<uint8_t>(c), to);
  }
  // \uHHHH, but no surrogate: half of a pair is no character.
  const auto hex = [&](int state, int next) {
    grammar.AddBytes(state, '0', '9', next);
    grammar.AddBytes(state, 'A', 'F', next);
    grammar.AddBytes(state, 'a', 'f', next);
  };
  int digits[5];
  for (int& digit : digits) digit = grammar.NewState();
  const int after_d = digits[4];
  grammar.AddBytes(escape, 'u', 'u', digits[3]);
  grammar.AddBytes(digits[3], '0', '9', digits[2]);
  for (const char base : {'A', 'a'}) {
    const auto letter = [&](char c) { return static_cast<uint8_t>(base + (c - 'A')); };
    grammar.AddBytes(digits[3], letter('A'), letter('C'), digits[2]);
    grammar.AddBytes(digits[3], letter('D'), letter('D'), after_d);
    grammar.AddBytes(digits[3], letter('E'), letter('F'), digits[2]);
  }
  grammar.AddBytes(after_d, '0', '7', digits[1]);
  hex(digits[2], digits[1]);
  hex(digits[1], digits[0]);
  hex(digits[0], to);
  return to;
}

}  // namespace quern
