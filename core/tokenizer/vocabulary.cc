#include "core/tokenizer/vocabulary.h"

#include <absl/strings/str_cat.h>

#include <array>

#include "core/base/utf8.h"

namespace quern {
namespace {

struct ByteLevelAlphabet {
  std::array<std::string, 256> characters;
  // By code point; the highest is U+0143. -1: stands for no byte.
  std::array<int16_t, 0x144> bytes;
};

// Bytes that are printable Latin-1 stand for themselves, the others for U+0100 and on in order
// (bytes_to_unicode of GPT-2's encoder.py).
const ByteLevelAlphabet& Alphabet() {
  static const ByteLevelAlphabet* alphabet = [] {
    auto* result = new ByteLevelAlphabet;
    result->bytes.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool itself = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      const char32_t c = itself ? static_cast<char32_t>(byte) : next++;
      std::string& text = result->characters[static_cast<size_t>(byte)];
      if (c < 0x80) {
        text = {static_cast<char>(c)};
      } else {
        text = {static_cast<char>(0xC0 | (c >> 6)), static_cast<char>(0x80 | (c & 0x3F))};
      }
      result->bytes[c] = static_cast<int16_t>(byte);
    }
    return result;
  }();
  return *alphabet;
}

}  // namespace

bool ByteLevelToBytes(absl::string_view text, std::string* bytes) {
  const ByteLevelAlphabet& alphabet = Alphabet();
  bytes->clear();
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    if (step.kind != Utf8Step::Kind::kCharacter || step.code_point >= alphabet.bytes.size() ||
        alphabet.bytes[step.code_point] < 0) {
      return false;
    }
    bytes->push_back(static_cast<char>(alphabet.bytes[step.code_point]));
    text.remove_prefix(step.num_bytes);
  }
  return true;
}

const std::string& ByteLevelCharacter(uint8_t byte) { return Alphabet().characters[byte]; }

absl::Status Vocabulary::Add(absl::string_view text, int32_t id) {
  if (Has(id)) {
    return absl::DataLossError(absl::StrCat("id ", id, " is given to ", Quoted(Text(id)),
                                            " and to ", Quoted(text), ", wanted distinct ids"));
  }
  const auto [it, added] = ids_.try_emplace(std::string(text), id);
  if (!added) {
    return absl::DataLossError(
        absl::StrCat(Quoted(text), " has the ids ", it->second, " and ", id, ", wanted one"));
  }
  if (id >= size()) entries_.resize(static_cast<size_t>(id) + 1);
  entries_[static_cast<size_t>(id)].text = std::string(text);
  return absl::OkStatus();
}

int32_t Vocabulary::Find(absl::string_view text) const {
  const auto it = ids_.find(text);
  return it == ids_.end() ? -1 : it->second;
}

}  // namespace quern
