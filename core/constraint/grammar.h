#ifndef QUERN_CORE_CONSTRAINT_GRAMMAR_H_
#define QUERN_CORE_CONSTRAINT_GRAMMAR_H_

#include <absl/status/status.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace quern {

// Of one grammar. A string without bounds takes 17 states, one of at most n characters 14 n.
inline constexpr int kMaxGrammarStates = 1 << 16;
// Rules that may be open at a time: nested arrays, and objects of any kind.
inline constexpr int kMaxGrammarDepth = 64;

struct CodePointRange {
  char32_t first, last;  // both within
};

// A language of UTF-8 texts as a recursive transition network on bytes (Woods 1970): states of
// rules, joined by ranges of bytes, by nothing, and by calls of rules. Built once, then immutable.
// Thread-compatible.
//
// The builders append to the state `from` and return the state behind what they have added. The
// first fault stays in status(); once there is one they add nothing more.
class Grammar {
 public:
  struct ByteEdge {
    uint8_t first, last;  // both within
    int32_t next;
  };
  struct State {
    std::vector<ByteEdge> bytes;
    std::vector<int32_t> empty;  // states reached without a byte
    int32_t call = -1;           // rule, or -1
    int32_t after_call = -1;
    bool ends_rule = false;
    // Rules that must be open beyond those that are, at least, to get to the end of the rule from
    // here; kNever: no text leads there.
    int32_t need = kNever;
  };
  static constexpr int32_t kNever = 1 << 20;

  // Has rule 0, the whole text.
  Grammar();

  // --- Building -------------------------------------------------------------------------------
  int NewRule();
  int StartOf(int rule) const { return rules_[rule].start; }
  int EndOf(int rule) const { return rules_[rule].end; }
  // `from` ends the rule.
  void EndRule(int rule, int from) { AddEmpty(from, rules_[rule].end); }

  int NewState();
  void AddEmpty(int from, int to);
  void AddBytes(int from, uint8_t first, uint8_t last, int to);
  int AddLiteral(int from, absl::string_view text);
  // Any one of the texts.
  int AddLiterals(int from, absl::Span<const std::string> texts);
  // One character of the ranges, in UTF-8; surrogates are left out.
  int AddCharacter(int from, absl::Span<const CodePointRange> ranges);
  int AddCall(int from, int rule);
  // Keeps the first.
  void Fail(const absl::Status& status) { status_.Update(status); }
  // Puts `where` before the message of the fault there is.
  void Locate(absl::string_view where);
  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }

  // Ends building. INVALID_ARGUMENT when there was a fault, when a rule leads to itself before any
  // byte, or when no text satisfies the grammar within kMaxGrammarDepth.
  absl::Status Finish();

  // --- Finished -------------------------------------------------------------------------------
  const State& state(int id) const { return states_[id]; }
  int num_states() const { return static_cast<int>(states_.size()); }
  // Bytes that no edge tells apart share a class.
  int num_classes() const { return num_classes_; }
  int ClassOf(uint8_t byte) const { return classes_[byte]; }
  uint8_t ByteOf(int byte_class) const { return class_bytes_[byte_class]; }
  int64_t bytes() const { return bytes_; }

 private:
  struct Rule {
    int32_t start, end;
  };
  // `count` bytes of 0x80 to 0xbf, then `to`.
  int Continuations(int count, int to, std::array<int, 4>& tails);
  void AddUtf8(int from, char32_t first, char32_t last, int to, std::array<int, 4>& tails);
  absl::Status CheckLeftRecursion() const;
  void ComputeNeeds();
  void ComputeClasses();

  std::vector<State> states_;
  std::vector<Rule> rules_;
  absl::Status status_;
  std::array<uint8_t, 256> classes_{};
  std::vector<uint8_t> class_bytes_;
  int num_classes_ = 0;
  int64_t bytes_ = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_CONSTRAINT_GRAMMAR_H_
