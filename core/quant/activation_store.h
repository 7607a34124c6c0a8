#ifndef QUERN_CORE_QUANT_ACTIVATION_STORE_H_
#define QUERN_CORE_QUANT_ACTIVATION_STORE_H_

// The hidden states of all calibration sequences between two blocks, and how a block moves them
// on. Block-AP has two: the source's stream, whose states are each block's targets, and the
// quantized stream, whose states are its inputs, so that a block learns to undo the errors of
// those before it.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/scratch_file.h"
#include "core/quant/torch_ops.h"

namespace quern {

// Token ids as a tensor [num_sequences, num_tokens], int64: the first of each sequence from
// `first_sequence` on.
at::Tensor ToTokenTensor(const std::vector<std::vector<int32_t>>& sequences, int first_sequence,
                         int num_sequences, int num_tokens, at::Device device);

// What the stores of a run share: how states are kept, and how much memory all of them may take.
// Must outlive its stores. Not thread-safe.
class ActivationSpace {
 public:
  // type: kFloat or kBFloat16. A store that does not fit into what is left of `memory_bytes` lies
  // in a file in `directory`.
  ActivationSpace(at::ScalarType type, int64_t memory_bytes, std::string directory)
      : type_(type), memory_bytes_(memory_bytes), directory_(std::move(directory)) {}

 private:
  friend class ActivationStore;
  at::ScalarType type_;
  int64_t memory_bytes_;  // left
  std::string directory_;
};

// Movable, not copyable. Rows and Observe throw StatusError when a file cannot be read, what writes
// when it cannot be written; the disk's space is taken when a store is made, which throws
// RESOURCE_EXHAUSTED where there is not enough.
class ActivationStore {
 public:
  // States before block 0: rows of `embedding` [vocab_size, hidden_size], on its device. Without a
  // space: floats in memory.
  ActivationStore(const at::Tensor& embedding, const at::Tensor& token_ids,
                  ActivationSpace* space = nullptr);

  int64_t num_sequences() const { return shape_[0]; }
  int64_t num_tokens() const { return shape_[1]; }

  // States of `count` sequences from `begin`, [count, num_tokens, hidden_size], floats: a view
  // where the store holds floats in memory, else a copy. What follows them is read ahead.
  at::Tensor Rows(int64_t begin, int64_t count) const;

  ActivationStore Copy() const;

  // Replaces every state by the block's output for it, in place, without gradients. When `moments`
  // is not null, those of the first `num_observed` sequences are added to it.
  void Advance(const ModelConfig& config, const RotaryTables& rotary, int layer,
               const TorchBlock& block, InputMoments* moments = nullptr, int64_t num_observed = 0);
  // The moments of all sequences, which stay where they are.
  void Observe(const ModelConfig& config, const RotaryTables& rotary, int layer,
               const TorchBlock& block, InputMoments& moments) const;

 private:
  // Room for states, not filled.
  ActivationStore(std::vector<int64_t> shape, at::Device device, ActivationSpace* space);

  int64_t row_bytes() const;
  int64_t RowsAtOnce() const;
  void Store(int64_t begin, const at::Tensor& states);

  std::vector<int64_t> shape_;  // [num_sequences, num_tokens, hidden_size]
  at::Device device_;
  at::ScalarType type_ = at::kFloat;
  ActivationSpace* space_ = nullptr;
  at::Tensor states_;                                        // where there is no file
  std::unique_ptr<void, std::function<void(void*)>> lease_;  // gives the memory back to the space
  std::unique_ptr<ScratchFile> file_;
};

}  // namespace quern

#endif  // QUERN_CORE_QUANT_ACTIVATION_STORE_H_
