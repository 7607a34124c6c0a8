#ifndef QUERN_CORE_TOKENIZER_BPE_H_
#define QUERN_CORE_TOKENIZER_BPE_H_

#include <absl/container/flat_hash_map.h>
#include <absl/strings/string_view.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/tokenizer/vocabulary.h"

namespace quern {

struct BpeOptions {
  // Words are cut into bytes, not characters.
  bool byte_level = false;
  // A character without a token becomes the tokens <0xHH> of its bytes.
  bool byte_fallback = false;
  // A word that is a token is that token, whatever the merges say.
  bool ignore_merges = false;
  // Characters in a row that are unknown become one unknown token.
  bool fuse_unk = false;
  int32_t unk_id = -1;  // -1: characters without a token are dropped
};

// Two tokens side by side and the token they become.
struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t result;
};

// Byte pair encoding of one word: the pair whose merge stands first in the list, leftmost first,
// is merged until there is none. O(n log n) for a word of n bytes. Thread-safe.
class Bpe {
 public:
  // `vocabulary` must outlive this. `merges` in order of rank; of equal pairs the last counts.
  Bpe(const BpeOptions& options, const Vocabulary* vocabulary, std::vector<BpeMerge> merges);

  // Memory that calls reuse. One per thread.
  struct Scratch {
    struct Symbol {
      int32_t id;
      int32_t previous;  // index, -1 at the beginning
      int32_t next;      // index, -1 at the end
    };
    std::vector<int32_t> ids;
    std::vector<uint32_t> ranks;
    std::vector<Symbol> symbols;
    std::vector<uint64_t> heap;  // rank << 32 | index of the left symbol
  };

  // Appends the ids of `word` (UTF-8, below 2^31 bytes). Special tokens come out only where
  // `allow_special`.
  void Encode(absl::string_view word, bool allow_special, Scratch* scratch,
              std::vector<int32_t>* out) const;

 private:
  static constexpr uint32_t kNoRank = UINT32_MAX;

  // kNoRank when the pair does not merge.
  uint32_t FindRank(int32_t left, int32_t right, bool allow_special) const;
  void EncodePart(absl::string_view part, bool allow_special, Scratch* scratch,
                  std::vector<int32_t>* out) const;
  void CutIntoBytes(absl::string_view word, std::vector<int32_t>* ids) const;
  void CutIntoCharacters(absl::string_view word, bool allow_special,
                         std::vector<int32_t>* ids) const;
  void MergeShort(bool allow_special, Scratch* scratch, std::vector<int32_t>* out) const;
  void MergeLong(bool allow_special, Scratch* scratch, std::vector<int32_t>* out) const;

  BpeOptions options_;
  const Vocabulary* vocabulary_;
  std::array<int32_t, 256> byte_ids_;  // -1: no token
  std::vector<BpeMerge> merges_;       // by rank
  // (left << 32 | right) -> rank. Those that make a special token lie apart: text that must not
  // become one does not see them.
  absl::flat_hash_map<uint64_t, uint32_t> ranks_;
  absl::flat_hash_map<uint64_t, uint32_t> special_ranks_;
  // No merge joins another character with a U+2581 behind it, so that a word can be cut there.
  bool cut_before_metaspace_ = false;
  absl::flat_hash_map<std::string, int32_t> words_;  // for ignore_merges: bytes -> id
};

}  // namespace quern

#endif  // QUERN_CORE_TOKENIZER_BPE_H_
