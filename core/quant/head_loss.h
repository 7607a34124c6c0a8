#ifndef QUERN_CORE_QUANT_HEAD_LOSS_H_
#define QUERN_CORE_QUANT_HEAD_LOSS_H_

#include "core/quant/torch_headers.h"

namespace quern {

// Losses of next-token distributions softmax(logits), summed over the rows; the logits,
// [num_rows, vocab_size], contiguous floats or bfloat16, become the gradients of that sum. On the
// CPU in one pass that keeps nothing as large.

// What part of a loss the text's own tokens have.
struct HardTargets {
  at::Tensor tokens;  // [num_rows] int64; undefined where share is 0
  double share = 0;   // 0 to 1
};

// (1 - share) KL(softmax(teacher) || softmax(logits)) - share log softmax(logits)[token]; teacher:
// as logits, which may be another type.
double DivergenceToGradients(at::Tensor& logits, const at::Tensor& teacher,
                             const HardTargets& targets = {});
// -log softmax(logits)[target]; targets: [num_rows] int64.
double CrossEntropyToGradients(at::Tensor& logits, const at::Tensor& targets);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_HEAD_LOSS_H_
