#ifndef QUERN_KERNELS_KERNELS_H_
#define QUERN_KERNELS_KERNELS_H_

// The public face of the kernels: plain functions on raw memory, one table per instruction set.
// Kernels know no threads: the caller splits rows (multiples of kRowBlock) over its own.
//
// Batch invariance is a contract of every function here: the numbers of one token are bit-equal
// whether it comes alone or with others, in a batch of any size, and however a prefill was cut.
// Sums inside a group are exact integers; groups are added in ascending order with one rounding
// rule; dense products are one chain of multiply-adds per output (fused where the CPU can), in
// ascending order of the input; attention walks the positions in ascending order.

#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include "kernels/kernel_table.h"

namespace quern::kernels {

// The tables this CPU can run, best first; the last, "scalar", runs everywhere.
absl::Span<const KernelTable* const> AvailableKernels();
inline const KernelTable& BestKernels() { return *AvailableKernels().front(); }
// By name ("avx2", "scalar"); null when there is none or this CPU cannot run it.
const KernelTable* FindKernels(absl::string_view name);

}  // namespace quern::kernels

#endif  // QUERN_KERNELS_KERNELS_H_
