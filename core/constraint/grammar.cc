#include "core/constraint/grammar.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "core/base/status_macros.h"

namespace quern {
namespace {

constexpr char32_t kFirstSurrogate = 0xd800;
constexpr char32_t kLastSurrogate = 0xdfff;

int Utf8Length(char32_t c) { return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4; }

std::array<uint8_t, 4> Utf8Bytes(char32_t c, int length) {
  constexpr uint8_t kLead[] = {0, 0x00, 0xc0, 0xe0, 0xf0};
  std::array<uint8_t, 4> bytes{};
  for (int i = length - 1; i > 0; --i, c >>= 6) bytes[i] = static_cast<uint8_t>(0x80 | (c & 0x3f));
  bytes[0] = static_cast<uint8_t>(kLead[length] | c);
  return bytes;
}

}  // namespace

Grammar::Grammar() { NewRule(); }

int Grammar::NewRule() {
  const int start = NewState();
  const int end = NewState();
  states_[end].ends_rule = true;
  rules_.push_back({start, end});
  return static_cast<int>(rules_.size()) - 1;
}

int Grammar::NewState() {
  if (num_states() >= kMaxGrammarStates) {
    Fail(absl::InvalidArgumentError(
        absl::StrCat("the constraint takes more than ", kMaxGrammarStates,
                     " states; use fewer or shorter alternatives and smaller counts")));
    return 0;
  }
  states_.emplace_back();
  return num_states() - 1;
}

void Grammar::Locate(absl::string_view where) {
  status_ = absl::Status(status_.code(), absl::StrCat(where, status_.message()));
}

void Grammar::AddEmpty(int from, int to) {
  if (ok()) states_[from].empty.push_back(to);
}

void Grammar::AddBytes(int from, uint8_t first, uint8_t last, int to) {
  if (ok()) states_[from].bytes.push_back({first, last, to});
}

int Grammar::AddLiteral(int from, absl::string_view text) {
  for (const char c : text) {
    const int next = NewState();
    AddBytes(from, static_cast<uint8_t>(c), static_cast<uint8_t>(c), next);
    from = next;
  }
  return from;
}

int Grammar::AddLiterals(int from, absl::Span<const std::string> texts) {
  // A tree of their prefixes: what begins alike is one path.
  std::map<std::pair<int, char>, int> children;
  const int root = NewState();
  const int to = NewState();
  AddEmpty(from, root);
  for (const std::string& text : texts) {
    int at = root;
    for (const char c : text) {
      if (!ok()) return to;
      const auto [it, is_new] = children.try_emplace({at, c}, 0);
      if (is_new) {
        it->second = NewState();
        AddBytes(at, static_cast<uint8_t>(c), static_cast<uint8_t>(c), it->second);
      }
      at = it->second;
    }
    AddEmpty(at, to);
  }
  return to;
}

int Grammar::Continuations(int count, int to, std::array<int, 4>& tails) {
  if (count == 0) return to;
  if (tails[count] < 0) {
    const int next = Continuations(count - 1, to, tails);
    tails[count] = NewState();
    AddBytes(tails[count], 0x80, 0xbf, next);
  }
  return tails[count];
}

// Splits the range until its bytes vary independently of each other (the way of RE2's UTF-8
// ranges), so that each piece is one chain of byte ranges.
void Grammar::AddUtf8(int from, char32_t first, char32_t last, int to, std::array<int, 4>& tails) {
  if (first > last || !ok()) return;
  constexpr char32_t kLastOfLength[] = {0x7f, 0x7ff, 0xffff};
  for (const char32_t end : kLastOfLength) {
    if (first <= end && end < last) {
      AddUtf8(from, first, end, to, tails);
      return AddUtf8(from, end + 1, last, to, tails);
    }
  }
  const int length = Utf8Length(first);
  for (int i = 1; i < length; ++i) {
    const char32_t low = (char32_t{1} << (6 * i)) - 1;
    if ((first & ~low) == (last & ~low)) continue;
    if ((first & low) != 0) {
      AddUtf8(from, first, first | low, to, tails);
      return AddUtf8(from, (first | low) + 1, last, to, tails);
    }
    if ((last & low) != low) {
      AddUtf8(from, first, (last & ~low) - 1, to, tails);
      return AddUtf8(from, last & ~low, last, to, tails);
    }
  }
  const std::array<uint8_t, 4> a = Utf8Bytes(first, length);
  const std::array<uint8_t, 4> b = Utf8Bytes(last, length);
  for (int i = 0; i < length; ++i) {
    const bool rest_is_any = [&] {
      for (int j = i + 1; j < length; ++j) {
        if (a[j] != 0x80 || b[j] != 0xbf) return false;
      }
      return true;
    }();
    if (rest_is_any) {
      return AddBytes(from, a[i], b[i], Continuations(length - 1 - i, to, tails));
    }
    const int next = NewState();
    AddBytes(from, a[i], b[i], next);
    from = next;
  }
}

int Grammar::AddCharacter(int from, absl::Span<const CodePointRange> ranges) {
  const int to = NewState();
  std::array<int, 4> tails = {-1, -1, -1, -1};
  for (const CodePointRange& range : ranges) {
    AddUtf8(from, range.first, std::min<char32_t>(range.last, kFirstSurrogate - 1), to, tails);
    AddUtf8(from, std::max<char32_t>(range.first, kLastSurrogate + 1), range.last, to, tails);
  }
  return to;
}

int Grammar::AddCall(int from, int rule) {
  const int call = NewState();
  const int to = NewState();
  AddEmpty(from, call);
  if (ok()) {
    states_[call].call = rule;
    states_[call].after_call = to;
  }
  return to;
}

absl::Status Grammar::Finish() {
  RETURN_IF_ERROR(status_);
  RETURN_IF_ERROR(CheckLeftRecursion());
  ComputeNeeds();
  if (states_[rules_[0].start].need > kMaxGrammarDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat("no text satisfies the constraint (with at most ", kMaxGrammarDepth,
                     " values inside each other)"));
  }
  ComputeClasses();
  bytes_ = static_cast<int64_t>(sizeof(*this) + states_.size() * sizeof(State));
  for (const State& state : states_) {
    bytes_ += static_cast<int64_t>(state.bytes.capacity() * sizeof(ByteEdge) +
                                   state.empty.capacity() * sizeof(int32_t));
  }
  return absl::OkStatus();
}

