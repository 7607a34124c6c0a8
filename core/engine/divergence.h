#ifndef QUERN_CORE_ENGINE_DIVERGENCE_H_
#define QUERN_CORE_ENGINE_DIVERGENCE_H_

#include <absl/types/span.h>

namespace quern {

// log(sum of exp(logits)), in float64. At least one logit.
double LogSumExp(absl::Span<const float> logits);

// KL(p || q) of two distributions over the same tokens, nats, in float64; each by its logits and
// their LogSumExp.
double KlDivergence(absl::Span<const float> p, double p_log_sum_exp, absl::Span<const float> q,
                    double q_log_sum_exp);

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_DIVERGENCE_H_
