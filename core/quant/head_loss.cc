#include "core/quant/head_loss.h"

#include <vector>

#include "core/quant/loss_loops.h"

namespace quern {
namespace {

LogitRow RowOf(const at::Tensor& logits, int64_t row) {
  auto* data = static_cast<char*>(logits.data_ptr()) + row * logits.stride(0) * logits.itemsize();
  return {.data = data, .bfloat16 = logits.scalar_type() == at::kBFloat16};
}

// The sum over rows of what `loss_of` gives for each, with scratch for one; the order of the sum
// does not depend on the threads.
template <typename LossOf>
double SumOverRows(const at::Tensor& logits, LossOf loss_of) {
  std::vector<double> losses(logits.size(0));
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(LossScratchFloats(logits.size(1)));
    for (int64_t row = begin; row < end; ++row) losses[row] = loss_of(row, scratch.data());
  });
  double sum = 0;
  for (const double loss : losses) sum += loss;
  return sum;
}

}  // namespace

double DivergenceToGradients(at::Tensor& logits, const at::Tensor& teacher,
                             const HardTargets& targets) {
  const bool has_targets = targets.share > 0;
  if (!logits.is_cpu()) {
    const at::Tensor log_p = logits.log_softmax(1, at::kFloat);
    at::Tensor log_q = teacher.log_softmax(1, at::kFloat);
    const at::Tensor q = log_q.exp();
    at::Tensor grad = log_p.exp().sub_(q, 1 - targets.share);
    double loss = (1 - targets.share) * log_q.sub_(log_p).mul_(q).sum().item<double>();
    if (has_targets) {
      const at::Tensor target = targets.tokens.unsqueeze(1);
      grad.scatter_add_(1, target, at::full_like(target, -targets.share, grad.options()));
      loss -= targets.share * log_p.gather(1, target).sum().item<double>();
    }
    logits = grad.to(logits.scalar_type());
    return loss;
  }
  const LossLoops& loops = SupportedLossLoops()[0];
  const int64_t* tokens = has_targets ? targets.tokens.const_data_ptr<int64_t>() : nullptr;
  return SumOverRows(logits, [&](int64_t row, float* scratch) {
    const HardTarget target = {.token = has_targets ? tokens[row] : 0,
                               .share = static_cast<float>(targets.share)};
    return loops.divergence(RowOf(logits, row), RowOf(teacher, row), target, logits.size(1),
                            scratch);
  });
}

double CrossEntropyToGradients(at::Tensor& logits, const at::Tensor& targets) {
  if (!logits.is_cpu()) {
    const at::Tensor log_p = logits.log_softmax(1, at::kFloat);
    const at::Tensor target = targets.unsqueeze(1);
    at::Tensor grad = log_p.exp();
    grad.scatter_add_(1, target, at::full_like(target, -1.0, grad.options()));
    logits = grad.to(logits.scalar_type());
    return -log_p.gather(1, target).sum().item<double>();
  }
  const LossLoops& loops = SupportedLossLoops()[0];
  const int64_t* target = targets.const_data_ptr<int64_t>();
  return SumOverRows(logits, [&](int64_t row, float* scratch) {
    return loops.cross_entropy(RowOf(logits, row), target[row], logits.size(1), scratch);
  });
}

}  // namespace quern
