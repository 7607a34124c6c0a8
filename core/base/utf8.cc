#include "core/base/utf8.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>

#include <cstdint>

namespace quern {

Utf8Step NextUtf8(absl::string_view bytes) {
  using Kind = Utf8Step::Kind;
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {Kind::kCharacter, 1, lead};
  size_t length = 0;
  // The second byte's range is narrower after some leads: it rules out overlong forms, surrogates
  // and what lies beyond U+10FFFF (Unicode table 3-7).
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {Kind::kInvalid, 1, 0};
  }
  char32_t code_point = lead & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Kind::kIncomplete, i, 0};
    if (at(i) < low || at(i) > high) return {Kind::kInvalid, i, 0};
    code_point = (code_point << 6) | (at(i) & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Kind::kCharacter, length, code_point};
}

size_t FindInvalidUtf8(absl::string_view bytes) {
  size_t offset = 0;
  while (offset < bytes.size()) {
    if (static_cast<uint8_t>(bytes[offset]) < 0x80) {
      ++offset;
      continue;
    }
    const Utf8Step step = NextUtf8(bytes.substr(offset));
    if (step.kind != Utf8Step::Kind::kCharacter) return offset;
    offset += step.num_bytes;
  }
  return absl::string_view::npos;
}

std::string ReplaceInvalidUtf8(absl::string_view bytes) {
  std::string text;
  for (size_t invalid = FindInvalidUtf8(bytes); invalid != absl::string_view::npos;
       invalid = FindInvalidUtf8(bytes)) {
    absl::StrAppend(&text, bytes.substr(0, invalid), "\uFFFD");
    bytes.remove_prefix(invalid);
    bytes.remove_prefix(NextUtf8(bytes).num_bytes);
  }
  absl::StrAppend(&text, bytes);
  return text;
}

std::string Quoted(absl::string_view text, size_t max_bytes) {
  absl::string_view shown = text.substr(0, max_bytes);
  const size_t invalid = FindInvalidUtf8(shown);
  // A character that the cut went through is left out; bytes of another kind are shown as such.
  if (shown.size() < text.size() && invalid != absl::string_view::npos &&
      NextUtf8(shown.substr(invalid)).kind == Utf8Step::Kind::kIncomplete) {
    shown = shown.substr(0, invalid);
  }
  return absl::StrCat("\"", IsUtf8(shown) ? absl::Utf8SafeCEscape(shown) : absl::CEscape(shown),
                      shown.size() < text.size() ? "...\"" : "\"");
}

bool IsUnicodeSpace(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace quern
