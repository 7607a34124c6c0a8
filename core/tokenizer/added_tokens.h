#ifndef QUERN_CORE_TOKENIZER_ADDED_TOKENS_H_
#define QUERN_CORE_TOKENIZER_ADDED_TOKENS_H_

#include <absl/container/flat_hash_map.h>
#include <absl/functional/function_ref.h>
#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace quern {

// A row of added_tokens in a tokenizer.json.
struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = false;
  bool single_word = false;  // only between characters that are not part of a word
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space behind it
  bool normalized = false;   // found in the normalized text, not in the text as it comes
};

// Finds added tokens in text: leftmost, and of those the longest. Thread-safe.
class AddedTokens {
 public:
  // Contents must not be empty.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  // A stretch of text: an added token, or ordinary text between two (id -1).
  struct Part {
    absl::string_view text;
    int32_t id = -1;
  };
  // Cuts `text` (UTF-8) into parts that are not empty. Special tokens are left in ordinary text
  // unless `find_special`.
  std::vector<Part> Split(absl::string_view text, bool find_special) const;

 private:
  // The longest token at the beginning of `text`, or null.
  const AddedToken* Match(absl::string_view text) const;

  std::vector<AddedToken> tokens_;
  // A trie of the contents: (node << 8 | byte) -> node. The root is 0.
  absl::flat_hash_map<uint64_t, uint32_t> children_;
  std::vector<int32_t> token_at_;  // by node: index into tokens_, or -1
  std::array<bool, 256> begins_{};
};

}  // namespace quern

#endif  // QUERN_CORE_TOKENIZER_ADDED_TOKENS_H_
