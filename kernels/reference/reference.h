#ifndef QUERN_KERNELS_REFERENCE_REFERENCE_H_
#define QUERN_KERNELS_REFERENCE_REFERENCE_H_

// What each kernel means, in double precision and the most obvious order. Slow; for tests.

#include <cstdint>
#include <vector>

#include "kernels/kernel_table.h"
#include "kernels/packed_matrix.h"

namespace quern::kernels::reference {

float HalfToFloat(uint16_t half);
// The code or zero point `index` of a packed sequence, read bit by bit.
int CodeAt(const uint32_t* words, int bits, int64_t index);

// Both matrices as numbers, [rows][cols].
std::vector<double> Dequantize(const PackedMatrix& w);
std::vector<double> Dequantize(const DenseMatrix& w);

// One token [format.cols] as the low-bit kernels see it: rounded to integers in groups, and back.
std::vector<double> RoundActivations(const ActivationFormat& format, const float* x);

// One output of y = x * W^T, and the sum of the absolute values of its terms, which rounding errors
// are measured against.
struct Product {
  double value = 0;
  double magnitude = 0;
};
Product Dot(const double* weights, const double* x, int cols);

std::vector<double> RmsNorm(const float* x, const float* weight, int n, double eps);
// One head; cos_sin as in KernelTable::rope.
std::vector<double> Rope(const float* head, int head_dim, const float* cos_sin);
double SiluMul(double gate, double up);
// [num_heads * head_dim]
std::vector<double> Attention(const PagedKv& kv, const AttentionShape& shape, int position,
                              const float* query);

// One head of a page as numbers, each [kQuantizedPageTokens][head_dim].
struct KvHead {
  std::vector<double> keys;
  std::vector<double> values;
};
// Half floats of the same shape as quantize_kv rounds them.
KvHead RoundKv(int bits, int head_dim, const uint16_t* keys, const uint16_t* values);
// What a head's region of a quantized page means, read code by code.
KvHead DequantizeKv(int bits, int head_dim, const uint8_t* head);
// [num_heads * head_dim]; `position` is in the open page.
std::vector<double> Attention(const QuantizedKv& kv, const AttentionShape& shape, int position,
                              const float* query);

}  // namespace quern::kernels::reference

#endif  // QUERN_KERNELS_REFERENCE_REFERENCE_H_
