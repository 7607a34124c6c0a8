// The products of CPUs with AVX-512 F, BW, DQ, VL and VNNI, and GFNI: the table "avx512_vnni_gfni".

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/tables.h"

namespace quern::kernels::avx512_vnni_gfni {
namespace {
// clang-format off
#include "kernels/cpu/simd_avx2-inl.h"
#include "kernels/cpu/tiles-inl.h"
#include "kernels/cpu/blocking-inl.h"
#include "kernels/cpu/activations-inl.h"
#include "kernels/cpu/rows_avx512-inl.h"
#include "kernels/cpu/dot_int32-inl.h"
#include "kernels/cpu/packed_matmul-inl.h"
#include "kernels/cpu/dense_matmul-inl.h"
#include "kernels/cpu/elementwise-inl.h"
#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/quantized_kv-inl.h"
#include "kernels/cpu/limits-inl.h"
// clang-format on
}  // namespace

KernelTable Extend(KernelTable table) {
  table.name = "avx512_vnni_gfni";
  table.matmul = Matmul;
  table.matmul_dense = MatmulDense;
  table.attention_scratch_floats = AttentionScratchFloats;
  table.attention = Attention;
  table.attention_quantized = AttentionQuantized;
  table.read = Read;
  table.multiply_bytes = MultiplyBytes;
  table.multiply_floats = MultiplyFloats;
  return table;
}

}  // namespace quern::kernels::avx512_vnni_gfni
