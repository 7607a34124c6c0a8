#include "core/constraint/constraint.h"

#include <absl/strings/str_cat.h>

#include <utility>

#include "core/base/status_macros.h"
#include "core/base/utf8.h"
#include "core/constraint/regex_grammar.h"
#include "core/constraint/schema_grammar.h"

namespace quern {
namespace {

absl::Status CheckText(absl::string_view text, absl::string_view what) {
  if (text.empty()) return absl::InvalidArgumentError(absl::StrCat(what, " must not be empty"));
  if (text.size() > kMaxConstraintBytes) {
    return absl::InvalidArgumentError(absl::StrCat(what, " has ", text.size(), " bytes, at most ",
                                                   kMaxConstraintBytes, " are taken"));
  }
  if (!IsUtf8(text)) return absl::InvalidArgumentError(absl::StrCat(what, " is not UTF-8"));
  return absl::OkStatus();
}

absl::Status CheckChoices(const std::vector<std::string>& choices) {
  if (choices.empty() || choices.size() > kMaxChoiceTexts) {
    return absl::InvalidArgumentError(
        absl::StrCat("there are ", choices.size(), " choices, wanted 1 to ", kMaxChoiceTexts));
  }
  size_t bytes = 0;
  for (const std::string& choice : choices) {
    RETURN_IF_ERROR(CheckText(choice, "a choice"));
    bytes += choice.size();
  }
  if (bytes <= kMaxConstraintBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the choices have ", bytes, " bytes, at most ",
                                                 kMaxConstraintBytes, " are taken"));
}

absl::Status BuildGrammar(const ConstraintSpec& spec, Grammar& grammar) {
  const int start = grammar.StartOf(0);
  switch (spec.kind) {
    case ConstraintSpec::Kind::kJsonSchema:
      RETURN_IF_ERROR(CheckText(spec.text, "the JSON schema"));
      AddJsonSchema(grammar, spec.text);
      break;
    case ConstraintSpec::Kind::kJsonObject:
      AddJsonObject(grammar);
      break;
    case ConstraintSpec::Kind::kRegex:
      RETURN_IF_ERROR(CheckText(spec.text, "the regular expression"));
      grammar.EndRule(0, AddRegex(grammar, start, spec.text, RegexUse::kWholeText));
      break;
    case ConstraintSpec::Kind::kChoice:
      RETURN_IF_ERROR(CheckChoices(spec.choices));
      grammar.EndRule(0, grammar.AddLiterals(start, spec.choices));
      break;
  }
  return grammar.Finish();
}

std::string KeyOf(const ConstraintSpec& spec) {
  std::string key = absl::StrCat(static_cast<int>(spec.kind), ":", spec.text);
  for (const std::string& choice : spec.choices) {
    absl::StrAppend(&key, choice.size(), ":", choice);
  }
  return key;
}

}  // namespace

// --- Constraint
// -----------------------------------------------------------------------------------

absl::StatusOr<std::shared_ptr<const Constraint>> Constraint::Compile(
    const ConstraintSpec& spec, std::shared_ptr<const TokenTrie> trie) {
  std::shared_ptr<Constraint> constraint(new Constraint(std::move(trie)));
  RETURN_IF_ERROR(BuildGrammar(spec, constraint->grammar_));
  {
    MutexLock lock(&constraint->mutex_);
    constraint->automaton_ =
        std::make_shared<SharedAutomaton>(&constraint->grammar_, constraint->trie_.get());
  }
  // The first mask is the most that can be said of the limits of a step before there is one.
  ConstraintState state(constraint);
  RETURN_IF_ERROR(state.AllowedTokens().status());
  return constraint;
}

int64_t Constraint::bytes() const {
  const std::shared_ptr<SharedAutomaton> automaton = Current();
  MutexLock lock(&automaton->mutex);
  return grammar_.bytes() + automaton->automaton.bytes();
}

std::shared_ptr<Constraint::SharedAutomaton> Constraint::Current() const {
  MutexLock lock(&mutex_);
  return automaton_;
}

std::shared_ptr<Constraint::SharedAutomaton> Constraint::After(
    const std::shared_ptr<SharedAutomaton>& grown) const {
  MutexLock lock(&mutex_);
  if (automaton_ == grown) {
    automaton_ = std::make_shared<SharedAutomaton>(&grammar_, trie_.get());
  }
  return automaton_;
}

