#include "core/constraint/automaton.h"

#include <absl/strings/str_cat.h>

#include <algorithm>

namespace quern {

Automaton::Automaton(const Grammar* grammar, const TokenTrie* trie)
    : grammar_(grammar), trie_(trie), stacks_({{.parent = -1, .return_state = -1, .depth = 0}}) {
  path_.resize(trie->max_depth() + 1);
}

int Automaton::Start() {
  BeginWork();
  work_ = {{grammar_->StartOf(0), kNoStack}};
  return Close();
}

int Automaton::Advance(int state, absl::string_view bytes) {
  BeginWork();
  for (const char c : bytes) {
    state = Next(state, grammar_->ClassOf(static_cast<uint8_t>(c)));
    if (state == kDead) break;
  }
  return state;
}

int Automaton::Next(int state, int byte_class) {
  const int32_t known = states_[state].next[byte_class];
  if (known != kUnknown) return known;
  const uint8_t byte = grammar_->ByteOf(byte_class);
  work_.clear();
  for (const auto& [id, stack] : states_[state].configs) {
    for (const Grammar::ByteEdge& edge : grammar_->state(id).bytes) {
      if (edge.first <= byte && byte <= edge.last) work_.emplace_back(edge.next, stack);
      --work_left_;
    }
  }
  const int next = Close();
  if (!Exhausted()) states_[state].next[byte_class] = next;
  return next;
}

int Automaton::Close() {
  seen_.clear();
  std::vector<Config> configs;
  bool may_end = false;
  while (!work_.empty()) {
    const Config config = work_.back();
    work_.pop_back();
    if (--work_left_ < 0) return kDead;
    const auto [id, stack] = config;
    const Grammar::State& state = grammar_->state(id);
    // From here no end is near enough: other places of the same text lead to one.
    if (stacks_[stack].depth + state.need > kMaxGrammarDepth) continue;
    if (!seen_.insert(config).second) continue;
    if (!state.bytes.empty()) configs.push_back(config);
    for (const int32_t next : state.empty) work_.emplace_back(next, stack);
    if (state.call >= 0) {
      work_.emplace_back(grammar_->StartOf(state.call), Push(stack, state.after_call));
    }
    if (!state.ends_rule) continue;
    if (stack == kNoStack) {
      may_end = true;
    } else {
      work_.emplace_back(stacks_[stack].return_state, stacks_[stack].parent);
    }
  }
  if (configs.empty() && !may_end) return kDead;
  std::sort(configs.begin(), configs.end());
  int32_t& known = index_[configs].ids[may_end ? 1 : 0];
  if (known != kUnknown) return known;
  work_left_ -= kStateWork;
  State& state = states_.emplace_back();
  state.may_end = may_end;
  // Each byte leads to a place from which the end can be reached: those that do not were left out.
  state.may_go_on = std::any_of(configs.begin(), configs.end(), [&](const Config& config) {
    const auto& edges = grammar_->state(config.first).bytes;
    return std::any_of(edges.begin(), edges.end(), [&](const Grammar::ByteEdge& edge) {
      return stacks_[config.second].depth + grammar_->state(edge.next).need <= kMaxGrammarDepth;
    });
  });
  state.configs = std::move(configs);
  state.next.assign(grammar_->num_classes(), kUnknown);
  bytes_ += static_cast<int64_t>(sizeof(State) + 2 * state.configs.size() * sizeof(Config) + 64 +
                                 state.next.size() * sizeof(int32_t));
  // Last, so that nothing is half there when memory runs out.
  return known = static_cast<int32_t>(states_.size()) - 1;
}

int32_t Automaton::Push(int32_t parent, int32_t return_state) {
  if (const auto it = stack_index_.find({parent, return_state}); it != stack_index_.end()) {
    return it->second;
  }
  const auto id = static_cast<int32_t>(stacks_.size());
  stacks_.push_back({parent, return_state, stacks_[parent].depth + 1});
  stack_index_[{parent, return_state}] = id;
  bytes_ += static_cast<int64_t>(sizeof(Stack) + 2 * sizeof(Config));
  return id;
}

absl::StatusOr<absl::Span<const uint64_t>> Automaton::AllowedTokens(int state) {
  if (!states_[state].allowed.empty()) return absl::MakeConstSpan(states_[state].allowed);
  BeginWork();
  std::vector<uint64_t> allowed((trie_->vocab_size() + 63) / 64);
  const absl::Span<const TokenTrie::Node> nodes = trie_->nodes();
  path_[0] = state;
  for (size_t i = 0; i < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    const int next = Next(path_[node.depth], grammar_->ClassOf(node.byte));
    if (next == kDead) {
      if (Exhausted()) {
        return absl::InvalidArgumentError(
            "the constraint leaves too many ways open at once (its automaton would grow too much "
            "for one token); use smaller counts, or fewer alternatives that begin alike");
      }
      i = node.end;
      continue;
    }
    for (const int32_t id : trie_->TokensAt(node)) allowed[id / 64] |= uint64_t{1} << (id % 64);
    path_[node.depth + 1] = next;
    ++i;
  }
  bytes_ += static_cast<int64_t>(allowed.size() * sizeof(uint64_t));
  return absl::MakeConstSpan(states_[state].allowed = std::move(allowed));
}

std::vector<Automaton::Place> Automaton::Places(int state) const {
  std::vector<Place> places;
  for (const auto& [id, stack] : states_[state].configs) {
    Place& place = places.emplace_back(Place{.state = id, .returns = {}});
    for (int32_t at = stack; at != kNoStack; at = stacks_[at].parent) {
      place.returns.push_back(stacks_[at].return_state);
    }
    std::reverse(place.returns.begin(), place.returns.end());
  }
  if (states_[state].may_end) places.push_back({.state = grammar_->EndOf(0), .returns = {}});
  return places;
}

int Automaton::StateOf(const std::vector<Place>& places) {
  BeginWork();
  work_.clear();
  for (const Place& place : places) {
    int32_t stack = kNoStack;
    for (const int32_t return_state : place.returns) stack = Push(stack, return_state);
    work_.emplace_back(place.state, stack);
  }
  return Close();
}

}  // namespace quern
