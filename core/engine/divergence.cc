#include "core/engine/divergence.h"

#include <algorithm>
#include <cmath>

namespace quern {

double LogSumExp(absl::Span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum);
}

double KlDivergence(absl::Span<const float> p, double p_log_sum_exp, absl::Span<const float> q,
                    double q_log_sum_exp) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double log_p = p[i] - p_log_sum_exp;
    const double log_q = q[i] - q_log_sum_exp;
    sum += std::exp(log_p) * (log_p - log_q);
  }
  return sum;
}

}  // namespace quern
