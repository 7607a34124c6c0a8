#include "core/quant/attention.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/quant/attention_loops.h"

namespace quern {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Zeros behind the rows of heads, which lie along the last dimension.
at::Tensor Padded(const at::Tensor& x) {
  const int64_t missing = PadForAttention(x.size(3)) - x.size(3);
  return (missing == 0 ? x : at::constant_pad_nd(x, {0, missing})).contiguous();
}

// [num_sequences, heads, dim, padded num_tokens].
at::Tensor Transposed(const at::Tensor& padded) {
  const at::Tensor x = padded.transpose(2, 3);
  const int64_t missing = PadForAttention(x.size(3)) - x.size(3);
  return (missing == 0 ? x : at::constant_pad_nd(x, {0, missing})).contiguous();
}

class Attention : public Function<Attention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const AttentionLoops* loops) {
    RECORD_USER_SCOPE_WITH_INPUTS("quern::attention", std::vector<c10::IValue>({q, k}));
    Heads heads(Padded(q), Padded(k), Padded(v), q.size(3));
    const at::Tensor keys = Transposed(heads.k);
    at::Tensor out =
        at::empty({q.size(0), q.size(2), q.size(1), heads.q.size(3)}, heads.q.options());
    at::Tensor log_sums = at::empty({q.size(0), q.size(1), q.size(2)}, q.options());
    const int64_t num_blocks = (heads.num_tokens() + kAttentionRows - 1) / kAttentionRows;
    at::parallel_for(0, heads.count() * num_blocks, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(AttentionScratchFloats(heads.num_tokens()));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t head = i / num_blocks;
        const int64_t row = i % num_blocks * kAttentionRows;
        loops->attend(heads.At(head, keys), row, std::min(row + kAttentionRows, heads.num_tokens()),
                      scratch.data(), heads.OutputOf(head, out), Row(log_sums, head));
      }
    });
    context->saved_data["head_dim"] = q.size(3);
    context->saved_data["loops"] = loops - SupportedAttentionLoops().data();
    context->save_for_backward({heads.q, heads.k, heads.v, keys, out, log_sums});
    return out.narrow(3, 0, q.size(3)).flatten(2);
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    const variable_list saved = context->get_saved_variables();
    RECORD_USER_SCOPE_WITH_INPUTS("quern::attention backward",
                                  std::vector<c10::IValue>({saved[0], saved[1]}));
    const int64_t head_dim = context->saved_data["head_dim"].toInt();
    const AttentionLoops* const loops =
        &SupportedAttentionLoops()[context->saved_data["loops"].toInt()];
    const Heads heads(saved[0], saved[1], saved[2], head_dim);
    const at::Tensor& keys = saved[3];
    const at::Tensor& out = saved[4];
    const at::Tensor& log_sums = saved[5];
    const int64_t num_tokens = heads.num_tokens();
    const at::Tensor grad_out =
        Padded(grad_outputs[0].reshape({out.size(0), num_tokens, out.size(2), head_dim}));
    const at::Tensor values = Transposed(heads.v);
    // Rows of a head are cut in two where there are few heads: the gradients of keys and values,
    // which all rows add to, are then sums of two.
    constexpr int64_t kManyHeads = 32;
    const int64_t num_parts = heads.count() < kManyHeads && num_tokens > kAttentionRows ? 2 : 1;
    // Both have about as many scores.
    const int64_t middle = num_parts == 1 ? num_tokens
                                          : (num_tokens * 7 / 10 + kAttentionRows - 1) /
                                                kAttentionRows * kAttentionRows;
    at::Tensor grad_q = at::empty_like(heads.q);
    const std::vector<int64_t> shape = {out.size(0), out.size(2), num_parts, num_tokens,
                                        out.size(3)};
    at::Tensor grad_k = at::zeros(shape, out.options());
    at::Tensor grad_v = at::zeros(shape, out.options());
    at::parallel_for(0, heads.count() * num_parts, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(AttentionScratchFloats(num_tokens));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t head = i / num_parts;
        const bool first = i % num_parts == 0;
        const AttentionGrads grads{.keys = Row(heads.k, heads.KeyHead(head)),
                                   .transposed_values = Row(values, heads.KeyHead(head)),
                                   .out = heads.OutputOf(head, out),
                                   .log_sums = Row(log_sums, head),
                                   .grad_out = heads.OutputOf(head, grad_out),
                                   .grad_queries = Row(grad_q, head),
                                   .grad_keys = Row(grad_k, i, 3),
                                   .grad_values = Row(grad_v, i, 3)};
        loops->backpropagate(heads.At(head, keys), grads, first ? 0 : middle,
                             first ? std::min(middle, num_tokens) : num_tokens, scratch.data());
      }
    });
    // Over the parts, and the queries' heads that share one of the keys.
    const auto sum = [&](const at::Tensor& parts) {
      return parts.view({out.size(0), heads.k.size(1), -1, num_tokens, out.size(3)})
          .sum(2)
          .narrow(3, 0, head_dim);
    };
    return {grad_q.narrow(3, 0, head_dim), sum(grad_k), sum(grad_v), at::Tensor()};
  }

 private:
  // The part of a contiguous tensor that lies below one index over its first `num_dims` dimensions.
  static float* Row(const at::Tensor& x, int64_t index, int64_t num_dims = 2) {
    int64_t size = x.numel();
    for (int64_t dim = 0; dim < num_dims; ++dim) size /= x.size(dim);
    return x.data_ptr<float>() + index * size;
  }

  struct Heads {
    Heads(at::Tensor padded_q, at::Tensor padded_k, at::Tensor padded_v, int64_t head_dim)
        : q(std::move(padded_q)),
          k(std::move(padded_k)),
          v(std::move(padded_v)),
          scale(static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim)))) {}

    int64_t num_tokens() const { return q.size(2); }
    // Over all sequences.
    int64_t count() const { return q.size(0) * q.size(1); }
    // The head of the keys that a head of the queries looks at.
    int64_t KeyHead(int64_t head) const {
      const int64_t sequence = head / q.size(1);
      return sequence * k.size(1) + head % q.size(1) / (q.size(1) / k.size(1));
    }
    // Where a head's part of [num_sequences, num_tokens, heads, dim] begins.
    float* OutputOf(int64_t head, const at::Tensor& out) const {
      return Row(out, head / q.size(1), 1) + head % q.size(1) * q.size(3);
    }
    AttentionHead At(int64_t head, const at::Tensor& transposed_keys) const {
      return {.num_tokens = num_tokens(),
              .dim = q.size(3),
              .out_stride = q.size(1) * q.size(3),
              .scale = scale,
              .queries = Row(q, head),
              .transposed_keys = Row(transposed_keys, KeyHead(head)),
              .values = Row(v, KeyHead(head))};
    }

    const at::Tensor q, k, v;  // padded
    const float scale;
  };
};

}  // namespace

at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const AttentionLoops& loops) {
  if (q.is_cpu()) return Attention::apply(q, k, v, &loops);
  const int64_t share = q.size(1) / k.size(1);
  const at::Tensor out = at::scaled_dot_product_attention(
      q, k.repeat_interleave(share, 1), v.repeat_interleave(share, 1), /*attn_mask=*/{},
      /*dropout_p=*/0.0, /*is_causal=*/true);
  return out.transpose(1, 2).flatten(2);
}

}  // namespace quern
