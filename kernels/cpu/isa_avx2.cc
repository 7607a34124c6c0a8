// The kernels for CPUs with AVX2, FMA and F16C: the table "avx2".

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/tables.h"

namespace quern::kernels::avx2 {
namespace {
// clang-format off
#include "kernels/cpu/simd_avx2-inl.h"
#include "kernels/cpu/tiles-inl.h"
#include "kernels/cpu/blocking-inl.h"
#include "kernels/cpu/activations-inl.h"
#include "kernels/cpu/rows_8-inl.h"
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

constinit const KernelTable kTable = MakeTable("avx2");

}  // namespace quern::kernels::avx2
