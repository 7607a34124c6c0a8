#include "core/quant/mixed_precision.h"

#include <ATen/CPUGeneratorImpl.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "core/base/status_macros.h"
#include "core/model/tensor_names.h"
#include "core/quant/activation_store.h"
#include "core/quant/e2e_qp.h"
#include "core/quant/fake_quantizer.h"
#include "core/quant/torch_ops.h"

namespace quern {
namespace {

constexpr int kSensitivitySequences = 8;
constexpr int kSensitivityTokens = 512;
constexpr uint64_t kSensitivitySeed = 7;

class SensitivityRun {
 public:
  SensitivityRun(const Checkpoint& checkpoint, const QuantFormat& format,
                 const std::vector<int>& bits, const std::vector<std::vector<int32_t>>& calibration,
                 at::ScalarType compute_dtype, at::Device device,
                 const std::function<bool()>& cancelled)
      : checkpoint_(checkpoint),
        config_(checkpoint.config()),
        format_(format),
        bits_(bits),
        compute_dtype_(compute_dtype),
        device_(device),
        cancelled_(cancelled) {
    const int num_tokens =
        std::min(kSensitivityTokens, static_cast<int>(calibration.front().size()));
    const int num_sequences = std::min(kSensitivitySequences, static_cast<int>(calibration.size()));
    token_ids_ = ToTokenTensor(calibration, 0, num_sequences, num_tokens, device);
    rotary_ = MakeRotaryTables(config_, num_tokens, device);
  }

  absl::StatusOr<std::vector<MatrixSensitivity>> Run();

