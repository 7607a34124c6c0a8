#ifndef QUERN_CORE_QUANT_BLOCK_AP_H_
#define QUERN_CORE_QUANT_BLOCK_AP_H_

// Block-AP (EfficientQAT, arXiv 2407.11062): all parameters of one transformer block are trained
// under fake quantization to give the source's output.
//
// What differs from the paper, each because it was measured to matter on few steps: the loss is
// each token's squared error over its squared target (a few tokens with massive activations would
// else be all of it), training starts from a clip search weighted by the inputs' mean squares, and
// the epoch that is best on held-back sequences is kept.

#include <absl/status/statusor.h>

#include <functional>

#include "core/plan/task.h"
#include "core/quant/activation_store.h"
#include "core/quant/checkpointing.h"
#include "core/quant/torch_ops.h"

namespace quern {

struct BlockApContext {
  const ModelConfig& config;
  const RotaryTables& rotary;
  const QuantFormat& format;
  const BlockApSettings& settings;  // resolved
  std::function<bool()> cancelled;  // may be empty
};

// Trains block `layer`. source: the block, dense; inputs: the quantized stream before the block;
// targets: the source's stream after it; squares: of the source block's inputs. The
// settings' sample_count sequences are trained on, validation_sample_count after them held back.
//
// ABORTED with "DIVERGED", block and step when the loss is not finite or has grown beyond all
// measure, and again after one rewind with smaller steps; CANCELLED.
absl::StatusOr<TrainedBlock> TrainBlock(const BlockApContext& context, int layer,
                                        const TorchBlock& source, const ActivationStore& inputs,
                                        const ActivationStore& targets,
                                        const InputSquares& squares);

enum class WeightForm {
  kDense,  // to move activations on
  kCoded,  // to train scales
};
// The trained block for TorchOps. With kCoded the scales are new leaves that require no gradient.
TorchBlock ToTorchBlock(int layer, const TrainedBlock& trained, WeightForm form, at::Device device);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_BLOCK_AP_H_
