#include "core/quant/calibration_data.h"

namespace quern {

at::Tensor CalibrationData::Loss(int64_t begin, int64_t count, const at::Tensor& hidden,
                                 const at::Tensor& head) const {
  const double share =
      *settings_.loss == E2eLoss::kCrossEntropy ? 1 : *settings_.cross_entropy_share;
  HardTargets targets = {.share = share};
  // The last token of a sequence has no next one to compare with.
  int64_t num_tokens = token_ids_.size(1);
  if (share > 0) {
    --num_tokens;
    targets.tokens = token_ids_.narrow(0, begin, count).narrow(1, 1, num_tokens).flatten();
  }
  const at::Tensor rows = hidden.narrow(1, 0, num_tokens).flatten(0, 1);
  if (share == 1) return CrossEntropyLoss(rows, head, targets.tokens);
  const at::Tensor states = source_states_.Rows(*settings_.first_sample + begin, count)
                                .narrow(1, 0, num_tokens)
                                .flatten(0, 1);
  const at::Tensor normed =
      at::rms_norm(states, {states.size(-1)}, source_.final_norm, config_.rms_norm_eps);
  return DistillationLoss(rows, head, normed, source_.head, targets);
}

}  // namespace quern
