#ifndef QUERN_CORE_QUANT_TORCH_OPS_H_
#define QUERN_CORE_QUANT_TORCH_OPS_H_

// The decoder's operations (core/model/decoder.h) with LibTorch tensors, for a batch of sequences
// of one length that all start at position 0: x is [num_sequences, num_tokens, hidden_size].

#include <absl/status/statusor.h>

#include <array>
#include <string>
#include <vector>

#include "core/checkpoint/checkpoint.h"
#include "core/model/decoder.h"
#include "core/model/model_config.h"
#include "core/quant/fake_quantizer.h"
#include "core/quant/torch_headers.h"

namespace quern {

// The matrices of a block, in the order of BlockTensors.
enum BlockMatrix { kQProj, kKProj, kVProj, kOProj, kGateProj, kUpProj, kDownProj };
inline constexpr int kNumBlockMatrices = 7;
// E.g. "self_attn.q_proj"; ".weight" and ".bias" follow.
const char* BlockMatrixName(BlockMatrix matrix);

// y = x * W^T + bias. W is `weight`, or `coded` under `scale` where `weight` is undefined.
struct TorchLinear {
  at::Tensor weight;  // [out_features, in_features]
  at::Tensor bias;    // [out_features], or undefined
  CodedMatrix coded;
  at::Tensor scale;
};

struct TorchBlock {
  std::array<TorchLinear, kNumBlockMatrices> linears;
  at::Tensor input_norm;  // [hidden_size]
  at::Tensor post_attention_norm;
  at::Tensor q_norm;  // [head_dim], or undefined
  at::Tensor k_norm;
};

struct TorchModel {
  at::Tensor embedding;   // [vocab_size, hidden_size]
  at::Tensor final_norm;  // [hidden_size]
  at::Tensor head;        // [vocab_size, hidden_size]
  std::vector<TorchBlock> blocks;

  const TorchBlock& block(int layer) const { return blocks[layer]; }
};

// Sum over tokens of the squares of what goes into the matrices of a block, [in_features] each:
// q, k and v share one, gate and up another.
struct InputSquares {
  std::array<at::Tensor, kNumBlockMatrices> sums;
  int64_t num_tokens = 0;
};

// Cosines and sines of the rotary angles, [num_tokens, 1, head_dim / 2].
struct RotaryTables {
  at::Tensor cosines;
  at::Tensor sines;
};
RotaryTables MakeRotaryTables(const ModelConfig& config, int num_tokens, at::Device device);

class TorchOps {
 public:
  using Tensor = at::Tensor;
  using Block = TorchBlock;
  using Model = TorchModel;
  struct Qkv {
    at::Tensor q, k, v;  // [num_sequences, heads, num_tokens, head_dim]
  };

  // config and rotary must outlive this. token_ids: [num_sequences, num_tokens] int64, read by
  // Embed alone. squares: added to when not null.
  TorchOps(const ModelConfig& config, const RotaryTables& rotary, at::Tensor token_ids = {},
           InputSquares* squares = nullptr)
      : config_(config), rotary_(rotary), token_ids_(std::move(token_ids)), squares_(squares) {}

  at::Tensor Embed(const TorchModel& model);
  Qkv ProjectQkv(int layer, const TorchBlock& block, const at::Tensor& x);
  at::Tensor Attend(int layer, Qkv qkv);
  at::Tensor AddAttentionOutput(const TorchBlock& block, const at::Tensor& residual,
                                const at::Tensor& attention);
  at::Tensor GatedMlp(const TorchBlock& block, const at::Tensor& x);
  at::Tensor AddMlpOutput(const TorchBlock& block, const at::Tensor& residual,
                          const at::Tensor& mlp);
  // Logits of every token.
  at::Tensor Head(const TorchModel& model, const at::Tensor& x);

  // x / rms(x) * weight over the last dimension.
  at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight);

 private:
  at::Tensor Linear(const TorchBlock& block, BlockMatrix matrix, const at::Tensor& x);
  void Observe(BlockMatrix matrix, const at::Tensor& x);

  const ModelConfig& config_;
  const RotaryTables& rotary_;
  at::Tensor token_ids_;
  InputSquares* squares_;
};
static_assert(DecoderOps<TorchOps>);

// A tensor of the checkpoint in float. DATA_LOSS naming it when a value is not finite.
absl::StatusOr<at::Tensor> LoadTensor(const Checkpoint& checkpoint, absl::string_view name,
                                      at::Device device);

// Block `layer` of the checkpoint, dense.
absl::StatusOr<TorchBlock> LoadBlock(const Checkpoint& checkpoint, int layer, at::Device device);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_TORCH_OPS_H_
