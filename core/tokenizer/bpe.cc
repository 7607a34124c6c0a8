#include "core/tokenizer/bpe.h"

#include <absl/strings/match.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "core/base/utf8.h"
#include "core/tokenizer/normalizer.h"

namespace quern {
namespace {

// Up to this many symbols, looking through all pairs for each merge is faster than a heap.
constexpr size_t kShortWord = 32;

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

// Where the first U+2581 stands that has another character before it; npos when none does.
size_t FindMetaspaceAfterOther(absl::string_view text) {
  size_t at = 0;
  while (absl::StartsWith(text.substr(at), kMetaspace)) at += kMetaspace.size();
  return text.find(kMetaspace, at);
}

}  // namespace

Bpe::Bpe(const BpeOptions& options, const Vocabulary* vocabulary, std::vector<BpeMerge> merges)
    : options_(options), vocabulary_(vocabulary), merges_(std::move(merges)) {
  byte_ids_.fill(-1);
  for (int byte = 0; byte < 256; ++byte) {
    const auto index = static_cast<size_t>(byte);
    if (options_.byte_level) {
      byte_ids_[index] = vocabulary_->Find(ByteLevelCharacter(static_cast<uint8_t>(byte)));
    } else if (options_.byte_fallback) {
      byte_ids_[index] = vocabulary_->Find(absl::StrFormat("<0x%02X>", byte));
    }
  }
  // (A U+2581 without a token of its own could be part of a fused unknown token.)
  const int32_t metaspace = vocabulary_->Find(kMetaspace);
  cut_before_metaspace_ = !options_.byte_level && !options_.ignore_merges && metaspace >= 0 &&
                          !vocabulary_->IsSpecial(metaspace);
  ranks_.reserve(merges_.size());
  for (size_t rank = 0; rank < merges_.size(); ++rank) {
    const BpeMerge& merge = merges_[rank];
    auto& map = vocabulary_->IsSpecial(merge.result) ? special_ranks_ : ranks_;
    map[PairKey(merge.left, merge.right)] = static_cast<uint32_t>(rank);
    cut_before_metaspace_ =
        cut_before_metaspace_ &&
        FindMetaspaceAfterOther(vocabulary_->Text(merge.result)) == absl::string_view::npos;
  }
  if (options_.ignore_merges) {
    std::string bytes;
    for (int32_t id = 0; id < vocabulary_->size(); ++id) {
      if (!vocabulary_->Has(id) || vocabulary_->IsSpecial(id)) continue;
      if (!options_.byte_level) {
        words_.emplace(vocabulary_->Text(id), id);
      } else if (ByteLevelToBytes(vocabulary_->Text(id), &bytes)) {
        words_.emplace(bytes, id);
      }
    }
  }
}

uint32_t Bpe::FindRank(int32_t left, int32_t right, bool allow_special) const {
  const uint64_t key = PairKey(left, right);
  if (const auto it = ranks_.find(key); it != ranks_.end()) return it->second;
  if (allow_special && !special_ranks_.empty()) {
    if (const auto it = special_ranks_.find(key); it != special_ranks_.end()) return it->second;
  }
  return kNoRank;
}

void Bpe::CutIntoBytes(absl::string_view word, std::vector<int32_t>* ids) const {
  for (char c : word) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    if (id >= 0) {
      ids->push_back(id);
    } else if (options_.unk_id >= 0 &&
               !(options_.fuse_unk && !ids->empty() && ids->back() == options_.unk_id)) {
      ids->push_back(options_.unk_id);
    }
  }
}

void Bpe::CutIntoCharacters(absl::string_view word, bool allow_special,
                            std::vector<int32_t>* ids) const {
  while (!word.empty()) {
    const absl::string_view character = word.substr(0, NextUtf8(word).num_bytes);
    word.remove_prefix(character.size());
    const int32_t id = vocabulary_->Find(character);
    if (id >= 0 && (allow_special || !vocabulary_->IsSpecial(id))) {
      ids->push_back(id);
      continue;
    }
    const bool has_bytes = std::all_of(character.begin(), character.end(), [&](char c) {
      return byte_ids_[static_cast<uint8_t>(c)] >= 0;
    });
    if (has_bytes) {
      for (char c : character) ids->push_back(byte_ids_[static_cast<uint8_t>(c)]);
    } else if (options_.unk_id >= 0 &&
               !(options_.fuse_unk && !ids->empty() && ids->back() == options_.unk_id)) {
      ids->push_back(options_.unk_id);
    }
  }
}

