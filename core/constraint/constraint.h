#ifndef QUERN_CORE_CONSTRAINT_CONSTRAINT_H_
#define QUERN_CORE_CONSTRAINT_CONSTRAINT_H_

// Constrained decoding: which tokens may follow so that the text stays in a language (Willard and
// Louf 2023, with the recursive grammars and token masks of XGrammar, Dong et al. 2024).
//
//   ConstraintCompiler compiler(tokenizer, vocab_size);                  // one a model
//   compiler.Compile({.kind = ConstraintSpec::Kind::kRegex, .text = "[0-9]+"});  // any thread
//   ConstraintState state(constraint);                                   // one a sequence
//   ... state.AllowedTokens(), state.Accept(token) ...                   // each step

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/base/mutex.h"
#include "core/constraint/automaton.h"
#include "core/constraint/grammar.h"
#include "core/constraint/token_trie.h"
#include "core/tokenizer/tokenizer.h"

namespace quern {

// Bytes of a schema, of a pattern, or of all choices.
inline constexpr size_t kMaxConstraintBytes = 64 << 10;
inline constexpr size_t kMaxChoiceTexts = 1024;

// What a text must be.
struct ConstraintSpec {
  enum class Kind {
    kJsonSchema,  // `text`: see AddJsonSchema
    kJsonObject,
    kRegex,   // `text`, matched by the whole answer: see AddRegex
    kChoice,  // one of `choices`
  };
  Kind kind = Kind::kJsonObject;
  std::string text;
  std::vector<std::string> choices;
};

// A compiled spec for one vocabulary. Thread-safe: sequences share the automaton, which grows as
// they walk it.
class Constraint {
 public:
  // On the calling thread: tens of milliseconds at most. INVALID_ARGUMENT for what is not supported
  // or beyond a limit, which the message names.
  static absl::StatusOr<std::shared_ptr<const Constraint>> Compile(
      const ConstraintSpec& spec, std::shared_ptr<const TokenTrie> trie);

  int vocab_size() const { return trie_->vocab_size(); }
  // What it holds by now; approximate.
  int64_t bytes() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class ConstraintState;

  // An automaton that has grown enough is left to the sequences that still walk it, and another one
  // begun.
  static constexpr int64_t kMaxAutomatonBytes = int64_t{16} << 20;
  struct SharedAutomaton {
    SharedAutomaton(const Grammar* grammar, const TokenTrie* trie) : automaton(grammar, trie) {}
    Mutex mutex;
    Automaton automaton ABSL_GUARDED_BY(mutex);
  };

  explicit Constraint(std::shared_ptr<const TokenTrie> trie) : trie_(std::move(trie)) {}
  std::shared_ptr<SharedAutomaton> Current() const ABSL_LOCKS_EXCLUDED(mutex_);
  // The one after `grown`.
  std::shared_ptr<SharedAutomaton> After(const std::shared_ptr<SharedAutomaton>& grown) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  const std::shared_ptr<const TokenTrie> trie_;
  Grammar grammar_;
  mutable Mutex mutex_;
  mutable std::shared_ptr<SharedAutomaton> automaton_ ABSL_GUARDED_BY(mutex_);
};

// Where one sequence's text is in its constraint. Thread-compatible. Allocates only where no
// sequence of the constraint has been yet.
class ConstraintState {
 public:
  explicit ConstraintState(std::shared_ptr<const Constraint> constraint);

  // A bit for each id of the vocabulary, see Automaton: special tokens have none. Valid until the
  // next call of a method that is not const. INVALID_ARGUMENT as Automaton::AllowedTokens.
  absl::StatusOr<absl::Span<const uint64_t>> AllowedTokens();
  // The text may end here.
  bool may_end() const { return may_end_; }
  // The text may end here and nothing else.
  bool must_end() const { return may_end_ && !may_go_on_; }
  // `token` is one of AllowedTokens(); else INTERNAL.
  absl::Status Accept(int32_t token);

 private:
  // Notes what state_ means.
  void Enter() ABSL_EXCLUSIVE_LOCKS_REQUIRED(automaton_->mutex);

  const std::shared_ptr<const Constraint> constraint_;
  std::shared_ptr<Constraint::SharedAutomaton> automaton_;
  int state_ = Automaton::kDead;
  bool may_end_ = false;
  bool may_go_on_ = false;
};

struct CompiledConstraint {
  std::shared_ptr<const Constraint> constraint;
  bool from_cache = false;
};

// Compiles for one vocabulary and keeps what was used last. Thread-safe.
class ConstraintCompiler {
 public:
  // Of all constraints kept; at most kMaxCached of them.
  static constexpr int64_t kMaxCachedBytes = int64_t{64} << 20;
  static constexpr size_t kMaxCached = 256;

  ConstraintCompiler(std::shared_ptr<const Tokenizer> tokenizer, int vocab_size);

  // See Constraint::Compile; two callers of one new spec may both compile it.
  absl::StatusOr<CompiledConstraint> Compile(const ConstraintSpec& spec)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Cached {
    std::string key;
    std::shared_ptr<const Constraint> constraint;
  };
  std::shared_ptr<const TokenTrie> Trie() ABSL_LOCKS_EXCLUDED(trie_mutex_);
  void Keep(const std::string& key, std::shared_ptr<const Constraint> constraint)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const int vocab_size_;
  Mutex trie_mutex_;
  std::shared_ptr<const TokenTrie> trie_ ABSL_GUARDED_BY(trie_mutex_);  // made at first use
  Mutex mutex_;
  std::list<Cached> cached_ ABSL_GUARDED_BY(mutex_);  // last used first
  std::map<std::string, std::list<Cached>::iterator> index_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace quern

#endif  // QUERN_CORE_CONSTRAINT_CONSTRAINT_H_
