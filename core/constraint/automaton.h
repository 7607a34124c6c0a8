#ifndef QUERN_CORE_CONSTRAINT_AUTOMATON_H_
#define QUERN_CORE_CONSTRAINT_AUTOMATON_H_

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "core/constraint/grammar.h"
#include "core/constraint/token_trie.h"

namespace quern {

// The deterministic automaton of a grammar, made as it is walked (Aho, Sethi, Ullman 1986, 3.7): a
// state is the set of places in the grammar that a text may have led to, each with the calls that
// are open there. Keeps the tokens that may follow each state it was asked for.
//
// Every state has a text that leads on to an end of the grammar. Thread-compatible.
class Automaton {
 public:
  // A place: a state of the grammar, and the states to return to, outermost first.
  struct Place {
    int32_t state;
    std::vector<int32_t> returns;
  };
  static constexpr int kDead = -1;  // no text goes on from here

  // Both outlive this.
  Automaton(const Grammar* grammar, const TokenTrie* trie);

  // kDead when building it met a limit.
  int Start();
  // From a state of this: kDead when `bytes` cannot follow there.
  int Advance(int state, absl::string_view bytes);
  // The grammar may end here.
  bool may_end(int state) const { return states_[state].may_end; }
  // Bytes may follow.
  bool may_go_on(int state) const { return states_[state].may_go_on; }
  // A bit for each id of the vocabulary, the lowest in the lowest bit of the first word: the
  // tokens that may follow. Valid as long as this. INVALID_ARGUMENT naming the limit when the
  // automaton would grow too much at once.
  absl::StatusOr<absl::Span<const uint64_t>> AllowedTokens(int state);

  // What a state means, to find it again in another automaton of the same grammar and vocabulary.
  std::vector<Place> Places(int state) const;
  int StateOf(const std::vector<Place>& places);

  // Approximate.
  int64_t bytes() const { return bytes_; }

 private:
  using Config = std::pair<int32_t, int32_t>;  // state of the grammar, stack
  struct Stack {
    int32_t parent;
    int32_t return_state;
    int32_t depth;
  };
  struct State {
    std::vector<Config> configs;  // sorted; those that have bytes to follow
    std::vector<int32_t> next;    // by class of bytes
    std::vector<uint64_t> allowed;
    bool may_end = false;
    bool may_go_on = false;
  };
  static constexpr int32_t kUnknown = -2;
  struct StateIds {
    int32_t ids[2] = {kUnknown, kUnknown};
  };
  static constexpr int32_t kNoStack = 0;

  int Next(int state, int byte_class);
  // The state of `work_` and of what it leads to without a byte.
  int Close();
  int32_t Push(int32_t parent, int32_t return_state);
  void BeginWork() { work_left_ = kMaxWork; }
  bool Exhausted() const { return work_left_ < 0; }

  // Places looked at for one mask, and what a new state counts: it bounds the time and memory of a
  // mask. What JSON schemas want is a tenth of it.
  static constexpr int64_t kMaxWork = 250'000;
  static constexpr int64_t kStateWork = 64;

  const Grammar* const grammar_;
  const TokenTrie* const trie_;
  std::deque<State> states_;  // which never move
  // States with these configs: the one where the text may not end, and the one where it may.
  absl::flat_hash_map<std::vector<Config>, StateIds> index_;
  std::vector<Stack> stacks_;
  absl::flat_hash_map<Config, int32_t> stack_index_;
  int64_t bytes_ = 0;
  int64_t work_left_ = 0;
  // Kept for their memory.
  std::vector<Config> work_;
  absl::flat_hash_set<Config> seen_;
  std::vector<int32_t> path_;
};

}  // namespace quern

#endif  // QUERN_CORE_CONSTRAINT_AUTOMATON_H_
