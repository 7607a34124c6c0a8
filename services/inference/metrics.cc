#include "services/inference/metrics.h"

#include <absl/strings/str_format.h>

namespace quern {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

constexpr std::array<absl::string_view, kNumOutcomes> kOutcomeNames = {
    "end_of_text",        "stop_sequence",       "max_output_tokens", "context_full",
    "time_limit",         "cancelled",           "deadline_exceeded", "invalid_argument",
    "resource_exhausted", "failed_precondition", "unavailable",       "internal"};
constexpr std::array<const char*, kNumRejections> kRejectionNames = {
    "queue_full", "queue_tokens", "share",   "queue_wait", "deadline",
    "too_long",   "draining",     "invalid", "no_model",   "not_ready"};
constexpr std::array<const char*, kNumLoadCauses> kLoadCauseNames = {"created", "restart",
                                                                     "request"};
constexpr std::array<const char*, kNumEvictionReasons> kEvictionReasonNames = {"idle", "memory"};
constexpr std::array<const char*, kNumDiscards> kDiscardNames = {"cancelled", "deadline",
                                                                 "draining", "error", "preempted"};

Buckets TimeToFirstTokenBuckets() {
  return {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
          1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
}

Buckets InterTokenBuckets() {
  return {.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3,
          .4,   .5,    .75,  1,   2.5,  5,   7.5,  10, 20,  40, 80};
}

Buckets RequestBuckets() {
  return {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
          30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
}

Buckets PowersOfTwo(int last) {
  Buckets buckets;
  for (int value = 1; value <= last; value *= 2) buckets.push_back(value);
  return buckets;
}

prometheus::Family<prometheus::Counter>& Counters(prometheus::Registry& registry, const char* name,
                                                  const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

prometheus::Family<prometheus::Gauge>& Gauges(prometheus::Registry& registry, const char* name,
                                              const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}

prometheus::Family<prometheus::Histogram>& Histograms(prometheus::Registry& registry,
                                                      const char* name, const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}

void RaiseTo(int64_t total, prometheus::Counter& counter) {
  counter.Increment(static_cast<double>(total) - counter.Value());
}

}  // namespace

absl::string_view OutcomeName(Outcome outcome) { return kOutcomeNames[static_cast<int>(outcome)]; }

absl::string_view EvictionReasonName(EvictionReason reason) {
  return kEvictionReasonNames[static_cast<int>(reason)];
}

Outcome OutcomeOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEndOfText:
      return Outcome::kEndOfText;
    case FinishReason::kStopSequence:
      return Outcome::kStopSequence;
    case FinishReason::kMaxOutputTokens:
      return Outcome::kMaxOutputTokens;
    case FinishReason::kContextFull:
      return Outcome::kContextFull;
    case FinishReason::kTimeLimit:
      return Outcome::kTimeLimit;
  }
  return Outcome::kInternal;
}

Outcome OutcomeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kCancelled:
      return Outcome::kCancelled;
    case absl::StatusCode::kDeadlineExceeded:
      return Outcome::kDeadlineExceeded;
    case absl::StatusCode::kInvalidArgument:
      return Outcome::kInvalidArgument;
    case absl::StatusCode::kResourceExhausted:
      return Outcome::kResourceExhausted;
    case absl::StatusCode::kFailedPrecondition:
      return Outcome::kFailedPrecondition;
    case absl::StatusCode::kUnavailable:
      return Outcome::kUnavailable;
    default:
      return Outcome::kInternal;
  }
}

Discard DiscardOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kCancelled:
      return Discard::kCancelled;
    case absl::StatusCode::kDeadlineExceeded:
      return Discard::kDeadline;
    case absl::StatusCode::kUnavailable:
      return Discard::kDraining;
    default:
      return Discard::kError;
  }
}

