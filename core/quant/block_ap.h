#ifndef QUERN_CORE_QUANT_BLOCK_AP_H_
#define QUERN_CORE_QUANT_BLOCK_AP_H_

// Block-AP (EfficientQAT, arXiv 2407.11062): all parameters of one transformer block are trained
// under fake quantization to give the source's output.
//
// What may differ from the paper, by the settings: the loss (a few tokens with massive activations
// can be all of the squared error), where training starts, which stream gives the targets; and
// with sequences held back, the epoch that is best on them is kept.

#include <absl/status/statusor.h>

#include <array>
#include <functional>
#include <vector>

#include "core/plan/task.h"
#include "core/quant/activation_store.h"
#include "core/quant/checkpointing.h"
#include "core/quant/fake_quantizer.h"
#include "core/quant/torch_ops.h"

namespace quern {

struct BlockApContext {
  const ModelConfig& config;
  const RotaryTables& rotary;
  const QuantFormat& format;
  const BlockApSettings& settings;            // resolved
  at::ScalarType compute_dtype = at::kFloat;  // of products
  std::function<bool()> cancelled;            // may be empty
  // After each step of a block, with its loss; may be empty.
  std::function<void(int64_t step, double loss)> on_step;
};

// Trains block `layer`. source: the block, dense; inputs: the quantized stream before the block;
// targets: what its output is to be, one or two streams, whose losses are averaged; moments: of
// the source block's inputs, full for QuantStart::kGptq, unused for kMinMax. The settings'
// sample_count sequences are trained on, validation_sample_count after them held back.
//
// ABORTED with "DIVERGED", block and step when the loss is not finite or has grown beyond all
// measure, and again after one rewind with smaller steps; CANCELLED.
absl::StatusOr<TrainedBlock> TrainBlock(const BlockApContext& context, int layer,
                                        const TorchBlock& source, const ActivationStore& inputs,
                                        const std::vector<const ActivationStore*>& targets,
                                        const InputMoments& moments);

// Block `layer` as training would start, without any; moments as for TrainBlock, of the inputs that
// it is to be good for.
absl::StatusOr<TrainedBlock> StartBlock(QuantStart start, const QuantFormat& format, int layer,
                                        const TorchBlock& source, const InputMoments& moments);

// The block as it will be served. ABORTED when something in it is not finite.
absl::StatusOr<TrainedBlock> PackBlock(int layer, const TorchBlock& block,
                                       const std::array<QuantParameters, kNumBlockMatrices>& quant,
                                       double loss);

// Mean over tokens of |output - target|^2 / |target|^2 of block `layer` as it will be served, for
// inputs and targets [num_sequences, num_tokens, hidden_size]: what training by that loss reports,
// of a block that was not trained.
double MeasureBlock(const ModelConfig& config, const RotaryTables& rotary, int layer,
                    const TorchBlock& block, const at::Tensor& inputs, const at::Tensor& targets);

enum class WeightForm {
  kDense,  // to move activations on
  kCoded,  // to train scales
};
// The trained block for TorchOps, its products in `type`. With kCoded the scales are new leaves
// that require no gradient.
TorchBlock ToTorchBlock(int layer, const TrainedBlock& trained, WeightForm form,
                        at::ScalarType type, at::Device device);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_BLOCK_AP_H_
