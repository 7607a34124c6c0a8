#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels/cpu/tables.h"
#include "kernels/kernels.h"

namespace quern::kernels {
namespace {

struct Candidate {
  const KernelTable* table;
  bool (*runs_here)();
};

#if defined(__x86_64__)
// CPUID leaf 1, ECX bit 29. Clang 14's __builtin_cpu_supports does not know the name.
bool HasF16c() {
  unsigned int eax = 0;
  unsigned int ebx = 0;
  unsigned int ecx = 0;
  unsigned int edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}

// The builtins also ask whether the operating system keeps the wide registers.
bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
}
#endif

// Best first; a new instruction set adds its isa_*.cc and a line here. The last runs everywhere.
constexpr Candidate kCandidates[] = {
#if defined(__x86_64__)
    {&avx2::kTable, HasAvx2},
#endif
    {&scalar::kTable, [] { return true; }},
};

}  // namespace

const KernelTable& BestKernels() {
  static const KernelTable& best = []() -> const KernelTable& {
    for (const Candidate& candidate : kCandidates) {
      if (candidate.runs_here()) return *candidate.table;
    }
    return scalar::kTable;
  }();
  return best;
}

const KernelTable* FindKernels(absl::string_view name) {
  for (const Candidate& candidate : kCandidates) {
    if (name == candidate.table->name && candidate.runs_here()) return candidate.table;
  }
  return nullptr;
}

}  // namespace quern::kernels