InferenceMetrics::InferenceMetrics(prometheus::Registry& registry)
    : requests_family_(Counters(registry, "quern_requests_total",
                                "Requests for a served model, by how they ended.")),
      prompt_tokens_family_(
          Counters(registry, "quern_prompt_tokens_total",
                   "Prompt tokens taken in, those found in the prefix cache included.")),
      generated_tokens_family_(
          Counters(registry, "quern_generated_tokens_total", "Tokens generated.")),
      discarded_tokens_family_(Counters(
          registry, "quern_discarded_tokens_total",
          "Tokens computed in vain: of requests that did not finish, by why, and (preempted) "
          "those computed again.")),
      time_to_first_token_family_(
          Histograms(registry, "quern_time_to_first_token_seconds",
                     "From the request's arrival, tokenization included, to its first token.")),
      inter_token_family_(Histograms(registry, "quern_inter_token_latency_seconds",
                                     "Between consecutive tokens of a request.")),
      queue_family_(Histograms(registry, "quern_request_queue_seconds",
                               "From the engine's queue to the first step with the request.")),
      prefill_family_(Histograms(registry, "quern_request_prefill_seconds",
                                 "From the first step with the request to its first token.")),
      decode_family_(Histograms(registry, "quern_request_decode_seconds",
                                "From the request's first token to its last.")),
      request_family_(Histograms(registry, "quern_request_seconds",
                                 "From the request's arrival to its end, however it ended.")),
      info_family_(Gauges(registry, "quern_model_info",
                          "1 for each model in memory; bits of the codes in the mean, 0 of a "
                          "checkpoint as it came.")),
      load_family_(Gauges(registry, "quern_model_load_seconds",
                          "How long the model took from request to ready.")),
      bytes_family_(
          Gauges(registry, "quern_model_bytes",
                 "Memory of the model: weights as the kernels read them, those that another model "
                 "held already (shared), KV pages.")) {
  auto& rejected = Counters(registry, "quern_requests_rejected_total",
                            "Requests turned away before they generated anything.");
  for (int i = 0; i < kNumRejections; ++i) {
    rejected_total_[i] = &rejected.Add({{"reason", kRejectionNames[i]}});
  }
  step_seconds_ = &Histograms(registry, "quern_step_seconds", "One forward pass of the batch.")
                       .Add({}, InterTokenBuckets());
  step_tokens_ =
      &Histograms(registry, "quern_step_tokens", "Tokens of one step, prefill and decode together.")
           .Add({}, PowersOfTwo(16384));
  batch_sequences_ = &Histograms(registry, "quern_batch_sequences", "Sequences in one step.")
                          .Add({}, PowersOfTwo(1024));
  stream_blocked_seconds_ =
      &Histograms(
           registry, "quern_stream_blocked_seconds",
           "How long text waited until the client's connection had taken the message before.")
           .Add({}, InterTokenBuckets());
  load_failures_total_ =
      &Counters(registry, "quern_model_load_failures_total", "Models that could not be loaded.")
           .Add({});
  auto& loads = Counters(registry, "quern_model_loads_total",
                         "Models loaded, because one was created, the server was started again, or "
                         "a request came for an idle one.");
  for (int i = 0; i < kNumLoadCauses; ++i) {
    loads_total_[i] = &loads.Add({{"cause", kLoadCauseNames[i]}});
  }
  auto& evictions = Counters(registry, "quern_model_evictions_total",
                             "Models taken out of memory until the next request for them.");
  for (int i = 0; i < kNumEvictionReasons; ++i) {
    evictions_total_[i] = &evictions.Add({{"reason", kEvictionReasonNames[i]}});
  }
  memory_reserved_ = &Gauges(registry, "quern_model_memory_reserved_bytes",
                             "Memory set aside for models: weights, KV pages, buffers of a step.")
                          .Add({});
  memory_budget_ = &Gauges(registry, "quern_model_memory_budget_bytes",
                           "Memory that all models together may take.")
                        .Add({});
  constraint_compile_seconds_ =
      &Histograms(registry, "quern_constraint_compile_seconds",
                  "Compiling what a request's text must be: a JSON schema, a regular expression, "
                  "choices.")
           .Add({}, Buckets{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1});
  auto& constraints = Counters(registry, "quern_constraints_total",
                               "Constraints of requests: compiled, found compiled (cached), or "
                               "refused.");
  constexpr const char* kNames[kNumConstraintOutcomes] = {"compiled", "cached", "refused"};
  for (int i = 0; i < kNumConstraintOutcomes; ++i) {
    constraints_total_[i] = &constraints.Add({{"outcome", kNames[i]}});
  }
}

