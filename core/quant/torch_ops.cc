#include "core/quant/torch_ops.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/base/status_macros.h"
#include "core/model/rope.h"
#include "core/model/tensor_names.h"
#include "core/quant/attention.h"

namespace quern {

const char* BlockMatrixName(BlockMatrix matrix) {
  static constexpr const char* kNames[kNumBlockMatrices] = {
      "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
      "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
  return kNames[matrix];
}

std::string MatrixTensorName(int layer, BlockMatrix matrix) {
  return BlockTensorName(layer, absl::StrCat(BlockMatrixName(matrix), ".weight"));
}

RotaryTables MakeRotaryTables(const ModelConfig& config, int num_tokens, at::Device device) {
  const std::vector<float> frequencies = RopeFrequencies(config);
  at::Tensor frequency = at::empty({1, 1, static_cast<int64_t>(frequencies.size())}, at::kFloat);
  std::copy(frequencies.begin(), frequencies.end(), frequency.data_ptr<float>());
  const at::Tensor angle = at::arange(num_tokens, at::kFloat).view({num_tokens, 1, 1}) * frequency;
  return {angle.cos().to(device), angle.sin().to(device)};
}

void TorchOps::Observe(BlockMatrix matrix, const at::Tensor& x, const at::Tensor& residual) {
  if (moments_ == nullptr) return;
  at::Tensor rows = x.reshape({-1, x.size(-1)}).to(at::kFloat);
  if (residual.defined()) {
    const at::Tensor norm = residual.reshape({-1, residual.size(-1)}).norm(2, 1, true);
    rows = rows / norm.clamp_min(1e-12);
  }
  const at::Tensor sum =
      moments_->form == InputMoments::Form::kFull ? at::mm(rows.t(), rows) : rows.square().sum(0);
  at::Tensor& total = moments_->sums[matrix];
  total = total.defined() ? total + sum : sum;
}

void TorchOps::ObserveThroughAttention(const Qkv& qkv) {
  const auto [x, normed] = std::exchange(states_, {});
  const int64_t num_tokens = x.size(1);
  const int64_t share = config_.num_attention_heads / config_.num_key_value_heads;
  const at::Tensor future = at::ones({num_tokens, num_tokens}, x.options()).triu(1).to(at::kBool);
  const double scale = 1 / std::sqrt(static_cast<double>(config_.head_dim));
  for (int64_t i = 0; i < x.size(0); ++i) {
    const at::Tensor k = qkv.k[i].repeat_interleave(share, 0);
    const at::Tensor scores = at::matmul(qkv.q[i], k.transpose(1, 2)) * scale;
    const at::Tensor attention = scores.masked_fill(future, -INFINITY).softmax(-1);
    Observe(kVProj, attention.mean(0).mm(normed[i]), x[i]);
    // d softmax = A (1 - A) to first order, summed over who looks at the token.
    const at::Tensor weight =
        (attention * (1 - attention)).mean(0) / x[i].square().sum(-1, true).clamp_min(1e-24);
    Observe(kKProj, normed[i] * weight.sum(0).sqrt().unsqueeze(1));
  }
}

at::Tensor TorchOps::Linear(const TorchBlock& block, BlockMatrix matrix, const at::Tensor& x) {
  const TorchLinear& linear = block.linears[matrix];
  const at::ScalarType type =
      linear.weight.defined() ? linear.weight.scalar_type() : linear.coded.type;
  const at::Tensor bias = linear.bias.defined() ? linear.bias.to(type) : at::Tensor();
  const at::Tensor input = x.to(type);
  const at::Tensor y = linear.weight.defined()
                           ? at::linear(input, linear.weight, bias)
                           : CodedLinear(input, linear.scale, linear.coded, bias);
  if (taps_ != nullptr) {
    y.retain_grad();
    taps_->inputs[matrix] = input.detach();
    taps_->outputs[matrix] = y;
  }
  return y;
}

at::Tensor TorchOps::Norm(const at::Tensor& x, const at::Tensor& weight) {
  return RmsNorm(x, weight, config_.rms_norm_eps);
}

at::Tensor TorchOps::Embed(const TorchModel& model) {
  return at::embedding(model.embedding, token_ids_);
}

TorchOps::Qkv TorchOps::ProjectQkv(int, const TorchBlock& block, const at::Tensor& x) {
  const at::Tensor normed = Norm(x, block.input_norm);
  Observe(kQProj, normed);
  if (moments_ != nullptr && moments_->form == InputMoments::Form::kFull) states_ = {x, normed};
  const auto heads = [&](BlockMatrix matrix, int num_heads) {
    return Linear(block, matrix, normed).view({x.size(0), x.size(1), num_heads, config_.head_dim});
  };
  at::Tensor q = heads(kQProj, config_.num_attention_heads);
  at::Tensor k = heads(kKProj, config_.num_key_value_heads);
  const at::Tensor v = heads(kVProj, config_.num_key_value_heads);
  if (config_.qk_norm) {
    q = Norm(q.to(at::kFloat), block.q_norm);
    k = Norm(k.to(at::kFloat), block.k_norm);
  }
  return {SplitHeads(q, &rotary_), SplitHeads(k, &rotary_), SplitHeads(v, nullptr)};
}

at::Tensor TorchOps::Attend(int, Qkv qkv) {
  if (states_.first.defined()) ObserveThroughAttention(qkv);
  return CausalAttention(qkv.q, qkv.k, qkv.v);
}

at::Tensor TorchOps::AddAttentionOutput(const TorchBlock& block, const at::Tensor& residual,
                                        const at::Tensor& attention) {
  Observe(kOProj, attention, residual);
  return residual + Linear(block, kOProj, attention);
}

at::Tensor TorchOps::GatedMlp(const TorchBlock& block, const at::Tensor& x) {
  const at::Tensor normed = Norm(x, block.post_attention_norm);
  Observe(kGateProj, normed);
  return GatedSilu(Linear(block, kGateProj, normed), Linear(block, kUpProj, normed));
}

at::Tensor TorchOps::AddMlpOutput(const TorchBlock& block, const at::Tensor& residual,
                                  const at::Tensor& mlp) {
  Observe(kDownProj, mlp, residual);
  return residual + Linear(block, kDownProj, mlp);
}

at::Tensor TorchOps::Head(const TorchModel& model, const at::Tensor& x) {
  return at::linear(Norm(x, model.final_norm), model.head);
}

absl::StatusOr<at::Tensor> LoadTensor(const Checkpoint& checkpoint, absl::string_view name,
                                      at::Device device) {
  ASSIGN_OR_RETURN(const TensorView view, checkpoint.Tensor(name));
  at::ScalarType type;
  switch (view.dtype) {
    case DType::kF32:
      type = at::kFloat;
      break;
    case DType::kF16:
      type = at::kHalf;
      break;
    case DType::kBF16:
      type = at::kBFloat16;
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": dtype is ", DTypeName(view.dtype), ", wanted F32, F16 or BF16"));
  }
  // A copy: the file's bytes are not aligned, and products of equal alignment are reproducible.
  at::Tensor raw = at::empty(view.shape, type);
  std::memcpy(raw.data_ptr(), view.data, view.size_bytes);
  const at::Tensor tensor = raw.to(at::kFloat);
  if (!at::isfinite(tensor).all().item<bool>()) {
    return absl::DataLossError(absl::StrCat(name, ": holds a value that is not finite"));
  }
  return tensor.to(device);
}

