#ifndef QUERN_CORE_BASE_UTF8_H_
#define QUERN_CORE_BASE_UTF8_H_

#include <absl/strings/string_view.h>

#include <cstddef>
#include <cstdint>

namespace quern {

// Whether `bytes` is well-formed UTF-8 (Unicode 15, table 3-7: no overlong forms, no surrogates,
// nothing above U+10FFFF). The JSON writer takes nothing else.
inline bool IsUtf8(absl::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size()) {
    const auto lead = static_cast<uint8_t>(bytes[i++]);
    if (lead < 0x80) continue;
    if (lead < 0xc2 || lead > 0xf4) return false;
    const int num_trailing = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    // The first trailing byte is narrower where the rest would be overlong, a surrogate or too big.
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    for (int k = 0; k < num_trailing; ++k) {
      if (i == bytes.size()) return false;
      const auto trail = static_cast<uint8_t>(bytes[i++]);
      if (trail < low || trail > high) return false;
      low = 0x80;
      high = 0xbf;
    }
  }
  return true;
}

}  // namespace quern

#endif  // QUERN_CORE_BASE_UTF8_H_