std::shared_ptr<const ModelMetrics> InferenceMetrics::MakeSeries(const std::string& model) {
  ModelMetrics metrics;
  for (int i = 0; i < kNumOutcomes; ++i) {
    metrics.requests_total[i] =
        &requests_family_.Add({{"model", model}, {"outcome", std::string(kOutcomeNames[i])}});
  }
  for (int i = 0; i < kNumDiscards; ++i) {
    metrics.discarded_tokens_total[i] =
        &discarded_tokens_family_.Add({{"model", model}, {"reason", kDiscardNames[i]}});
  }
  const prometheus::Labels labels = {{"model", model}};
  metrics.prompt_tokens_total = &prompt_tokens_family_.Add(labels);
  metrics.generated_tokens_total = &generated_tokens_family_.Add(labels);
  metrics.time_to_first_token_seconds =
      &time_to_first_token_family_.Add(labels, TimeToFirstTokenBuckets());
  metrics.inter_token_latency_seconds = &inter_token_family_.Add(labels, InterTokenBuckets());
  metrics.request_queue_seconds = &queue_family_.Add(labels, RequestBuckets());
  metrics.request_prefill_seconds = &prefill_family_.Add(labels, RequestBuckets());
  metrics.request_decode_seconds = &decode_family_.Add(labels, RequestBuckets());
  metrics.request_seconds = &request_family_.Add(labels, RequestBuckets());
  return std::make_shared<const ModelMetrics>(metrics);
}

void InferenceMetrics::RemoveSeries(const ModelMetrics& metrics) {
  for (prometheus::Counter* counter : metrics.requests_total) requests_family_.Remove(counter);
  for (prometheus::Counter* counter : metrics.discarded_tokens_total) {
    discarded_tokens_family_.Remove(counter);
  }
  prompt_tokens_family_.Remove(metrics.prompt_tokens_total);
  generated_tokens_family_.Remove(metrics.generated_tokens_total);
  time_to_first_token_family_.Remove(metrics.time_to_first_token_seconds);
  inter_token_family_.Remove(metrics.inter_token_latency_seconds);
  queue_family_.Remove(metrics.request_queue_seconds);
  prefill_family_.Remove(metrics.request_prefill_seconds);
  decode_family_.Remove(metrics.request_decode_seconds);
  request_family_.Remove(metrics.request_seconds);
}

void InferenceMetrics::ForgetModels() {
  for (auto it = unloaded_.begin(); it != unloaded_.end() && models_.size() > kModelsWithSeries;) {
    const auto found = models_.find(*it);
    // A request that came late may still hold it; nobody gets it anew without this lock.
    if (found->second.use_count() > 1) {
      ++it;
      continue;
    }
    RemoveSeries(*found->second);
    models_.erase(found);
    it = unloaded_.erase(it);
  }
}

std::shared_ptr<const ModelMetrics> InferenceMetrics::ModelLoaded(const std::string& model,
                                                                  const LoadedModelFacts& facts) {
  MutexLock lock(&mutex_);
  std::shared_ptr<const ModelMetrics>& series = models_[model];
  if (series == nullptr) series = MakeSeries(model);
  std::erase(unloaded_, model);
  ForgetModels();
  ModelGauges gauges;
  gauges.info = &info_family_.Add({{"model", model},
                                   {"artifact", facts.artifact},
                                   {"bits", absl::StrFormat("%.3g", facts.bits)},
                                   {"group_size", std::to_string(facts.group_size)},
                                   {"kernel", facts.kernel},
                                   {"kv_cache_type", facts.kv_cache_type}});
  gauges.load_seconds = &load_family_.Add({{"model", model}});
  gauges.weight_bytes = &bytes_family_.Add({{"model", model}, {"kind", "weights"}});
  gauges.shared_bytes = &bytes_family_.Add({{"model", model}, {"kind", "shared"}});
  gauges.kv_bytes = &bytes_family_.Add({{"model", model}, {"kind", "kv"}});
  gauges.info->Set(1);
  gauges.load_seconds->Set(absl::ToDoubleSeconds(facts.load_duration));
  gauges.weight_bytes->Set(static_cast<double>(facts.weight_bytes - facts.shared_bytes));
  gauges.shared_bytes->Set(static_cast<double>(facts.shared_bytes));
  gauges.kv_bytes->Set(static_cast<double>(facts.kv_bytes));
  loads_total_[static_cast<int>(facts.cause)]->Increment();
  gauges_[model] = gauges;
  return series;
}

