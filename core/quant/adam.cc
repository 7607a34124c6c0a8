#include "core/quant/adam.h"

#include <cmath>
#include <numbers>

namespace quern {

double CosineRate(double rate, int64_t step, int64_t num_steps, int64_t num_warm_up_steps,
                  double final_share) {
  if (step < num_warm_up_steps) {
    return rate * static_cast<double>(step + 1) / static_cast<double>(num_warm_up_steps + 1);
  }
  const double done = static_cast<double>(step - num_warm_up_steps) /
                      static_cast<double>(std::max<int64_t>(1, num_steps - num_warm_up_steps));
  const double share = 0.5 * (1 + std::cos(std::numbers::pi * done));
  return rate * (final_share + (1 - final_share) * share);
}

AdamGroup::AdamGroup(std::vector<at::Tensor> parameters, double rate)
    : rate_(rate), parameters_(std::move(parameters)) {
  for (at::Tensor& parameter : parameters_) {
    parameter.requires_grad_();
    first_moments_.push_back(at::zeros_like(parameter));
    second_moments_.push_back(at::zeros_like(parameter));
  }
}

AdamGroup::Snapshot AdamGroup::Save() const {
  Snapshot snapshot{.num_steps = num_steps_};
  for (const auto* tensors : {&parameters_, &first_moments_, &second_moments_}) {
    for (const at::Tensor& tensor : *tensors) snapshot.tensors.push_back(tensor.detach().clone());
  }
  return snapshot;
}

void AdamGroup::Restore(const Snapshot& snapshot) {
  const at::NoGradGuard no_grad;
  size_t i = 0;
  for (auto* tensors : {&parameters_, &first_moments_, &second_moments_}) {
    for (at::Tensor& tensor : *tensors) tensor.copy_(snapshot.tensors[i++]);
  }
  num_steps_ = snapshot.num_steps;
}

void AdamGroup::Step(double rate) {
  if (parameters_.empty()) return;
  RECORD_USER_SCOPE("quern::adam");
  const at::NoGradGuard no_grad;
  ++num_steps_;
  std::vector<at::Tensor> parameters;
  std::vector<at::Tensor> grads;
  std::vector<at::Tensor> steps;
  for (at::Tensor& parameter : parameters_) {
    parameters.push_back(parameter.detach());
    grads.push_back(parameter.grad());
    steps.push_back(at::full({}, static_cast<double>(num_steps_),
                             parameter.options().dtype(at::kFloat).requires_grad(false)));
    parameter.mutable_grad() = at::Tensor();
  }
  at::_fused_adamw_(parameters, grads, first_moments_, second_moments_, {}, steps, rate,
                    /*beta1=*/0.9, /*beta2=*/0.999, /*weight_decay=*/0.0, /*eps=*/1e-8,
                    /*amsgrad=*/false, /*maximize=*/false);
}

}  // namespace quern
