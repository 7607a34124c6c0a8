#include "kernels/cpu/tables.h"
#include "kernels/kernels.h"

namespace quern::kernels {
namespace {

struct Candidate {
  const KernelTable* table;
  bool (*runs_here)();
};

// Best first; a new instruction set adds its isa_*.cc and a line here. The last runs everywhere.
constexpr Candidate kCandidates[] = {
#if defined(__x86_64__)
    {&avx2::kTable,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
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
