#ifndef QUERN_CORE_QUANT_ELEMENTWISE_LOOPS_H_
#define QUERN_CORE_QUANT_ELEMENTWISE_LOOPS_H_

// What a block does to its states between products, forwards and backwards, each in one pass over
// them. Elements are float or bfloat16; what is computed from them is in
// floats. Plain loops, without LibTorch.

#include <cstdint>

#include "core/quant/bfloat16.h"

namespace quern {

// out = silu(gate) * up, silu(x) = x / (1 + e^-x) (Shazeer 2020, "GLU Variants Improve
// Transformer").
void GatedSiluForward(const float* gate, const float* up, int64_t count, float* out);
void GatedSiluForward(const Bfloat16Bits* gate, const Bfloat16Bits* up, int64_t count,
                      Bfloat16Bits* out);

// The gradients of gate and up from the output's.
void GatedSiluBackward(const float* gate, const float* up, const float* grad, int64_t count,
                       float* grad_gate, float* grad_up);
void GatedSiluBackward(const Bfloat16Bits* gate, const Bfloat16Bits* up, const Bfloat16Bits* grad,
                       int64_t count, Bfloat16Bits* grad_gate, Bfloat16Bits* grad_up);

// out = x * inverse_rms * weight of rows [row_begin, row_end) of `cols` values; inverse_rms, one
// for each row, is written: 1 / sqrt(mean of x^2 + epsilon).
void RmsNormForward(const float* x, const float* weight, float epsilon, int64_t cols,
                    int64_t row_begin, int64_t row_end, float* inverse_rms, float* out);

// The gradient of x from the output's, and what these rows add to the weight's, [cols].
void RmsNormBackward(const float* x, const float* weight, const float* inverse_rms,
                     const float* grad, int64_t cols, int64_t row_begin, int64_t row_end,
                     float* grad_x, float* grad_weight);

// What rows [row_begin, row_end) are off their targets: the squares' sums of output - target and of
// target into `errors` and `sizes`, one for each row.
void SquareErrors(const float* output, const float* target, int64_t cols, int64_t row_begin,
                  int64_t row_end, double* errors, double* sizes);

// grad = factor * (output - target), a factor for each row.
void SquareErrorsBackward(const float* output, const float* target, const float* factors,
                          int64_t cols, int64_t row_begin, int64_t row_end, float* grad);

// Heads of one kind in a sequence's states: as projections leave them, [num_tokens, num_heads,
// head_dim], and as attention reads them, [num_heads, num_tokens, head_dim]. With tables
// [num_tokens, head_dim / 2] of the rotary angles element i of a head turns with element
// i + head_dim / 2 (RoFormer, Su et al. 2021, in the layout of Llama's checkpoints); without, null,
// it stays as it is.
struct HeadLayout {
  int64_t num_tokens;
  int64_t num_heads;
  int64_t head_dim;
  const float* cosines;
  const float* sines;
};

// Of tokens [token_begin, token_end): states to heads, and gradients of heads to those of states.
void SplitHeads(const HeadLayout& layout, const float* states, int64_t token_begin,
                int64_t token_end, float* heads);
void SplitHeads(const HeadLayout& layout, const Bfloat16Bits* states, int64_t token_begin,
                int64_t token_end, float* heads);
void SplitHeadsBackward(const HeadLayout& layout, const float* grad_heads, int64_t token_begin,
                        int64_t token_end, float* grad_states);
void SplitHeadsBackward(const HeadLayout& layout, const float* grad_heads, int64_t token_begin,
                        int64_t token_end, Bfloat16Bits* grad_states);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_ELEMENTWISE_LOOPS_H_
