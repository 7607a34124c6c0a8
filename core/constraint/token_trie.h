#ifndef QUERN_CORE_CONSTRAINT_TOKEN_TRIE_H_
#define QUERN_CORE_CONSTRAINT_TOKEN_TRIE_H_

#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "core/tokenizer/tokenizer.h"

namespace quern {

// The ordinary tokens of a vocabulary as a tree of their bytes, to walk all of them in one pass.
// Immutable; thread-safe.
class TokenTrie {
 public:
  // `vocab_size`: the model's, whose ids beyond the tokenizer's stand for no text.
  TokenTrie(std::shared_ptr<const Tokenizer> tokenizer, int vocab_size);

  // In preorder; the root, without a byte, is left out.
  struct Node {
    uint8_t byte;
    uint8_t num_tokens;  // that end here
    uint16_t depth;      // of the first level: 0
    int32_t end;         // the node behind this one's subtree
    int32_t tokens;      // index of the first of `num_tokens` ids
  };
  absl::Span<const Node> nodes() const { return nodes_; }
  absl::Span<const int32_t> TokensAt(const Node& node) const {
    return absl::MakeConstSpan(tokens_).subspan(node.tokens, node.num_tokens);
  }
  // Longest token, in bytes.
  int max_depth() const { return max_depth_; }
  int vocab_size() const { return vocab_size_; }
  // Empty for special tokens and ids without one.
  absl::string_view BytesOf(int32_t token) const;

 private:
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const int vocab_size_;
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;
  int max_depth_ = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_CONSTRAINT_TOKEN_TRIE_H_
