#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <vector>

#include "kernels/cpu/tables.h"
#include "kernels/kernels.h"

namespace quern::kernels {
namespace {

#if defined(__x86_64__)
// Bits that __builtin_cpu_supports of clang 14 has no name for. Whether the operating system keeps
// the registers is asked by the builtins beside them.
bool HasF16c() {
  unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}
[[maybe_unused]] bool HasVexVnni() {
  unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
}

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
}
[[maybe_unused]] bool HasAvx512Vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

}  // namespace

absl::Span<const KernelTable* const> AvailableKernels() {
  static const auto& tables = *[] {
    auto* available = new std::vector<const KernelTable*>;
    [[maybe_unused]] const auto add = [&](KernelTable (*extend)(KernelTable),
                                          const KernelTable& base) {
      available->push_back(new KernelTable(extend(base)));
    };
#if defined(__x86_64__)
    if (HasAvx2()) {
#ifdef QUERN_VNNI_TABLES
      if (HasAvx512Vnni()) {
        // On AMD's Zen 4 vgf2p8affineqb takes turns with vpdpbusd on the same units, shifts do not:
        // products of 8 tokens were 1.1 times as fast without it (`quern bench kernels`).
        const bool has_gfni = __builtin_cpu_supports("gfni") != 0;
        const bool prefers_shifts = __builtin_cpu_is("amd") != 0;
        if (has_gfni && !prefers_shifts) add(avx512_vnni_gfni::Extend, avx2::kTable);
        add(avx512_vnni::Extend, avx2::kTable);
        if (has_gfni && prefers_shifts) add(avx512_vnni_gfni::Extend, avx2::kTable);
      }
      if (HasVexVnni()) add(avx_vnni::Extend, avx2::kTable);
#endif
      available->push_back(&avx2::kTable);
    }
#elif defined(__aarch64__)
    if ((getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0) add(neon_i8mm::Extend, neon::kTable);
    if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) add(neon_dotprod::Extend, neon::kTable);
    available->push_back(&neon::kTable);
#endif
    available->push_back(&scalar::kTable);
    return available;
  }();
  return tables;
}

const KernelTable* FindKernels(absl::string_view name) {
  for (const KernelTable* table : AvailableKernels()) {
    if (name == table->name) return table;
  }
  return nullptr;
}

}  // namespace quern::kernels
