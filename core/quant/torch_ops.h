#ifndef QUERN_CORE_QUANT_TORCH_OPS_H_
#define QUERN_CORE_QUANT_TORCH_OPS_H_

// The decoder's operations (core/model/decoder.h) with LibTorch tensors, for a batch of sequences
// of one length that all start at position 0: x is [num_sequences, num_tokens, hidden_size]. States
// between blocks, norms and attention are in float (LibTorch's attention is slower in bfloat16 on a
// CPU); products with matrices in the matrices' type.

#include <absl/status/statusor.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "core/checkpoint/checkpoint.h"
#include "core/model/decoder.h"
#include "core/model/model_config.h"
#include "core/plan/task.h"
#include "core/quant/elementwise.h"
#include "core/quant/fake_quantizer.h"
#include "core/quant/torch_headers.h"

namespace quern {

// The matrices of a block, in the order of BlockTensors.
enum BlockMatrix { kQProj, kKProj, kVProj, kOProj, kGateProj, kUpProj, kDownProj };
inline constexpr int kNumBlockMatrices = 7;
// E.g. "self_attn.q_proj"; ".weight" and ".bias" follow.
const char* BlockMatrixName(BlockMatrix matrix);
// E.g. "model.layers.0.self_attn.q_proj.weight".
std::string MatrixTensorName(int layer, BlockMatrix matrix);

// y = x * W^T + bias. W is `weight`, or `coded` under `scale` where `weight` is undefined. Products
// take their factors in W's type, float or bfloat16, and so is y; sums inside are in float.
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

// The norms of a block by the ends of their names; a block may lack the last two.
inline constexpr std::pair<const char*, at::Tensor TorchBlock::*> kBlockNorms[] = {
    {"input_layernorm.weight", &TorchBlock::input_norm},
    {"post_attention_layernorm.weight", &TorchBlock::post_attention_norm},
    {"self_attn.q_norm.weight", &TorchBlock::q_norm},
    {"self_attn.k_norm.weight", &TorchBlock::k_norm}};

struct TorchModel {
  at::Tensor embedding;   // [vocab_size, hidden_size]
  at::Tensor final_norm;  // [hidden_size]
  at::Tensor head;        // [vocab_size, hidden_size]
  std::vector<TorchBlock> blocks;

  const TorchBlock& block(int layer) const { return blocks[layer]; }
};

// Moments of what goes into the matrices of a block, summed over tokens: x x^T, [in_features,
// in_features], or its diagonal alone, [in_features]. gate and up share one (gate's); of the
// diagonals, q, k and v do, too (q's).
//
// What an error in a matrix's output does to the block's is counted where it is cheap to know:
// - The inputs of o and down are divided by the norm of the state that the product is added to, as
//   in Block-AP's loss. Without that, a few tokens with massive activations are all of it.
// - The full moments of v are those of its inputs as attention mixes them (the mean over the heads
//   of A X), and those of k count each token by how far the attention to it can change (the sum
//   over the queries of A (1 - A)), both again relative to the query's state. Else a token that
//   every query looks at, as the first one often is, counts like any other, and its error
//   is everywhere.
struct InputMoments {
  enum class Form { kDiagonal, kFull };
  Form form = Form::kDiagonal;
  std::array<at::Tensor, kNumBlockMatrices> sums;

  const at::Tensor& of(BlockMatrix matrix) const {
    if (matrix == kUpProj) return sums[kGateProj];
    return sums[sums[matrix].defined() ? matrix : kQProj];
  }
};

// What went into the matrices of a block and came out, whose gradient is kept.
struct LinearTaps {
  std::array<at::Tensor, kNumBlockMatrices> inputs;
  std::array<at::Tensor, kNumBlockMatrices> outputs;
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
  // Embed alone. moments: added to when not null.
  TorchOps(const ModelConfig& config, const RotaryTables& rotary, at::Tensor token_ids = {},
           InputMoments* moments = nullptr)
      : config_(config), rotary_(rotary), token_ids_(std::move(token_ids)), moments_(moments) {}

  // From now on; must outlive this.
  void TapLinears(LinearTaps* taps) { taps_ = taps; }

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
  // `residual` is undefined for inputs that come from a norm.
  void Observe(BlockMatrix matrix, const at::Tensor& x, const at::Tensor& residual = {});
  void ObserveThroughAttention(const Qkv& qkv);

  const ModelConfig& config_;
  const RotaryTables& rotary_;
  at::Tensor token_ids_;
  InputMoments* moments_;
  LinearTaps* taps_ = nullptr;
  // Of the block under way, where full moments are asked for: its input, and that after the norm.
  std::pair<at::Tensor, at::Tensor> states_;
};
static_assert(DecoderOps<TorchOps>);

// A tensor of the checkpoint in float. DATA_LOSS naming it when a value is not finite.
absl::StatusOr<at::Tensor> LoadTensor(const Checkpoint& checkpoint, absl::string_view name,
                                      at::Device device);

at::ScalarType ToScalarType(ComputeDtype compute_dtype);

// Block `layer` of the checkpoint, dense, in float.
absl::StatusOr<TorchBlock> LoadBlock(const Checkpoint& checkpoint, int layer, at::Device device);

// A dense block whose products are computed in `type`.
TorchBlock WithProductsIn(at::ScalarType type, TorchBlock block);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_TORCH_OPS_H_
