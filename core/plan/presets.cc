#include "core/plan/presets.h"

#include <absl/strings/string_view.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/model/tensor_names.h"

namespace quern {
namespace {

// A rate known at two numbers of steps.
struct RateCurve {
  double few_steps;  // measured on a 135M model within minutes
  double few_rate;
  double many_steps;  // the published recipe's
  double many_rate;

  // Along the power law through both points, constant outside them.
  double At(double steps) const {
    const double x = std::clamp(steps, few_steps, many_steps);
    const double exponent = std::log(many_rate / few_rate) / std::log(many_steps / few_steps);
    return few_rate * std::pow(x / few_steps, exponent);
  }
};

template <typename T>
void Default(std::optional<T>& field, T value) {
  if (!field.has_value()) field = value;
}

// Of scales, end to end, as EfficientQAT published it.
double PublishedE2eRate(int bits) { return bits == 2 ? 2e-5 : 1e-5; }

// EfficientQAT's recipe (its code at 78fd3fb and paper, ACL 2025): 4096 sequences of 2048 tokens,
// two epochs of two sequences a step, then one end-to-end of 32 a step with cross-entropy.
void ApplyReference(const ModelConfig& config, Task& task) {
  const int length = std::min(2048, config.max_position_embeddings);
  BlockApSettings& block = task.block_ap;
  Default(block.sample_count, 4096);
  Default(block.sequence_length_tokens, length);
  Default(block.epoch_count, 2);
  Default(block.batch_size, std::gcd(2, *block.sample_count));
  Default(block.weight_learning_rate, task.format.bits == 2 ? 2e-5 : 1e-5);
  Default(block.quant_learning_rate, 1e-4);
  Default(block.zero_point_learning_rate, task.format.symmetric ? 0.0 : 1e-4);
  Default(block.validation_sample_count, 64);
  Default(block.start, QuantStart::kMinMax);
  Default(block.target, BlockTarget::kSourceStream);
  Default(block.loss, BlockLoss::kMeanSquares);
  Default(block.round_scales, false);
  if (task.method == QuantMethod::kBlockAp) return;
  E2eQpSettings& e2e = task.e2e_qp;
  Default(e2e.sample_count, 4096);
  Default(e2e.sequence_length_tokens, std::min(4096, config.max_position_embeddings));
  Default(e2e.epoch_count, 1);
  Default(e2e.batch_size, std::gcd(32, *e2e.sample_count));
  Default(e2e.absolute_rate, true);
  // Relative, it is as much of the scales of its models, which are about 1e-2.
  Default(e2e.learning_rate, (*e2e.absolute_rate ? 1 : 100) * PublishedE2eRate(task.format.bits));
  Default(e2e.loss, E2eLoss::kCrossEntropy);
  Default(e2e.cross_entropy_share, 0.0);
  Default(e2e.trainable, E2eTrainable::kScales);
  Default(e2e.weight_learning_rate, 0.0);
  Default(e2e.first_sample, 0);
}

struct Rates {
  RateCurve weight;
  RateCurve scale;
  RateCurve e2e;  // relative to the mean scale
};

Rates RatesFor(int bits) {
  switch (bits) {
    case 2:
      return {{32, 1.5e-3, 4096, 2e-5}, {32, 2.5e-3, 4096, 1e-4}, {448, 4e-3, 4096, 1e-3}};
    case 3:
      return {{16, 7e-4, 4096, 1e-5}, {16, 1e-3, 4096, 1e-4}, {224, 2.5e-3, 4096, 1e-3}};
    case 4:
      return {{16, 3e-4, 4096, 1e-5}, {16, 5e-4, 4096, 1e-4}, {32, 1e-3, 4096, 1e-3}};
    default:  // 8 bits start next to the source: small steps that cannot lead away from it
      return {{4, 2e-5, 4096, 1e-6}, {4, 5e-5, 4096, 1e-5}, {4, 1e-4, 128, 1e-4}};
  }
}

// Steps of a scale for the rate of scales, a share of them.
constexpr double kWeightRateShare = 2;

// Amount of data. Two epochs need a validation set, else the better one is not known.
struct Amount {
  int sample_count;
  int sequence_length_tokens;
  int epoch_count;
  int batch_size;
  int validation_sample_count;
  int e2e_sample_count;
  int e2e_batch_size;
};

// Training of weights, block by block.
Amount AmountFor(Preset preset, int bits, bool large) {
  if (bits == 8) {
    const int samples = preset == Preset::kQuick ? 4 : preset == Preset::kStandard ? 16 : 64;
    return {samples, 512, 1, 1, 0, samples, 1};
  }
  const int factor = bits == 2 ? 2 : 1;  // two bits need about twice the steps
  switch (preset) {
    case Preset::kQuick:
      return {16 * factor, 512, 1, 1, 0, 16 * factor, 1};
    case Preset::kStandard:
      if (large) return {512 * factor, 2048, 2, 2, 16, 256 * factor, 4};
      return {128 * factor, 1024, 1, 1, 0, 128 * factor, 2};
    case Preset::kBest:
      if (large) return {4096, 2048, 2, 2, 64, 4096, 32};
      return {512 * factor, 1024, 2, 1, 16, 512 * factor, 4};
    case Preset::kReference:
      break;  // not a matter of size
  }
  return {};
}

// Codes by GPTQ, no training of weights, then scales and norms end to end on sequences that the
// codes were not fitted to: the better model within minutes (docs/quantization.md). Measured are
// kQuick and kBest; kStandard lies between them.
Amount UntrainedAmountFor(Preset preset, int bits) {
  const int factor = bits == 2 ? 2 : 1;
  switch (preset) {
    case Preset::kQuick:
      return {32, 512, 0, 1, 0, 32 * factor, 1};
    case Preset::kStandard:
      return {64, 512, 0, 1, 0, 96 * factor, 1};
    case Preset::kBest:
      return {96, 512, 0, 1, 0, 224 * factor, 1};
    case Preset::kReference:
      break;
  }
  return {};
}

// Whoever sets how weights are trained wants them trained.
bool AsksForTraining(const BlockApSettings& block) {
  return block.epoch_count.value_or(0) > 0 || block.validation_sample_count.value_or(0) > 0 ||
         block.start.value_or(QuantStart::kGptq) != QuantStart::kGptq || block.batch_size ||
         block.weight_learning_rate || block.quant_learning_rate ||
         block.zero_point_learning_rate || block.target || block.loss;
}

int64_t NumParameters(const ModelConfig& config) {
  int64_t count = 0;
  for (const TensorSpec& spec : ModelTensors(config)) {
    int64_t product = 1;
    for (int64_t dim : spec.shape) product *= dim;
    count += product;
  }
  return count;
}

// The second moments of a matrix's inputs are known well from a few times as many tokens as it has
// inputs.
void ApplyUntrained(const ModelConfig& config, Task& task) {
  int samples = 32;
  if (task.preset == Preset::kStandard) samples = 128;
  if (task.preset == Preset::kBest || task.preset == Preset::kReference) samples = 512;
  Default(task.block_ap.sample_count, samples);
  Default(task.block_ap.sequence_length_tokens, std::min(512, config.max_position_embeddings));
}

// Where a step takes milliseconds, what brings most is to train the weights, block by block and
// then end to end, for as many steps as fit minutes (docs/quantization.md).
void ApplyBestOfTiny(const ModelConfig& config, const Rates& rates, Task& task) {
  BlockApSettings& block = task.block_ap;
  const int length = std::min(512, config.max_position_embeddings);
  Default(block.sample_count, 1024);
  Default(block.sequence_length_tokens, length);
  Default(block.epoch_count, 4);
  Default(block.batch_size, std::gcd(8, *block.sample_count));
  Default(block.validation_sample_count, 16);
  Default(block.weight_learning_rate, rates.weight.few_rate);
  Default(block.quant_learning_rate, rates.scale.few_rate);
  Default(block.start, QuantStart::kSearch);
  Default(block.target, BlockTarget::kBoth);
  if (task.method == QuantMethod::kBlockAp) return;
  E2eQpSettings& e2e = task.e2e_qp;
  Default(e2e.sample_count, 1024);
  Default(e2e.sequence_length_tokens, length);
  Default(e2e.epoch_count, 6);
  Default(e2e.batch_size, std::gcd(4, *e2e.sample_count));
  Default(e2e.learning_rate, rates.e2e.few_rate);
  Default(e2e.trainable, E2eTrainable::kAll);
  Default(e2e.weight_learning_rate, *e2e.trainable == E2eTrainable::kAll ? 0.02 : 0.0);
}

double Steps(int sample_count, int epoch_count, int batch_size) {
  return static_cast<double>(sample_count) * epoch_count / batch_size;
}

}  // namespace

void ResolveChunkTokens(const ModelConfig& config, EvaluationData& evaluation) {
  constexpr int kEvaluationChunkTokens = 512;
  if (evaluation.chunk_tokens == 0) {
    evaluation.chunk_tokens = std::min(kEvaluationChunkTokens, config.max_position_embeddings);
  }
}

void ApplyPreset(const ModelConfig& config, Task& task) {
  ResolveChunkTokens(config, task.evaluation);
  if (task.method == QuantMethod::kRtn) return;
  if (IsUntrained(task.method)) return ApplyUntrained(config, task);
  if (task.preset == Preset::kReference) return ApplyReference(config, task);
  constexpr int64_t kLargeParameters = 1'000'000'000;
  constexpr int64_t kTinyParameters = 10'000'000;
  const int64_t num_parameters = NumParameters(config);
  const bool large = num_parameters >= kLargeParameters;
  const Rates rates = RatesFor(task.format.bits);
  if (num_parameters < kTinyParameters && task.preset == Preset::kBest && task.format.bits < 8) {
    ApplyBestOfTiny(config, rates, task);
  }
  const bool untrained = task.method == QuantMethod::kBlockApE2eQp && !large &&
                         task.format.bits < 8 && !AsksForTraining(task.block_ap);
  const Amount amount = untrained ? UntrainedAmountFor(task.preset, task.format.bits)
                                  : AmountFor(task.preset, task.format.bits, large);
  const int length = std::min(amount.sequence_length_tokens, config.max_position_embeddings);

  BlockApSettings& block = task.block_ap;
  Default(block.sample_count, amount.sample_count);
  Default(block.sequence_length_tokens, length);
  Default(block.epoch_count, amount.epoch_count);
  Default(block.batch_size, std::gcd(amount.batch_size, *block.sample_count));
  Default(block.validation_sample_count,
          *block.epoch_count > 1 ? std::max(amount.validation_sample_count, 4) : 0);
  const double block_steps = Steps(*block.sample_count, *block.epoch_count, *block.batch_size);
  Default(block.weight_learning_rate, rates.weight.At(block_steps));
  Default(block.quant_learning_rate, rates.scale.At(block_steps));
  Default(block.zero_point_learning_rate, 0.0);
  Default(block.start, untrained ? QuantStart::kGptq : QuantStart::kSearch);
  Default(block.target, BlockTarget::kSourceStream);
  Default(block.loss, BlockLoss::kRelativePerToken);
  Default(block.round_scales, true);
  if (task.method == QuantMethod::kBlockAp) return;

  E2eQpSettings& e2e = task.e2e_qp;
  Default(e2e.sample_count, amount.e2e_sample_count);
  Default(e2e.sequence_length_tokens, length);
  Default(e2e.epoch_count, 1);
  Default(e2e.batch_size, std::gcd(amount.e2e_batch_size, *e2e.sample_count));
  Default(e2e.absolute_rate, false);
  Default(e2e.learning_rate,
          *e2e.absolute_rate
              ? PublishedE2eRate(task.format.bits)
              : rates.e2e.At(Steps(*e2e.sample_count, *e2e.epoch_count, *e2e.batch_size)));
  Default(e2e.loss, E2eLoss::kDistillation);
  Default(e2e.cross_entropy_share, 0.0);
  Default(e2e.trainable, untrained ? E2eTrainable::kScalesAndNorms : E2eTrainable::kScales);
  Default(e2e.weight_learning_rate,
          *e2e.trainable == E2eTrainable::kAll ? *e2e.learning_rate * kWeightRateShare : 0.0);
  Default(e2e.first_sample, untrained ? *block.sample_count : 0);
}

}  // namespace quern