 private:
  absl::Status Check() const {
    if (!cancelled_ || !cancelled_()) return absl::OkStatus();
    return absl::CancelledError("stopped while sensitivities were measured");
  }
  // The states before each block, and after the last one; and the moments of the blocks' inputs.
  absl::Status RunForward();
  // The gradient of the loss at the states after the last block.
  absl::StatusOr<at::Tensor> GradientOfLoss() const;
  // Measures block `layer`; `grad`, by its output, becomes that by its input.
  absl::Status MeasureBlock(int layer, at::Tensor& grad, std::vector<MatrixSensitivity>& result);

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const QuantFormat& format_;
  const std::vector<int>& bits_;
  const at::ScalarType compute_dtype_;
  const at::Device device_;
  const std::function<bool()>& cancelled_;
  at::Tensor token_ids_;
  RotaryTables rotary_;
  at::Tensor embedding_;
  std::vector<at::Tensor> states_;
  std::vector<InputMoments> moments_;
};

absl::Status SensitivityRun::RunForward() {
  ASSIGN_OR_RETURN(embedding_, LoadTensor(checkpoint_, kEmbeddingName, device_));
  ActivationStore states(embedding_, token_ids_);
  const auto keep = [&] { states_.push_back(states.Rows(0, states.num_sequences()).clone()); };
  keep();
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
    RETURN_IF_ERROR(Check());
    ASSIGN_OR_RETURN(TorchBlock block, LoadBlock(checkpoint_, layer, device_));
    moments_.emplace_back();
    states.Advance(config_, rotary_, layer, WithProductsIn(compute_dtype_, std::move(block)),
                   &moments_.back(), states.num_sequences());
    keep();
  }
  return absl::OkStatus();
}

absl::StatusOr<at::Tensor> SensitivityRun::GradientOfLoss() const {
  at::Tensor head = embedding_;
  if (!config_.tie_word_embeddings) {
    ASSIGN_OR_RETURN(head, LoadTensor(checkpoint_, kHeadName, device_));
  }
  head = head.to(compute_dtype_);
  ASSIGN_OR_RETURN(const at::Tensor norm, LoadTensor(checkpoint_, kFinalNormName, device_));
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(kSensitivitySeed);
  constexpr int64_t kSliceRows = 128;
  at::Tensor grad = at::empty_like(states_.back());
  for (int64_t i = 0; i < grad.size(0); ++i) {
    RETURN_IF_ERROR(Check());
    const at::Tensor x = states_.back()[i].detach().clone().requires_grad_();
    const at::Tensor hidden =
        at::rms_norm(x, {x.size(-1)}, norm, static_cast<double>(config_.rms_norm_eps));
    at::Tensor drawn = at::empty({x.size(0)}, at::kLong);
    for (int64_t begin = 0; begin < x.size(0); begin += kSliceRows) {
      const int64_t count = std::min(kSliceRows, x.size(0) - begin);
      const at::NoGradGuard no_grad;
      const at::Tensor p = at::linear(hidden.narrow(0, begin, count).to(compute_dtype_), head)
                               .softmax(1, at::kFloat);
      drawn.narrow(0, begin, count)
          .copy_(p.to(at::kCPU).multinomial(1, /*replacement=*/true, generator).squeeze(1));
    }
    // Of the sum over tokens.
    (CrossEntropyLoss(hidden, head, drawn.to(device_)) * static_cast<double>(x.size(0))).backward();
    grad[i].copy_(x.grad());
  }
  return grad;
}

absl::Status SensitivityRun::MeasureBlock(int layer, at::Tensor& grad,
                                          std::vector<MatrixSensitivity>& result) {
  ASSIGN_OR_RETURN(const TorchBlock dense, LoadBlock(checkpoint_, layer, device_));
  const TorchBlock block = WithProductsIn(compute_dtype_, dense);
  const auto num_tokens = static_cast<double>(token_ids_.numel());
  std::array<MatrixSensitivity, kNumBlockMatrices> measured;
  std::array<std::map<int, at::Tensor>, kNumBlockMatrices> errors;
  for (int i = 0; i < kNumBlockMatrices; ++i) {
    const auto matrix = static_cast<BlockMatrix>(i);
    const at::Tensor& weight = dense.linears[i].weight;
    measured[i].name = MatrixTensorName(layer, matrix);
    measured[i].num_weights = weight.numel();
    for (const int bits : bits_) {
      QuantFormat format = format_;
      format.bits = bits;
      const QuantParameters quant =
          SearchQuantParameters(weight, moments_[layer].of(matrix), format);
      errors[i][bits] = (FakeQuantize(weight, quant) - weight).to(compute_dtype_);
    }
  }
  for (int64_t sequence = 0; sequence < token_ids_.size(0); ++sequence) {
    RETURN_IF_ERROR(Check());
    const at::Tensor x = states_[layer].narrow(0, sequence, 1).clone().requires_grad_();
    TorchOps ops(config_, rotary_);
    LinearTaps taps;
    ops.TapLinears(&taps);
    RunBlock(ops, layer, block, x).backward(grad.narrow(0, sequence, 1));
    const at::NoGradGuard no_grad;
    for (int i = 0; i < kNumBlockMatrices; ++i) {
      const at::Tensor input = taps.inputs[i].flatten(0, 1);
      const at::Tensor gradient = taps.outputs[i].grad().flatten(0, 1).to(at::kFloat);
      for (const auto& [bits, error] : errors[i]) {
        const at::Tensor effect = (at::linear(input, error).to(at::kFloat) * gradient).sum(1);
        measured[i].loss[bits] += effect.square().sum().item<double>() / (2 * num_tokens);
      }
    }
    grad.narrow(0, sequence, 1).copy_(x.grad());
  }
  for (MatrixSensitivity& matrix : measured) result.push_back(std::move(matrix));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MatrixSensitivity>> SensitivityRun::Run() {
  RETURN_IF_ERROR(RunForward());
  ASSIGN_OR_RETURN(at::Tensor grad, GradientOfLoss());
  std::vector<MatrixSensitivity> result;
  for (int layer = config_.num_hidden_layers - 1; layer >= 0; --layer) {
    states_.pop_back();  // what is behind is not needed again
    RETURN_IF_ERROR(MeasureBlock(layer, grad, result));
  }
  return result;
}

// A step of one matrix from some bits to more.
struct Upgrade {
  const MatrixSensitivity* matrix;
  int from;
  int to;
  double gain_per_bit;
};

// Those along the convex hull of a matrix's bits and losses, from `least_bits` on.
void AddUpgrades(const MatrixSensitivity& matrix, int least_bits, std::vector<Upgrade>& upgrades) {
  int from = least_bits;
  while (true) {
    Upgrade best{&matrix, from, from, 0};
    for (const auto& [to, loss] : matrix.loss) {
      if (to <= from) continue;
      const double gain =
          (matrix.loss.at(from) - loss) / (static_cast<double>(matrix.num_weights) * (to - from));
      if (gain > best.gain_per_bit) best = {&matrix, from, to, gain};
    }
    if (best.to == from) return;
    upgrades.push_back(best);
    from = best.to;
  }
}

}  // namespace

absl::StatusOr<std::vector<MatrixSensitivity>> MeasureSensitivities(
    const Checkpoint& checkpoint, const QuantFormat& format, const std::vector<int>& bits,
    const std::vector<std::vector<int32_t>>& calibration, at::ScalarType compute_dtype,
    at::Device device, const std::function<bool()>& cancelled) {
  return SensitivityRun(checkpoint, format, bits, calibration, compute_dtype, device, cancelled)
      .Run();
}

std::map<std::string, int> ChooseMatrixBits(const std::vector<MatrixSensitivity>& sensitivities,
                                            int least_bits, double target_bits) {
  double num_weights = 0;
  std::vector<Upgrade> upgrades;
  std::map<std::string, int> chosen;
  for (const MatrixSensitivity& matrix : sensitivities) {
    num_weights += static_cast<double>(matrix.num_weights);
    chosen[matrix.name] = least_bits;
    AddUpgrades(matrix, least_bits, upgrades);
  }
  std::sort(upgrades.begin(), upgrades.end(), [](const Upgrade& a, const Upgrade& b) {
    return std::tie(b.gain_per_bit, a.matrix->name, a.from) <
           std::tie(a.gain_per_bit, b.matrix->name, b.from);
  });
  double left = (target_bits - least_bits) * num_weights;
  for (const Upgrade& upgrade : upgrades) {
    const double cost =
        static_cast<double>(upgrade.matrix->num_weights) * (upgrade.to - upgrade.from);
    int& bits = chosen[upgrade.matrix->name];
    // A step that did not fit ends its matrix's.
    if (bits != upgrade.from || cost > left) continue;
    bits = upgrade.to;
    left -= cost;
  }
  std::erase_if(chosen, [&](const auto& entry) { return entry.second == least_bits; });
  return chosen;
}

}  // namespace quern
