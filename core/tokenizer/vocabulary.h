#ifndef QUERN_CORE_TOKENIZER_VOCABULARY_H_
#define QUERN_CORE_TOKENIZER_VOCABULARY_H_

#include <absl/container/flat_hash_map.h>
#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace quern {

// A token's text in a byte-level vocabulary (GPT-2's, where each byte is written as a printable
// character) as bytes; false when it holds a character that stands for no byte.
bool ByteLevelToBytes(absl::string_view text, std::string* bytes);
// The character that stands for `byte` there.
const std::string& ByteLevelCharacter(uint8_t byte);

// Tokens by id and by text; ids may have gaps. Thread-safe once filled.
class Vocabulary {
 public:
  // `text` is the token as tokenizer.json writes it. DATA_LOSS when the id or the text is taken by
  // another token. `id` must not be negative.
  absl::Status Add(absl::string_view text, int32_t id);
  void MarkSpecial(int32_t id) { entries_[static_cast<size_t>(id)].special = true; }
  void MarkTakesSpaceBehind(int32_t id) {
    entries_[static_cast<size_t>(id)].takes_space_behind = true;
  }
  // What the token is in decoded text.
  void SetBytes(int32_t id, std::string bytes) {
    entries_[static_cast<size_t>(id)].bytes = std::move(bytes);
  }

  // -1 when there is none.
  int32_t Find(absl::string_view text) const;
  // Highest id + 1.
  int32_t size() const { return static_cast<int32_t>(entries_.size()); }
  bool Has(int32_t id) const { return InRange(id) && !entry(id).text.empty(); }
  // Empty and false for ids that no token has.
  absl::string_view Text(int32_t id) const {
    return InRange(id) ? absl::string_view(entry(id).text) : "";
  }
  absl::string_view Bytes(int32_t id) const {
    return InRange(id) ? absl::string_view(entry(id).bytes) : "";
  }
  bool IsSpecial(int32_t id) const { return InRange(id) && entry(id).special; }
  bool TakesSpaceBehind(int32_t id) const { return InRange(id) && entry(id).takes_space_behind; }

 private:
  struct Entry {
    std::string text;
    std::string bytes;
    bool special = false;
    bool takes_space_behind = false;
  };
  bool InRange(int32_t id) const { return id >= 0 && id < size(); }
  const Entry& entry(int32_t id) const { return entries_[static_cast<size_t>(id)]; }

  std::vector<Entry> entries_;
  absl::flat_hash_map<std::string, int32_t> ids_;
};

}  // namespace quern

#endif  // QUERN_CORE_TOKENIZER_VOCABULARY_H_
