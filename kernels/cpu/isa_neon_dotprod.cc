// The products of CPUs with NEON's dot products (FEAT_DotProd): the table "neon_dotprod".

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/tables.h"

namespace quern::kernels::neon_dotprod {
namespace {
// clang-format off
#include "kernels/cpu/simd_neon-inl.h"
#include "kernels/cpu/tiles-inl.h"
#include "kernels/cpu/blocking-inl.h"
#include "kernels/cpu/activations-inl.h"
#include "kernels/cpu/rows_neon-inl.h"
#include "kernels/cpu/dot_neon_dotprod-inl.h"
#include "kernels/cpu/packed_matmul-inl.h"
#include "kernels/cpu/limits-inl.h"
// clang-format on
}  // namespace

KernelTable Extend(KernelTable table) {
  table.name = "neon_dotprod";
  table.matmul = Matmul;
  table.read = Read;
  table.multiply_bytes = MultiplyBytes;
  table.multiply_floats = MultiplyFloats;
  return table;
}

}  // namespace quern::kernels::neon_dotprod