void InferenceMetrics::ModelUnloaded(const std::string& model) {
  MutexLock lock(&mutex_);
  const auto it = gauges_.find(model);
  if (it == gauges_.end()) return;
  info_family_.Remove(it->second.info);
  load_family_.Remove(it->second.load_seconds);
  bytes_family_.Remove(it->second.weight_bytes);
  bytes_family_.Remove(it->second.shared_bytes);
  bytes_family_.Remove(it->second.kv_bytes);
  gauges_.erase(it);
  unloaded_.push_back(model);
  ForgetModels();
}

void InferenceMetrics::OnStep(absl::Duration duration, int num_tokens, int num_sequences) {
  step_seconds_->Observe(absl::ToDoubleSeconds(duration));
  step_tokens_->Observe(num_tokens);
  batch_sequences_->Observe(num_sequences);
}

EngineGauges::EngineGauges(prometheus::Registry& registry)
    : running_(
          Gauges(registry, "quern_requests_running", "Requests in the engine's batch.").Add({})),
      waiting_(
          Gauges(registry, "quern_requests_waiting", "Requests in the engine's queue.").Add({})),
      queued_tokens_(Gauges(registry, "quern_queued_tokens",
                            "Tokens of all unfinished requests, prompts and answers asked for.")
                         .Add({})),
      pages_(Gauges(
          registry, "quern_kv_pages",
          "KV pages of all models, by state; cached: free, with a prefix to be found again.")),
      pages_used_(pages_.Add({{"state", "used"}})),
      pages_free_(pages_.Add({{"state", "free"}})),
      pages_cached_(pages_.Add({{"state", "cached"}})),
      usage_ratio_(
          Gauges(registry, "quern_kv_usage_ratio", "Share of the KV pages in use.").Add({})),
      last_step_(Gauges(registry, "quern_engine_last_step_timestamp_seconds",
                        "When the engine last finished a step, Unix time; 0 before the first.")
                     .Add({})),
      preemptions_total_(Counters(registry, "quern_preemptions_total",
                                  "Requests that lost their KV pages to others and were computed "
                                  "again.")
                             .Add({})),
      prefix_cache_tokens_total_(Counters(registry, "quern_prefix_cache_tokens_total",
                                          "Prompt tokens found in the prefix cache.")
                                     .Add({})),
      guessed_tokens_total_(Counters(registry, "quern_speculation_guessed_tokens_total",
                                     "Tokens that were guessed in speculation and computed.")
                                .Add({})),
      accepted_guesses_total_(Counters(registry, "quern_speculation_accepted_tokens_total",
                                       "Guessed tokens that were right and went into answers.")
                                  .Add({})) {}

void EngineGauges::Update(const EngineStats& stats) {
  const double used = static_cast<double>(stats.kv_pages_used);
  const double total = static_cast<double>(stats.kv_pages_total);
  running_.Set(stats.requests_running);
  waiting_.Set(stats.requests_waiting);
  queued_tokens_.Set(static_cast<double>(stats.queued_tokens));
  pages_used_.Set(used);
  const double cached = static_cast<double>(stats.kv_pages_cached);
  pages_cached_.Set(cached);
  pages_free_.Set(total - used - cached);
  usage_ratio_.Set(total > 0 ? used / total : 0);
  RaiseTo(stats.preemptions, preemptions_total_);
  RaiseTo(stats.cached_prompt_tokens, prefix_cache_tokens_total_);
  RaiseTo(stats.guessed_tokens, guessed_tokens_total_);
  RaiseTo(stats.accepted_guesses, accepted_guesses_total_);
  if (stats.last_step_time != absl::InfinitePast()) {
    last_step_.Set(absl::ToDoubleSeconds(stats.last_step_time - absl::UnixEpoch()));
  }
}

}  // namespace quern
