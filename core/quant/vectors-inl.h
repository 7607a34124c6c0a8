#ifndef QUERN_CORE_QUANT_VECTORS_INL_H_
#define QUERN_CORE_QUANT_VECTORS_INL_H_

// Vectors for loops that are written once and compiled for AVX-512, AVX2 and the baseline: a
// template over Isa, everything inlined into one function of each instruction set, whose code it
// becomes.

#include <cstdint>
#include <cstring>
#include <type_traits>

#define QUERN_INLINE inline __attribute__((always_inline))

namespace quern {

// Vectors of kLanes floats; products are accumulated in kRows x kVectors of them, which all fit
// into the registers.
template <int kLanes_, int kRows_, int kVectors_>
struct Isa {
  static constexpr int kLanes = kLanes_;
  static constexpr int kRows = kRows_;
  static constexpr int kVectors = kVectors_;
  typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
  typedef int32_t Int __attribute__((vector_size(kLanes * sizeof(float))));
  // As it lies in memory.
  typedef float Stored
      __attribute__((vector_size(kLanes * sizeof(float)), aligned(alignof(float)), may_alias));
};

template <typename I>
QUERN_INLINE void Load(const float* from, typename I::Vec& to) {
  to = *reinterpret_cast<const typename I::Stored*>(from);
}

template <typename I>
QUERN_INLINE void Store(const typename I::Vec& from, float* to) {
  *reinterpret_cast<typename I::Stored*>(to) = from;
}

// e^x of x <= 0, within 2e-7 of it; what is below the least normal number becomes that. NaN stays.
// Of a float or a vector of floats, whose whole numbers are Int.
template <typename Vec, typename Int>
QUERN_INLINE void ExpOf(Vec& x) {
  constexpr float kLeast = -87.3f;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  const Vec least = Vec{} + kLeast;
  x = x < least ? least : x;
  const Vec power = x * 1.44269504088896341f;
  const Vec whole = (power + kRounder) - kRounder;
  // ln 2 in two parts, so that what is left is exact.
  const Vec rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  // The Taylor series of e^rest, |rest| < 0.35, with the coefficients of Cephes' expf.
  Vec sum = Vec{} + 1.9875691500e-4f;
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  Int number;
  if constexpr (std::is_same_v<Vec, float>) {
    number = static_cast<Int>(whole);
  } else {
    number = __builtin_convertvector(whole, Int);
  }
  const Int exponent = (number + 127) << 23;
  Vec factor;
  std::memcpy(&factor, &exponent, sizeof(factor));
  x = sum * factor;
}

template <typename I>
QUERN_INLINE void Exp(typename I::Vec& x) {
  ExpOf<typename I::Vec, typename I::Int>(x);
}

using Baseline = Isa<4, 4, 2>;

#if defined(__x86_64__)
#define QUERN_AVX512 __attribute__((target("avx512f,avx2,fma")))
#define QUERN_AVX2 __attribute__((target("avx2,fma")))
using Avx512 = Isa<16, 6, 4>;
using Avx2 = Isa<8, 6, 2>;

inline bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
inline bool HasAvx512() { return HasAvx2() && __builtin_cpu_supports("avx512f"); }
#endif

}  // namespace quern

#endif  // QUERN_CORE_QUANT_VECTORS_INL_H_
