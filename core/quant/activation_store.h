#ifndef QUERN_CORE_QUANT_ACTIVATION_STORE_H_
#define QUERN_CORE_QUANT_ACTIVATION_STORE_H_

// The hidden states of all calibration sequences between two blocks, and how a block moves them
// on. Block-AP has two: the source's stream, whose states are each block's targets, and the
// quantized stream, whose states are its inputs, so that a block learns to undo the errors of
// those before it.

#include <utility>
#include <vector>

#include "core/quant/torch_ops.h"

namespace quern {

// Token ids as a tensor [num_sequences, num_tokens], int64: the first of each sequence from
// `first_sequence` on.
at::Tensor ToTokenTensor(const std::vector<std::vector<int32_t>>& sequences, int first_sequence,
                         int num_sequences, int num_tokens, at::Device device);

class ActivationStore {
 public:
  // States before block 0: rows of `embedding` [vocab_size, hidden_size].
  ActivationStore(const at::Tensor& embedding, const at::Tensor& token_ids)
      : states_(at::embedding(embedding, token_ids)) {}

  int64_t num_sequences() const { return states_.size(0); }
  int64_t num_tokens() const { return states_.size(1); }

  // States of `count` sequences from `begin`, [count, num_tokens, hidden_size]; a view.
  at::Tensor Rows(int64_t begin, int64_t count) const { return states_.narrow(0, begin, count); }

  ActivationStore Copy() const { return ActivationStore(states_.clone()); }

  // Replaces every state by the block's output for it, in place, without gradients. When `moments`
  // is not null, those of the first `num_observed` sequences are added to it.
  void Advance(const ModelConfig& config, const RotaryTables& rotary, int layer,
               const TorchBlock& block, InputMoments* moments = nullptr, int64_t num_observed = 0);

 private:
  explicit ActivationStore(at::Tensor states) : states_(std::move(states)) {}

  at::Tensor states_;
};

}  // namespace quern

#endif  // QUERN_CORE_QUANT_ACTIVATION_STORE_H_
