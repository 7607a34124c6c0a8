#ifndef QUERN_CORE_MODEL_ROPE_H_
#define QUERN_CORE_MODEL_ROPE_H_

#include <vector>

#include "core/model/model_config.h"

namespace quern {

// Angular frequency of each rotary pair, [head_dim / 2], radians per position:
// rope_theta^(-2i / head_dim), with the config's rope scaling applied (linear: divided by factor;
// llama3: as Hugging Face transformers' `_compute_llama3_parameters`). Pair i turns elements i and
// i + head_dim / 2 (the Hugging Face "rotate half" order). Training and serving share this.
std::vector<float> RopeFrequencies(const ModelConfig& config);

}  // namespace quern

#endif  // QUERN_CORE_MODEL_ROPE_H_
