#ifndef QUERN_SERVICES_INFERENCE_METRICS_H_
#define QUERN_SERVICES_INFERENCE_METRICS_H_

// What quern-inference tells Prometheus. Names, labels and buckets: vLLM's meaning and bucket
// values, with finer first buckets between tokens, because small low-bit models are faster.

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <string>

#include "core/base/mutex.h"
#include "core/engine/engine.h"

namespace quern {

// How a request for a model ended: a finish reason or a canonical code, in lower case. The label
// values are OutcomeName's.
enum class Outcome {
  kEndOfText,
  kStopSequence,
  kMaxOutputTokens,
  kContextFull,
  kTimeLimit,
  kCancelled,
  kDeadlineExceeded,
  kInvalidArgument,
  kResourceExhausted,
  kFailedPrecondition,
  kUnavailable,
  kInternal,
};
inline constexpr int kNumOutcomes = 12;
absl::string_view OutcomeName(Outcome outcome);
Outcome OutcomeOf(FinishReason reason);
// `status` must not be OK. Codes without a name of their own count as internal.
Outcome OutcomeOf(const absl::Status& status);

// Why a request was turned away before it reached the engine's queue, or by it.
enum class Rejection {
  kQueueFull,    // by requests
  kQueueTokens,  // by tokens
  kShare,        // of the principal
  kQueueWait,    // it would be too long
  kDeadline,
  kTooLong,
  kDraining,
  kInvalid,
  kNoModel,
  kNotReady,
};
inline constexpr int kNumRejections = 10;

// Why computed tokens reached nobody.
enum class Discard { kCancelled, kDeadline, kDraining, kError, kPreempted };
inline constexpr int kNumDiscards = 5;
Discard DiscardOf(const absl::Status& status);

// The series of one served model. Thread-safe.
struct ModelMetrics {
  std::array<prometheus::Counter*, kNumOutcomes> requests_total{};
  prometheus::Counter* prompt_tokens_total = nullptr;
  prometheus::Counter* generated_tokens_total = nullptr;
  std::array<prometheus::Counter*, kNumDiscards> discarded_tokens_total{};
  prometheus::Histogram* time_to_first_token_seconds = nullptr;
  prometheus::Histogram* inter_token_latency_seconds = nullptr;
  prometheus::Histogram* request_queue_seconds = nullptr;
  prometheus::Histogram* request_prefill_seconds = nullptr;
  prometheus::Histogram* request_decode_seconds = nullptr;
  prometheus::Histogram* request_seconds = nullptr;
};

// Why a model is loaded, and why one that stays listed leaves memory.
enum class LoadCause { kCreated, kRestart, kRequest };
inline constexpr int kNumLoadCauses = 3;
enum class EvictionReason { kIdle, kMemory };
inline constexpr int kNumEvictionReasons = 2;
absl::string_view EvictionReasonName(EvictionReason reason);

// What the gauges of a loaded model say.
struct LoadedModelFacts {
  std::string artifact;  // first 12 hex digits, or "" for a checkpoint
  double bits = 0;       // mean of the blocks' matrices; 0: a checkpoint as it came
  int group_size = 0;
  std::string kernel;
  std::string kv_cache_type;
  int64_t weight_bytes = 0;
  int64_t shared_bytes = 0;  // of weight_bytes, held once with another model
  int64_t kv_bytes = 0;
  absl::Duration load_duration;
  LoadCause cause = LoadCause::kCreated;
};

// A model has about 170 series. Those of models that left memory stay, so that the last minutes of
// a model can still be read and a model that comes back goes on counting, until there are more than
// this many models with series; then the one that left first is forgotten.
inline constexpr size_t kModelsWithSeries = 3;

// Thread-safe. Also the engine's step observer.
class InferenceMetrics final : public StepObserver {
 public:
  explicit InferenceMetrics(prometheus::Registry& registry);

  // The model becomes ACTIVE. Its series are those of its name before, unless they were forgotten;
  // they live as long as who counts holds them.
  std::shared_ptr<const ModelMetrics> ModelLoaded(const std::string& model,
                                                  const LoadedModelFacts& facts);
  void ModelUnloaded(const std::string& model);
  void ModelFailed() { load_failures_total_->Increment(); }
  void ModelEvicted(EvictionReason reason) {
    evictions_total_[static_cast<int>(reason)]->Increment();
  }
  void SetModelMemory(int64_t reserved_bytes, int64_t budget_bytes) {
    memory_reserved_->Set(static_cast<double>(reserved_bytes));
    memory_budget_->Set(static_cast<double>(budget_bytes));
  }