void Bpe::MergeShort(bool allow_special, Scratch* scratch, std::vector<int32_t>* out) const {
  std::vector<int32_t>& ids = scratch->ids;
  std::vector<uint32_t>& ranks = scratch->ranks;  // of the pair that begins at the index
  size_t count = ids.size();
  ranks.resize(count);
  const auto look_up = [&](size_t i) { ranks[i] = FindRank(ids[i], ids[i + 1], allow_special); };
  for (size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoRank) break;
    ids[best] = merges_[ranks[best]].result;
    for (size_t i = best + 1; i + 1 < count; ++i) {
      ids[i] = ids[i + 1];
      ranks[i] = ranks[i + 1];
    }
    --count;
    if (best + 1 < count) look_up(best);
    if (best > 0) look_up(best - 1);
  }
  out->insert(out->end(), ids.begin(), ids.begin() + static_cast<ptrdiff_t>(count));
}

void Bpe::MergeLong(bool allow_special, Scratch* scratch, std::vector<int32_t>* out) const {
  std::vector<Scratch::Symbol>& symbols = scratch->symbols;
  std::vector<uint64_t>& heap = scratch->heap;
  symbols.clear();
  heap.clear();
  const auto count = static_cast<int32_t>(scratch->ids.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols.push_back({scratch->ids[static_cast<size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1});
  }
  const auto symbol = [&](int32_t i) -> Scratch::Symbol& {
    return symbols[static_cast<size_t>(i)];
  };
  const auto propose = [&](int32_t left) {
    if (left < 0 || symbol(left).next < 0) return false;
    const uint32_t rank = FindRank(symbol(left).id, symbol(symbol(left).next).id, allow_special);
    if (rank == kNoRank) return false;
    heap.push_back(uint64_t{rank} << 32 | static_cast<uint32_t>(left));
    return true;
  };
  for (int32_t i = 0; i < count; ++i) propose(i);
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto position = static_cast<int32_t>(heap.back() & UINT32_MAX);
    const BpeMerge& merge = merges_[heap.back() >> 32];
    heap.pop_back();
    Scratch::Symbol& left = symbol(position);
    // Either may have been merged since; a symbol that is gone has id -1.
    if (left.id != merge.left || left.next < 0) continue;
    Scratch::Symbol& right = symbol(left.next);
    if (right.id != merge.right) continue;
    left.id = merge.result;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbol(left.next).previous = position;
    for (int32_t changed : {position, left.previous}) {
      if (propose(changed)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  }
  for (int32_t i = 0; i >= 0; i = symbol(i).next) out->push_back(symbol(i).id);
}

void Bpe::EncodePart(absl::string_view part, bool allow_special, Scratch* scratch,
                     std::vector<int32_t>* out) const {
  scratch->ids.clear();
  if (options_.byte_level) {
    CutIntoBytes(part, &scratch->ids);
  } else {
    CutIntoCharacters(part, allow_special, &scratch->ids);
  }
  if (scratch->ids.size() <= kShortWord) {
    MergeShort(allow_special, scratch, out);
  } else {
    MergeLong(allow_special, scratch, out);
  }
}

void Bpe::Encode(absl::string_view word, bool allow_special, Scratch* scratch,
                 std::vector<int32_t>* out) const {
  if (options_.ignore_merges) {
    if (const auto it = words_.find(word); it != words_.end()) {
      out->push_back(it->second);
      return;
    }
  }
  while (cut_before_metaspace_) {
    const size_t cut = FindMetaspaceAfterOther(word);
    if (cut == absl::string_view::npos) break;
    EncodePart(word.substr(0, cut), allow_special, scratch, out);
    word.remove_prefix(cut);
  }
  EncodePart(word, allow_special, scratch, out);
}

}  // namespace quern
