#ifndef QUERN_CORE_QUANT_ELEMENTWISE_H_
#define QUERN_CORE_QUANT_ELEMENTWISE_H_

// A block's operations between products and its loss, differentiable, each in one pass over the
// states: on the CPU with the loops of elementwise_loops.h, elsewhere with LibTorch's operations.

#include "core/quant/torch_headers.h"

namespace quern {

// Cosines and sines of the rotary angles, [num_tokens, 1, head_dim / 2].
struct RotaryTables {
  at::Tensor cosines;
  at::Tensor sines;
};

// silu(gate) * up; both float, or both bfloat16.
at::Tensor GatedSilu(const at::Tensor& gate, const at::Tensor& up);

// x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019, "Root Mean Square Layer
// Normalization"); floats.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

// Mean over all elements of (output - target)^2.
at::Tensor MeanSquareError(const at::Tensor& output, const at::Tensor& target);
// Mean over tokens, whose states are the last dimension, of |output - target|^2 / |target|^2.
at::Tensor MeanRelativeError(const at::Tensor& output, const at::Tensor& target);

// x: [num_sequences, num_tokens, heads, head_dim], float or bfloat16. Returns
// [num_sequences, heads, num_tokens, head_dim] in floats, each token's heads turned by its angles
// where `rotary` is not null: element i with element i + head_dim / 2.
at::Tensor SplitHeads(const at::Tensor& x, const RotaryTables* rotary);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_ELEMENTWISE_H_