// --- ConstraintState
// ------------------------------------------------------------------------------

ConstraintState::ConstraintState(std::shared_ptr<const Constraint> constraint)
    : constraint_(std::move(constraint)), automaton_(constraint_->Current()) {
  MutexLock lock(&automaton_->mutex);
  state_ = automaton_->automaton.Start();
  Enter();
}

void ConstraintState::Enter() {
  if (state_ == Automaton::kDead) return;
  may_end_ = automaton_->automaton.may_end(state_);
  may_go_on_ = automaton_->automaton.may_go_on(state_);
}

absl::StatusOr<absl::Span<const uint64_t>> ConstraintState::AllowedTokens() {
  std::vector<Automaton::Place> places;
  {
    MutexLock lock(&automaton_->mutex);
    Automaton& automaton = automaton_->automaton;
    if (state_ == Automaton::kDead) {
      return absl::InvalidArgumentError(
          "the constraint leaves too many ways open at once; use smaller counts, or fewer "
          "alternatives that begin alike");
    }
    if (automaton.bytes() <= Constraint::kMaxAutomatonBytes) return automaton.AllowedTokens(state_);
    places = automaton.Places(state_);
  }
  automaton_ = constraint_->After(automaton_);
  MutexLock lock(&automaton_->mutex);
  state_ = automaton_->automaton.StateOf(places);
  if (state_ == Automaton::kDead) {
    return absl::InternalError("a state of a constraint was lost when its automaton was renewed");
  }
  return automaton_->automaton.AllowedTokens(state_);
}

absl::Status ConstraintState::Accept(int32_t token) {
  const absl::string_view bytes = constraint_->trie_->BytesOf(token);
  MutexLock lock(&automaton_->mutex);
  const int next = bytes.empty() ? Automaton::kDead : automaton_->automaton.Advance(state_, bytes);
  if (next == Automaton::kDead) {
    return absl::InternalError(
        absl::StrCat("token ", token, " was drawn, which the constraint does not allow"));
  }
  state_ = next;
  Enter();
  return absl::OkStatus();
}

// --- ConstraintCompiler
// ---------------------------------------------------------------------------

ConstraintCompiler::ConstraintCompiler(std::shared_ptr<const Tokenizer> tokenizer, int vocab_size)
    : tokenizer_(std::move(tokenizer)), vocab_size_(vocab_size) {}

std::shared_ptr<const TokenTrie> ConstraintCompiler::Trie() {
  MutexLock lock(&trie_mutex_);
  if (trie_ == nullptr) trie_ = std::make_shared<const TokenTrie>(tokenizer_, vocab_size_);
  return trie_;
}

absl::StatusOr<CompiledConstraint> ConstraintCompiler::Compile(const ConstraintSpec& spec) {
  const std::string key = KeyOf(spec);
  {
    MutexLock lock(&mutex_);
    if (const auto it = index_.find(key); it != index_.end()) {
      cached_.splice(cached_.begin(), cached_, it->second);
      return CompiledConstraint{it->second->constraint, /*from_cache=*/true};
    }
  }
  ASSIGN_OR_RETURN(std::shared_ptr<const Constraint> constraint, Constraint::Compile(spec, Trie()));
  MutexLock lock(&mutex_);
  Keep(key, constraint);
  return CompiledConstraint{std::move(constraint), /*from_cache=*/false};
}

void ConstraintCompiler::Keep(const std::string& key,
                              std::shared_ptr<const Constraint> constraint) {
  if (index_.contains(key)) return;
  cached_.push_front({key, std::move(constraint)});
  index_[key] = cached_.begin();
  int64_t bytes = 0;
  size_t count = 0;
  for (auto it = cached_.begin(); it != cached_.end();) {
    bytes += static_cast<int64_t>(2 * it->key.size()) + it->constraint->bytes();
    // The newest stays, whatever it takes.
    if (++count == 1 || (bytes <= kMaxCachedBytes && count <= kMaxCached)) {
      ++it;
      continue;
    }
    index_.erase(it->key);
    it = cached_.erase(it);
  }
}

}  // namespace quern
