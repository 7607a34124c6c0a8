// The kernels for CPUs with NEON, which every AArch64 has: the table "neon".

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/tables.h"

namespace quern::kernels::neon {
namespace {
// clang-format off
#include "kernels/cpu/simd_neon-inl.h"
#include "kernels/cpu/tiles-inl.h"
#include "kernels/cpu/blocking-inl.h"
#include "kernels/cpu/activations-inl.h"
#include "kernels/cpu/rows_neon-inl.h"
#include "kernels/cpu/dot_int16-inl.h"
#include "kernels/cpu/packed_matmul-inl.h"
#include "kernels/cpu/dense_matmul-inl.h"
#include "kernels/cpu/elementwise-inl.h"
#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/quantized_kv-inl.h"
#include "kernels/cpu/limits-inl.h"
#include "kernels/cpu/table-inl.h"
// clang-format on
}  // namespace

constinit const KernelTable kTable = MakeTable("neon");

}  // namespace quern::kernels::neon
