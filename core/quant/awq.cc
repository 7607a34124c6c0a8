#include "core/quant/awq.h"

#include <absl/strings/str_cat.h>

#include <limits>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "core/quant/block_ap.h"
#include "core/quant/fake_quantizer.h"

namespace quern {
namespace {

constexpr int kNumExponents = 20;

// sum over inputs x of |(w - quantized) x|^2, given the inputs' moments.
double OutputError(const at::Tensor& w, const at::Tensor& quantized, const at::Tensor& h) {
  const at::Tensor error = w - quantized;
  return (error.mm(h) * error).sum().item<double>();
}

// s for matrices that share their inputs.
at::Tensor FindScales(const QuantFormat& format, int layer, const InputMoments& moments,
                      const std::vector<BlockMatrix>& matrices, const TorchBlock& block) {
  const at::Tensor magnitude = moments.of(matrices[0]).diagonal().sqrt().clamp_min(1e-8);
  at::Tensor best = at::ones_like(magnitude);
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i <= kNumExponents; ++i) {
    at::Tensor scale = magnitude.pow(static_cast<double>(i) / kNumExponents).clamp_min(1e-4);
    scale = scale / (scale.max() * scale.min()).sqrt();
    double error = 0;
    for (const BlockMatrix matrix : matrices) {
      const at::Tensor& w = block.linears[matrix].weight;
      const at::Tensor scaled = w * scale;
      const at::Tensor rounded = FakeQuantize(
          scaled, MinMaxQuantParameters(scaled, format.For(MatrixTensorName(layer, matrix))));
      error += OutputError(w, rounded / scale, moments.of(matrix));
    }
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

// Input channels times `scale`, and the moments of the inputs to match.
void ScaleInputs(const std::vector<BlockMatrix>& matrices, const at::Tensor& scale,
                 InputMoments& moments, TorchBlock& block) {
  const at::Tensor inverse = 1 / scale;
  for (const BlockMatrix matrix : matrices) {
    at::Tensor& weight = block.linears[matrix].weight;
    weight = weight * scale;
    at::Tensor& sum = moments.sums[matrix];
    if (sum.defined()) sum = sum * inverse * inverse.unsqueeze(1);
  }
}

// Output channels over `scale`.
void UnscaleOutputs(const at::Tensor& scale, TorchLinear& linear) {
  linear.weight = linear.weight / scale.unsqueeze(1);
  if (linear.bias.defined()) linear.bias = linear.bias / scale;
}

}  // namespace

void ScaleChannels(const QuantFormat& format, int layer, InputMoments& moments, TorchBlock& block) {
  const at::NoGradGuard no_grad;
  const auto scale_against_norm = [&](const std::vector<BlockMatrix>& matrices, at::Tensor& norm) {
    const at::Tensor scale = FindScales(format, layer, moments, matrices, block);
    ScaleInputs(matrices, scale, moments, block);
    norm = norm / scale;
  };
  const auto scale_against_rows = [&](BlockMatrix matrix, BlockMatrix before) {
    const at::Tensor scale = FindScales(format, layer, moments, {matrix}, block);
    ScaleInputs({matrix}, scale, moments, block);
    UnscaleOutputs(scale, block.linears[before]);
  };
  scale_against_norm({kQProj, kKProj, kVProj}, block.input_norm);
  if (block.linears[kVProj].weight.size(0) == block.linears[kOProj].weight.size(1)) {
    scale_against_rows(kOProj, kVProj);
  }
  scale_against_norm({kGateProj, kUpProj}, block.post_attention_norm);
  scale_against_rows(kDownProj, kUpProj);
}

absl::StatusOr<TrainedBlock> QuantizeBlockByAwq(const QuantFormat& format, int layer,
                                                const TorchBlock& source, InputMoments moments) {
  for (const at::Tensor& sum : moments.sums) {
    if (sum.defined() && !at::isfinite(sum).all().item<bool>()) {
      return absl::AbortedError(
          absl::StrCat("DIVERGED: block ", layer, ": the inputs' second moments are not finite"));
    }
  }
  TorchBlock block = source;
  ScaleChannels(format, layer, moments, block);
  std::array<QuantParameters, kNumBlockMatrices> quant;
  for (int i = 0; i < kNumBlockMatrices; ++i) {
    const auto matrix = static_cast<BlockMatrix>(i);
    quant[i] = SearchQuantParameters(block.linears[i].weight, moments.of(matrix).diagonal(),
                                     format.For(MatrixTensorName(layer, matrix)));
  }
  return PackBlock(layer, block, quant, /*loss=*/0);
}

}  // namespace quern
