#ifndef QUERN_CORE_QUANT_ADAM_H_
#define QUERN_CORE_QUANT_ADAM_H_

// AdamW without weight decay (betas 0.9 and 0.999, epsilon 1e-8) over LibTorch's fused kernel, and
// the schedule that both training stages use.

#include <utility>
#include <vector>

#include "core/quant/torch_headers.h"

namespace quern {

// What is left of a rate at its last step.
inline constexpr double kFinalRateShare = 0.05;

// `rate` after `step` of `num_steps`: a linear rise over the first `num_warm_up_steps`, then a
// cosine down to `final_share` of it.
double CosineRate(double rate, int64_t step, int64_t num_steps, int64_t num_warm_up_steps = 0,
                  double final_share = kFinalRateShare);

// After a rewind (a loss that is not finite) every rate is this much smaller.
inline constexpr double kRewindRateFactor = 0.1;

// Parameters that share a learning rate. The moments are plain tensors, so that they can be kept.
class AdamGroup {
 public:
  AdamGroup() = default;
  // The parameters must be leaves; they require gradients from here on.
  AdamGroup(std::vector<at::Tensor> parameters, double rate);

  double rate() const { return rate_; }
  const std::vector<at::Tensor>& parameters() const { return parameters_; }
  std::vector<at::Tensor>& first_moments() { return first_moments_; }
  std::vector<at::Tensor>& second_moments() { return second_moments_; }
  int64_t num_steps() const { return num_steps_; }
  // For moments that were kept; all parameters took `num_steps` steps.
  void set_num_steps(int64_t num_steps) { num_steps_ = num_steps; }

  // Copies of parameters and moments, and back.
  struct Snapshot {
    std::vector<at::Tensor> tensors;
    int64_t num_steps = 0;
  };
  Snapshot Save() const;
  void Restore(const Snapshot& snapshot);

  // One step along the parameters' gradients, which are then cleared.
  void Step(double rate);

 private:
  double rate_ = 0;
  int64_t num_steps_ = 0;
  std::vector<at::Tensor> parameters_;
  std::vector<at::Tensor> first_moments_;
  std::vector<at::Tensor> second_moments_;
};

}  // namespace quern

#endif  // QUERN_CORE_QUANT_ADAM_H_
