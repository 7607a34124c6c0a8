#ifndef QUERN_CORE_QUANT_E2E_QP_H_
#define QUERN_CORE_QUANT_E2E_QP_H_

// E2E-QP (EfficientQAT, arXiv 2407.11062): the scales of all block matrices are trained together,
// through the whole model; codes, zero points, norms, embedding and head stay. Beyond it, on
// request, the blocks' norms are trained as well, and the weights that the codes are rounded from:
// then codes change. By default the loss
// is the KL divergence to the source's next-token distribution; the source's states after its last
// block are known from Block-AP, so the teacher costs one product with its head.

#include <absl/status/status.h>
#include <absl/time/time.h>

#include <functional>
#include <optional>
#include <vector>

#include "core/plan/plan.h"
#include "core/plan/task.h"
#include "core/quant/activation_store.h"
#include "core/quant/checkpointing.h"
#include "core/quant/head_loss.h"
#include "core/quant/torch_ops.h"

namespace quern {

struct E2eQpContext {
  const ModelConfig& config;
  const RotaryTables& rotary;
  const E2eQpSettings& settings;              // resolved
  at::ScalarType compute_dtype = at::kFloat;  // of products
  TrainingDirectory& directory;
  // The least time between two states on disk (more where saving takes long); the result does not
  // depend on it.
  absl::Duration save_interval = absl::Seconds(5);
  // What may be kept of all blocks for the way back; beyond it only their inputs are, and the rest
  // is computed again, to the same bits.
  int64_t max_graph_bytes = kMaxE2eGraphBytes;
  std::function<bool()> cancelled;  // may be empty
  // Before the first step, without a loss (again after a rewind), and after each, with its mean
  // loss in nats per token; may be empty.
  std::function<void(int64_t num_done, int64_t num_steps, std::optional<double> loss)> on_step;
};

// What the model is besides its blocks; `head` is [vocab_size, hidden_size], in the type of its
// products.
struct OuterTensors {
  at::Tensor embedding;
  at::Tensor final_norm;
  at::Tensor head;
};

// What end-to-end training sees: sequences, some of which are taken at a time. Thread-compatible.
class E2eData {
 public:
  virtual ~E2eData() = default;
  virtual int64_t num_sequences() const = 0;
  // Tokens of a sequence; at most as many as the rotary tables have.
  virtual int64_t Length(int64_t sequence) const = 0;
  // Of `count` sequences from `begin`, [count, num_tokens] int64. The shorter ones are filled up
  // behind their end, which attention does not look at from before it.
  virtual at::Tensor TokenIds(int64_t begin, int64_t count) const = 0;
  // What these count for beside the others of their step: the tokens that are predicted.
  virtual double Weight(int64_t begin, int64_t count) const = 0;
  // Mean loss over what is predicted of these, from the student's states after the final norm,
  // [count, num_tokens, hidden_size].
  virtual at::Tensor Loss(int64_t begin, int64_t count, const at::Tensor& hidden,
                          const at::Tensor& head) const = 0;
};

// Trains `blocks` in place; `student`: what is beside them, as it will be served.
//
// Goes on from the directory's state. ABORTED with "DIVERGED" and the step when the loss is not
// finite or has grown beyond all measure, and again after one start with smaller steps; CANCELLED.
absl::Status TrainScales(const E2eQpContext& context, const E2eData& data,
                         const OuterTensors& student, std::vector<TrainedBlock>& blocks);

// Mean loss over the rows of `hidden` [num_rows, hidden_size], differentiable in `hidden` alone,
// without ever holding more than a slice of the logits; products in the type of the heads:
// KL(softmax(teacher_hidden * teacher_head^T) || softmax(hidden * head^T)), of which the targets'
// share is CrossEntropyLoss.
at::Tensor DistillationLoss(const at::Tensor& hidden, const at::Tensor& head,
                            const at::Tensor& teacher_hidden, const at::Tensor& teacher_head,
                            const HardTargets& targets = {});
// -log softmax(hidden * head^T)[target]; targets: [num_rows] int64.
at::Tensor CrossEntropyLoss(const at::Tensor& hidden, const at::Tensor& head,
                            const at::Tensor& targets);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_E2E_QP_H_
