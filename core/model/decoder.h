#ifndef QUERN_CORE_MODEL_DECODER_H_
#define QUERN_CORE_MODEL_DECODER_H_

// The decoder, once. Training implements its operations with LibTorch tensors (autograd works
// through them), serving with kernels. The operations are as coarse as serving can fuse them and
// as fine as training can differentiate them. Positions, masks and the KV cache belong to the
// `Ops` object, which is made per step, so the graph stays free of them; optional features
// (biases, q/k norm, RoPE scaling, tied embeddings) are looked up in the ModelConfig by the
// operations.

#include <concepts>
#include <utility>

namespace quern {

template <typename Ops>
concept DecoderOps = requires(Ops ops, typename Ops::Tensor x, typename Ops::Qkv qkv,
                              const typename Ops::Block& block, const typename Ops::Model& model,
                              int layer) {
  // Embedding rows of the step's tokens. -> [num_tokens, hidden_size]
  { ops.Embed(model) } -> std::same_as<typename Ops::Tensor>;
  // RMSNorm, then the q, k and v projections (with bias, q/k norm and RoPE where the config says
  // so). [num_tokens, hidden_size] -> q, k, v.
  { ops.ProjectQkv(layer, block, x) } -> std::same_as<typename Ops::Qkv>;
  // Causal attention over what `layer` has cached and these tokens.
  // -> [num_tokens, num_attention_heads * head_dim]
  { ops.Attend(layer, std::move(qkv)) } -> std::same_as<typename Ops::Tensor>;
  // residual + o_proj(attention).
  { ops.AddAttentionOutput(block, std::move(x), x) } -> std::same_as<typename Ops::Tensor>;
  // RMSNorm, then silu(gate) * up. -> [num_tokens, intermediate_size]
  { ops.GatedMlp(block, x) } -> std::same_as<typename Ops::Tensor>;
  // residual + down_proj(mlp).
  { ops.AddMlpOutput(block, std::move(x), x) } -> std::same_as<typename Ops::Tensor>;
  // Final RMSNorm and output head -> logits of the rows the step asks for.
  { ops.Head(model, x) } -> std::same_as<typename Ops::Tensor>;
};

// Returns the output of transformer block `layer` for hidden states `x`, [num_tokens,
// hidden_size]; the result has the same shape.
template <DecoderOps Ops>
typename Ops::Tensor RunBlock(Ops& ops, int layer, const typename Ops::Block& block,
                              typename Ops::Tensor x) {
  auto attention = ops.Attend(layer, ops.ProjectQkv(layer, block, x));
  x = ops.AddAttentionOutput(block, std::move(x), attention);
  auto mlp = ops.GatedMlp(block, x);
  return ops.AddMlpOutput(block, std::move(x), mlp);
}

// Tokens to logits: embedding, every block in order, head. `model.block(i)` is block i.
template <DecoderOps Ops>
typename Ops::Tensor RunDecoder(Ops& ops, const typename Ops::Model& model, int num_layers) {
  auto x = ops.Embed(model);
  for (int layer = 0; layer < num_layers; ++layer) {
    x = RunBlock(ops, layer, model.block(layer), std::move(x));
  }
  return ops.Head(model, x);
}

}  // namespace quern

#endif  // QUERN_CORE_MODEL_DECODER_H_
