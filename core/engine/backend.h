#ifndef QUERN_CORE_ENGINE_BACKEND_H_
#define QUERN_CORE_ENGINE_BACKEND_H_

// What the engine needs of a device: the CPU today, others beside it.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "core/engine/model_source.h"

namespace quern {

// The next tokens of one sequence in a step: a piece of a prefill, or one token of a decode.
struct BatchRun {
  absl::Span<const int32_t> tokens;  // in [0, vocab_size)
  int position = 0;                  // of tokens[0]; everything before it has its keys and values
  absl::Span<const int32_t> pages;   // of the sequence; they cover position + tokens.size()
  int num_logits = 0;                // logits are wanted of the last `num_logits` tokens
};

using Batch = std::vector<BatchRun>;

struct BackendLimits {
  int page_tokens = 0;
  int64_t kv_cache_bytes = 0;
  int max_step_tokens = 0;  // tokens of a batch
  int max_logits = 0;       // rows of logits of a batch
  int max_sequences = 0;    // runs of a batch
};

// A loaded model: its weights, the memory of its KV pages and the buffers of a step. Destroying it
// frees them. Used by the engine thread alone.
class BackendModel {
 public:
  virtual ~BackendModel() = default;
  // One forward pass over `batch` (within the limits). Returns the logits asked for, one row of
  // vocab_size per wanted token in the batch's order; valid until the next Step.
  virtual absl::StatusOr<absl::Span<const float>> Step(const Batch& batch) = 0;
  virtual int num_pages() const = 0;
  virtual int64_t weight_bytes() const = 0;
  // Of these, what every step reads: all but an embedding that is not the head too.
  virtual int64_t step_weight_bytes() const = 0;
  // Of weight_bytes, what another model held already when this one was loaded: held once for both.
  virtual int64_t shared_weight_bytes() const = 0;
  virtual int64_t kv_bytes() const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  // What Load would take. Reads shapes alone. INVALID_ARGUMENT, RESOURCE_EXHAUSTED as Load.
  virtual absl::StatusOr<ModelMemory> PlanMemory(const ModelSource& source,
                                                 const LoadOptions& options,
                                                 const BackendLimits& limits) const = 0;
  // Prepacks. From any thread, also while models of this backend step.
  virtual absl::StatusOr<std::unique_ptr<BackendModel>> Load(const ModelSource& source,
                                                             const LoadOptions& options,
                                                             const BackendLimits& limits) = 0;
  // The kernels' name.
  virtual absl::string_view name() const = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_BACKEND_H_