  void Reject(Rejection reason) { rejected_total_[static_cast<int>(reason)]->Increment(); }
  // A piece of text waited this long for the client to take the message before.
  void StreamBlocked(absl::Duration duration) {
    stream_blocked_seconds_->Observe(absl::ToDoubleSeconds(duration));
  }
  // A request's constraint: compiled in that time, found compiled, or refused.
  void ConstraintCompiled(absl::Duration duration) {
    constraint_compile_seconds_->Observe(absl::ToDoubleSeconds(duration));
    constraints_total_[kCompiled]->Increment();
  }
  void ConstraintFound() { constraints_total_[kCached]->Increment(); }
  void ConstraintRefused() { constraints_total_[kRefused]->Increment(); }
  void OnStep(absl::Duration duration, int num_tokens, int num_sequences) override;

 private:
  enum ConstraintOutcome { kCompiled, kCached, kRefused, kNumConstraintOutcomes };
  struct ModelGauges {
    prometheus::Gauge* info;
    prometheus::Gauge* load_seconds;
    prometheus::Gauge* weight_bytes;
    prometheus::Gauge* shared_bytes;
    prometheus::Gauge* kv_bytes;
  };

  std::shared_ptr<const ModelMetrics> MakeSeries(const std::string& model);
  void RemoveSeries(const ModelMetrics& metrics);
  // Lets go of models that left memory and that nobody counts for, down to kModelsWithSeries.
  void ForgetModels() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::array<prometheus::Counter*, kNumRejections> rejected_total_{};
  prometheus::Histogram* step_seconds_;
  prometheus::Histogram* step_tokens_;
  prometheus::Histogram* batch_sequences_;
  prometheus::Histogram* stream_blocked_seconds_;
  prometheus::Counter* load_failures_total_;
  std::array<prometheus::Counter*, kNumLoadCauses> loads_total_{};
  std::array<prometheus::Counter*, kNumEvictionReasons> evictions_total_{};
  prometheus::Gauge* memory_reserved_;
  prometheus::Gauge* memory_budget_;
  prometheus::Histogram* constraint_compile_seconds_;
  std::array<prometheus::Counter*, kNumConstraintOutcomes> constraints_total_{};

  prometheus::Family<prometheus::Counter>& requests_family_;
  prometheus::Family<prometheus::Counter>& prompt_tokens_family_;
  prometheus::Family<prometheus::Counter>& generated_tokens_family_;
  prometheus::Family<prometheus::Counter>& discarded_tokens_family_;
  prometheus::Family<prometheus::Histogram>& time_to_first_token_family_;
  prometheus::Family<prometheus::Histogram>& inter_token_family_;
  prometheus::Family<prometheus::Histogram>& queue_family_;
  prometheus::Family<prometheus::Histogram>& prefill_family_;
  prometheus::Family<prometheus::Histogram>& decode_family_;
  prometheus::Family<prometheus::Histogram>& request_family_;
  prometheus::Family<prometheus::Gauge>& info_family_;
  prometheus::Family<prometheus::Gauge>& load_family_;
  prometheus::Family<prometheus::Gauge>& bytes_family_;

  Mutex mutex_;
  std::map<std::string, std::shared_ptr<const ModelMetrics>> models_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::string> unloaded_ ABSL_GUARDED_BY(mutex_);  // of models_, first unloaded first
  std::map<std::string, ModelGauges> gauges_ ABSL_GUARDED_BY(mutex_);
};

// What the engine says of itself: requests running and waiting and their tokens, KV pages,
// preemptions, the time of the last step. One thread at a time.
class EngineGauges {
 public:
  explicit EngineGauges(prometheus::Registry& registry);
  // Call before each scrape.
  void Update(const EngineStats& stats);

 private:
  prometheus::Gauge& running_;
  prometheus::Gauge& waiting_;
  prometheus::Gauge& queued_tokens_;
  prometheus::Family<prometheus::Gauge>& pages_;
  prometheus::Gauge& pages_used_;
  prometheus::Gauge& pages_free_;
  prometheus::Gauge& pages_cached_;
  prometheus::Gauge& usage_ratio_;
  prometheus::Gauge& last_step_;
  prometheus::Counter& preemptions_total_;
  prometheus::Counter& prefix_cache_tokens_total_;
  prometheus::Counter& guessed_tokens_total_;
  prometheus::Counter& accepted_guesses_total_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_METRICS_H_
