#ifndef QUERN_CORE_ENGINE_BACKEND_H_
#define QUERN_CORE_ENGINE_BACKEND_H_

// What the engine needs of a device: the CPU today, others beside it.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
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
  // Of the sequence, in [0, max_sequences): what the model keeps for a sequence that runs. It holds
  // what the steps since the last whole page have left there.
  int slot = 0;
  int num_logits = 0;  // logits are wanted of the last `num_logits` tokens
};

using Batch = std::vector<BatchRun>;

struct BackendLimits {
  int page_tokens = 0;  // of a KV cache of half floats
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
  virtual int page_tokens() const = 0;
  // Sequences that can have a slot: the limit's, or fewer when memory for the KV cache is short.
  virtual int max_sequences() const = 0;
  virtual int64_t weight_bytes() const = 0;
  // Of these, what every step reads: all but an embedding that is not the head too.
  virtual int64_t step_weight_bytes() const = 0;
  // Of weight_bytes, what another model held already when this one was loaded: held once for both.
  virtual int64_t shared_weight_bytes() const = 0;
  virtual int64_t kv_bytes() const = 0;
  // Of these, what a token of a whole page takes.
  virtual int64_t kv_token_bytes() const = 0;
  // The mean, over tokens behind the first page, of KL(with a KV cache of half floats || with this
  // one), nats. Computes the beginning of `tokens` that it gets to in about `limit`, though at
  // least something of the second page. Before any Step, on any thread. NaN when logits are not
  // finite; FAILED_PRECONDITION when the cache is one of half floats, or there are no more tokens,
  // or room for them, than one page.
  virtual absl::StatusOr<double> MeasureKvDivergence(absl::Span<const int32_t> tokens,
                                                     absl::Duration limit) = 0;
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
