#include "core/constraint/token_trie.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace quern {

TokenTrie::TokenTrie(std::shared_ptr<const Tokenizer> tokenizer, int vocab_size)
    : tokenizer_(std::move(tokenizer)), vocab_size_(vocab_size) {
  std::vector<std::pair<absl::string_view, int32_t>> sorted;
  for (int32_t id = 0; id < std::min(vocab_size, tokenizer_->vocab_size()); ++id) {
    const absl::string_view bytes = BytesOf(id);
    // No automaton is worth walking that far: tokens that long can be spelled with others.
    if (!bytes.empty() && bytes.size() <= 256) sorted.emplace_back(bytes, id);
  }
  std::sort(sorted.begin(), sorted.end());

  std::vector<int32_t> path;  // nodes of the token before, by depth
  absl::string_view before;
  const auto close = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back()) {
      nodes_[path.back()].end = static_cast<int32_t>(nodes_.size());
    }
  };
  for (const auto& [bytes, id] : sorted) {
    const size_t common =
        std::mismatch(bytes.begin(), bytes.end(), before.begin(), before.end()).first -
        bytes.begin();
    if (common < bytes.size()) close(common);
    for (size_t depth = path.size(); depth < bytes.size(); ++depth) {
      path.push_back(static_cast<int32_t>(nodes_.size()));
      nodes_.push_back({.byte = static_cast<uint8_t>(bytes[depth]),
                        .num_tokens = 0,
                        .depth = static_cast<uint16_t>(depth),
                        .end = 0,
                        .tokens = static_cast<int32_t>(tokens_.size())});
    }
    Node& node = nodes_[path.back()];
    if (node.num_tokens < std::numeric_limits<uint8_t>::max()) {
      ++node.num_tokens;
      tokens_.push_back(id);
    }
    max_depth_ = std::max(max_depth_, static_cast<int>(bytes.size()));
    before = bytes;
  }
  close(0);
}

absl::string_view TokenTrie::BytesOf(int32_t token) const {
  if (token < 0 || token >= vocab_size_ || tokenizer_->IsSpecial(token)) return "";
  return tokenizer_->TokenBytes(token);
}

}  // namespace quern
