#ifndef QUERN_CORE_QUANT_BFLOAT16_H_
#define QUERN_CORE_QUANT_BFLOAT16_H_

// Elements that loops over floats read and write: floats, or bfloat16. Inlined into functions of
// each instruction set, where core/base/half.h's would be calls of baseline code.

#include <cstdint>

namespace quern {

enum class Bfloat16Bits : uint16_t {};

inline __attribute__((always_inline)) float ToFloat(float value) { return value; }
inline __attribute__((always_inline)) float ToFloat(Bfloat16Bits value) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(value) << 16);
}

inline __attribute__((always_inline)) void StoreFloat(float value, float* to) { *to = value; }
// To nearest, ties to even; a NaN as arithmetic makes it stays one.
inline __attribute__((always_inline)) void StoreFloat(float value, Bfloat16Bits* to) {
  const auto bits = __builtin_bit_cast(uint32_t, value);
  *to = static_cast<Bfloat16Bits>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace quern

#endif  // QUERN_CORE_QUANT_BFLOAT16_H_
