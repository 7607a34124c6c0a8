#ifndef QUERN_CORE_QUANT_TUNE_H_
#define QUERN_CORE_QUANT_TUNE_H_

// Tuning of a packed model's scales on examples (EfficientQAT's Q-PEFT). The other half of the
// public face, beside quantize.h; no torch type appears here.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <vector>

#include "core/artifact/packed_model.h"
#include "core/plan/task.h"
#include "core/quant/quantize.h"

namespace quern {

struct TuningExample {
  std::vector<int32_t> ids;
  // The first of them, at least 1 and fewer than all, are given; the others are to be predicted.
  int num_context_tokens = 0;
};

// `base` with its scales (and norms, where the settings train them) trained end to end on
// `examples`, in their order, by cross-entropy; each token to be predicted counts alike within a
// step. Of `settings`, which must be resolved: epoch_count, batch_size, learning_rate, trainable
// (not kAll). Codes and zero points stay, and share base's memory.
//
// Goes on from what a stopped run with the same `base_id`, settings and examples left in
// options.work_directory, to the same bytes. INVALID_ARGUMENT naming the example; otherwise as
// Quantize.
absl::StatusOr<PackedModel> Tune(const PackedModel& base, absl::string_view base_id,
                                 const E2eQpSettings& settings, ComputeDtype compute_dtype,
                                 const std::vector<TuningExample>& examples,
                                 const QuantizeOptions& options);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_TUNE_H_
