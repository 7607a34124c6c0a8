#ifndef QUERN_CORE_QUANT_AWQ_H_
#define QUERN_CORE_QUANT_AWQ_H_

// Activation-aware quantization (AWQ, arXiv 2306.00978): before rounding, the input channels of
// matrices that see large inputs are scaled up, and what gives those inputs is scaled down, so that
// the block computes the same while the weights that matter lose less.

#include <absl/status/statusor.h>

#include <array>

#include "core/artifact/packed_model.h"
#include "core/quant/checkpointing.h"
#include "core/quant/torch_ops.h"

namespace quern {

// Scales the channels of block `layer` in place: of q, k and v against their norm, of gate and up
// against theirs, of down against up's rows, of o against v's rows where every head has its own.
// Each time with s = m^a, m the root mean square of the input and a of 0, 1/20, ..., 1 the exponent
// with the least error of the outputs under min-max rounding, s normalised so that its extremes lie
// around 1. moments: full, of the block's inputs; become those of the scaled block's.
void ScaleChannels(const QuantFormat& format, int layer, InputMoments& moments, TorchBlock& block);

// Block `layer` by AWQ, without training: channels scaled, then clipped ranges searched (as
// QuantStart::kSearch does). moments: full. ABORTED when they, or the weights, are not finite.
absl::StatusOr<TrainedBlock> QuantizeBlockByAwq(const QuantFormat& format, int layer,
                                                const TorchBlock& source, InputMoments moments);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_AWQ_H_
