#ifndef QUERN_CORE_QUANT_ATTENTION_H_
#define QUERN_CORE_QUANT_ATTENTION_H_

#include "core/quant/attention_loops.h"
#include "core/quant/torch_headers.h"

namespace quern {

// Causal attention with scores over the square root of the head dimension, differentiable; scores
// are never held as a whole. q: [num_sequences, heads, num_tokens, head_dim], k and v the same with
// heads that divide q's, each for as many of q's; floats. Returns
// [num_sequences, num_tokens, heads * head_dim]. On the CPU with `loops`, elsewhere with
// LibTorch's.
at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const AttentionLoops& loops = SupportedAttentionLoops()[0]);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_ATTENTION_H_
