#ifndef QUERN_KERNELS_CPU_TABLES_H_
#define QUERN_KERNELS_CPU_TABLES_H_

// The tables that isa_*.cc define; select.cc chooses among them.

#include "kernels/kernel_table.h"

// Runs `X(bits)` for every width of codes; dispatch, tests and benchmarks are made from it.
#define QUERN_FOR_EACH_WIDTH(X) X(2) X(3) X(4) X(8)

namespace quern::kernels {

namespace scalar {
extern const KernelTable kTable;
}
namespace avx2 {
extern const KernelTable kTable;
}

}  // namespace quern::kernels

#endif  // QUERN_KERNELS_CPU_TABLES_H_
