#ifndef QUERN_CORE_PLAN_PRESETS_H_
#define QUERN_CORE_PLAN_PRESETS_H_

#include "core/model/model_config.h"
#include "core/plan/task.h"

namespace quern {

// Fills what `task` leaves open in evaluation, block_ap and e2e_qp with the preset's numbers for
// its bits and the size of `config`'s model, sequence lengths capped by the model's context.
// Learning rates follow the number of steps, also when that was overridden. Settings that the
// method does not use stay open. `task.format` must be valid.
void ApplyPreset(const ModelConfig& config, Task& task);

// Sets what chunk_tokens of 0 stands for.
void ResolveChunkTokens(const ModelConfig& config, EvaluationData& evaluation);

}  // namespace quern

#endif  // QUERN_CORE_PLAN_PRESETS_H_