absl::StatusOr<TorchBlock> LoadBlock(const Checkpoint& checkpoint, int layer, at::Device device) {
  const ModelConfig& config = checkpoint.config();
  TorchBlock block;
  const auto load = [&](absl::string_view suffix, at::Tensor& tensor) -> absl::Status {
    ASSIGN_OR_RETURN(tensor, LoadTensor(checkpoint, BlockTensorName(layer, suffix), device));
    return absl::OkStatus();
  };
  for (int i = 0; i < kNumBlockMatrices; ++i) {
    const auto matrix = static_cast<BlockMatrix>(i);
    const std::string name = BlockMatrixName(matrix);
    RETURN_IF_ERROR(load(name + ".weight", block.linears[i].weight));
    const bool has_bias = matrix <= kVProj   ? config.qkv_bias
                          : matrix == kOProj ? config.o_bias
                                             : config.mlp_bias;
    if (has_bias) RETURN_IF_ERROR(load(name + ".bias", block.linears[i].bias));
  }
  RETURN_IF_ERROR(load("input_layernorm.weight", block.input_norm));
  RETURN_IF_ERROR(load("post_attention_layernorm.weight", block.post_attention_norm));
  if (config.qk_norm) {
    RETURN_IF_ERROR(load("self_attn.q_norm.weight", block.q_norm));
    RETURN_IF_ERROR(load("self_attn.k_norm.weight", block.k_norm));
  }
  return block;
}

at::ScalarType ToScalarType(ComputeDtype compute_dtype) {
  return compute_dtype == ComputeDtype::kBfloat16 ? at::kBFloat16 : at::kFloat;
}

TorchBlock WithProductsIn(at::ScalarType type, TorchBlock block) {
  for (TorchLinear& linear : block.linears) linear.weight = linear.weight.to(type);
  return block;
}

}  // namespace quern
