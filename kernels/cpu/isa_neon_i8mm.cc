// The products of CPUs with NEON's matrix products of int8 (FEAT_I8MM): the table "neon_i8mm".

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/tables.h"

namespace quern::kernels::neon_i8mm {
namespace {
// clang-format off
#include "kernels/cpu/simd_neon-inl.h"
#include "kernels/cpu/tiles-inl.h"
#include "kernels/cpu/blocking-inl.h"
#include "kernels/cpu/activations-inl.h"
#include "kernels/cpu/rows_neon-inl.h"
#include "kernels/cpu/dot_neon_i8mm-inl.h"
#include "kernels/cpu/dot_int32-inl.h"
#include "kernels/cpu/packed_matmul-inl.h"
#include "kernels/cpu/limits-inl.h"
// clang-format on
}  // namespace

KernelTable Extend(KernelTable table) {
  table.name = "neon_i8mm";
  table.matmul = Matmul;
  table.read = Read;
  table.multiply_bytes = MultiplyBytes;
  table.multiply_floats = MultiplyFloats;
  return table;
}

}  // namespace quern::kernels::neon_i8mm
