#include "core/quant/calibration_data.h"

namespace quern {

at::Tensor CalibrationData::Loss(int64_t begin, int64_t count, const at::Tensor& hidden,
                                 const at::Tensor& head) const {
  const int64_t num_tokens = token_ids_.size(1);
  if (*settings_.loss == E2eLoss::kCrossEntropy) {
    const at::Tensor targets = token_ids_.narrow(0, begin, count).narrow(1, 1, num_tokens - 1);
    return CrossEntropyLoss(hidden.narrow(1, 0, num_tokens - 1).flatten(0, 1), head,
                            targets.flatten());
  }
  const at::Tensor states = source_states_.Rows(*settings_.first_sample + begin, count)
                                .narrow(1, 0, num_tokens)
                                .flatten(0, 1);
  const at::Tensor normed =
      at::rms_norm(states, {states.size(-1)}, source_.final_norm, config_.rms_norm_eps);
  return DistillationLoss(hidden.flatten(0, 1), head, normed, source_.head);
}

}  // namespace quern