// The rules that each one calls before its first byte must not lead back to it. (A rule that takes
// no byte is none of ours: each is a JSON value.)
absl::Status Grammar::CheckLeftRecursion() const {
  std::vector<std::vector<int>> calls(rules_.size());
  std::vector<int> seen_by(states_.size(), -1);
  std::vector<int> work;
  for (int rule = 0; rule < static_cast<int>(rules_.size()); ++rule) {
    work = {rules_[rule].start};
    while (!work.empty()) {
      const int id = work.back();
      work.pop_back();
      if (std::exchange(seen_by[id], rule) == rule) continue;
      const State& state = states_[id];
      work.insert(work.end(), state.empty.begin(), state.empty.end());
      if (state.call >= 0) calls[rule].push_back(state.call);
    }
  }
  // Rules whose calls are all done are done; what is never done is in a circle or leads into one.
  std::vector<std::vector<int>> callers(rules_.size());
  std::vector<size_t> waits_for(rules_.size());
  for (size_t rule = 0; rule < rules_.size(); ++rule) {
    waits_for[rule] = calls[rule].size();
    for (const int callee : calls[rule]) callers[callee].push_back(static_cast<int>(rule));
    if (calls[rule].empty()) work.push_back(static_cast<int>(rule));
  }
  size_t done = 0;
  while (!work.empty()) {
    const int rule = work.back();
    work.pop_back();
    ++done;
    for (const int caller : callers[rule]) {
      if (--waits_for[caller] == 0) work.push_back(caller);
    }
  }
  if (done == rules_.size()) return absl::OkStatus();
  return absl::InvalidArgumentError("a $ref leads to itself with no value in between");
}

// By need, least first, backwards from the ends of rules; each state once.
void Grammar::ComputeNeeds() {
  std::vector<std::vector<int32_t>> before(states_.size());
  std::vector<int> calls;
  for (int id = 0; id < num_states(); ++id) {
    for (const ByteEdge& edge : states_[id].bytes) before[edge.next].push_back(id);
    for (const int32_t next : states_[id].empty) before[next].push_back(id);
    if (states_[id].call >= 0) {
      before[states_[id].after_call].push_back(id);
      calls.push_back(id);
    }
  }
  std::vector<int> work;
  for (int need = 0; need <= kMaxGrammarDepth; ++need) {
    const auto can_call = [&](const State& state) {
      return states_[rules_[state.call].start].need < need &&
             states_[state.after_call].need <= need;
    };
    const auto reach = [&](int id) {
      State& state = states_[id];
      if (state.need != kNever || (state.call >= 0 && !can_call(state))) return;
      state.need = need;
      work.push_back(id);
    };
    if (need == 0) {
      for (const Rule& rule : rules_) reach(rule.end);
    }
    for (const int id : calls) reach(id);
    while (!work.empty()) {
      const int id = work.back();
      work.pop_back();
      for (const int32_t previous : before[id]) reach(previous);
    }
  }
}

void Grammar::ComputeClasses() {
  std::array<bool, 257> begins{};
  begins[0] = true;
  for (const State& state : states_) {
    for (const ByteEdge& edge : state.bytes) {
      begins[edge.first] = true;
      begins[edge.last + 1] = true;
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (begins[byte]) class_bytes_.push_back(static_cast<uint8_t>(byte));
    classes_[byte] = static_cast<uint8_t>(class_bytes_.size() - 1);
  }
  num_classes_ = static_cast<int>(class_bytes_.size());
}

}  // namespace quern
