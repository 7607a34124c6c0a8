#ifndef QUERN_CORE_BASE_UTF8_H_
#define QUERN_CORE_BASE_UTF8_H_

#include <absl/strings/string_view.h>

#include <cstddef>
#include <string>

namespace quern {

// What stands at the beginning of a run of bytes.
struct Utf8Step {
  enum class Kind {
    kCharacter,   // a whole character
    kIncomplete,  // the bytes end inside a character that may still become one
    kInvalid,     // bytes that can no longer become a character (a maximal subpart, Unicode 3.9)
  };
  Kind kind;
  size_t num_bytes;     // at least 1
  char32_t code_point;  // kCharacter only
};

// `bytes` must not be empty. Overlong forms, surrogates and code points beyond U+10FFFF are
// kInvalid.
Utf8Step NextUtf8(absl::string_view bytes);

// The offset of the first byte that is not part of a whole character; npos when there is none.
size_t FindInvalidUtf8(absl::string_view bytes);

// Whether every byte is part of a whole character. The JSON writer takes nothing else.
inline bool IsUtf8(absl::string_view bytes) {
  return FindInvalidUtf8(bytes) == absl::string_view::npos;
}

// `bytes` with U+FFFD for whatever is no whole character.
std::string ReplaceInvalidUtf8(absl::string_view bytes);

// `text` in quotes for a message: at most its first `max_bytes` bytes (with "..." for the rest),
// with control characters escaped, and every byte beyond ASCII too where they are not UTF-8.
std::string Quoted(absl::string_view text, size_t max_bytes = 80);

// White_Space of Unicode, which is what \s means in the patterns of tokenizer.json files.
bool IsUnicodeSpace(char32_t code_point);

}  // namespace quern

#endif  // QUERN_CORE_BASE_UTF8_H_
