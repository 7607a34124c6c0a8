#ifndef QUERN_KERNELS_CPU_TABLES_H_
#define QUERN_KERNELS_CPU_TABLES_H_

// The tables that isa_*.cc define; select.cc chooses among them. A new instruction set adds its
// isa_<name>.cc, a name here and in CMakeLists.txt, and what a CPU must have in select.cc.

#include "kernels/kernel_table.h"

// Runs `X(bits)` for every width of codes; dispatch, tests and benchmarks are made from it.
#define QUERN_FOR_EACH_WIDTH(X) X(2) X(3) X(4) X(8)

namespace quern::kernels {

namespace scalar {
extern const KernelTable kTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable kTable;
}
// The table `avx2` with the products, which read the same layouts, in further instructions.
namespace avx_vnni {
KernelTable Extend(KernelTable avx2);
}
namespace avx512_vnni {
KernelTable Extend(KernelTable avx2);
}
namespace avx512_vnni_gfni {
KernelTable Extend(KernelTable avx2);
}
#elif defined(__aarch64__)
namespace neon {
extern const KernelTable kTable;
}
// The table `neon` with the products in further instructions.
namespace neon_dotprod {
KernelTable Extend(KernelTable neon);
}
namespace neon_i8mm {
KernelTable Extend(KernelTable neon);
}
#endif

}  // namespace quern::kernels

#endif  // QUERN_KERNELS_CPU_TABLES_H_
