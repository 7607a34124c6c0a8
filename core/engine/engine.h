#ifndef QUERN_CORE_ENGINE_ENGINE_H_
#define QUERN_CORE_ENGINE_ENGINE_H_

// One engine, one thread: it alone owns the sequences, the pages and the step of every model it
// holds. Requests come in by a bounded queue, tokens leave by a sink.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <absl/types/span.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/constraint/constraint.h"
#include "core/engine/model_source.h"
#include "core/tokenizer/chat.h"
#include "core/tokenizer/tokenizer.h"

namespace quern {

struct EngineOptions {
  // Threads of a step, the engine's own among them. Operators set it to the cores they grant.
  int num_threads = 1;
  // Slots (tokens) of one KV page of half floats; quantized ones have
  // kernels::kQuantizedPageTokens.
  int page_tokens = 16;
  // Memory for KV pages of each model; requests wait for free pages beyond it. A model whose
  // whole context does not fit is served with the context that does; see ModelInfo.
  int64_t kv_cache_bytes = int64_t{1} << 30;
  // Whether the keys and values of a prompt's beginning are used again by later requests that begin
  // alike (whole pages). Answers are the same, bit by bit.
  bool prefix_cache = true;
  // Tokens of one step, prefill chunks and decode together: larger helps throughput, smaller
  // helps the time between tokens.
  int max_step_tokens = 512;
  // Sequences in one step of a model.
  int max_sequences = 64;
  // Requests that wait beyond `max_sequences`: with that many unfinished ones in the engine,
  // Submit gives RESOURCE_EXHAUSTED.
  int max_queued_requests = 256;
  // Tokens of all unfinished requests, prompts and answers asked for; an answer without a limit
  // counts as 1024. Beyond it Submit gives RESOURCE_EXHAUSTED too, but one request alone is always
  // taken. Bounds how long the last in the queue waits.
  int64_t max_queued_tokens = int64_t{1} << 20;
  // How long a request may have to wait, by an estimate, before its own prompt is computed. Beyond
  // it Submit gives RESOURCE_EXHAUSTED, but for Priority::kLow. Keeps the time to the first token
  // when more comes than can be served.
  absl::Duration max_queue_wait = absl::InfiniteDuration();
  // A table by name ("scalar"), to compare or to find a fault; empty: the best this CPU can run.
  std::string kernels;

  // Takes whatever is asked, as far as it can be counted: for an engine of one's own, which need
  // not be kept from others.
  void LiftQueueLimits();
  absl::Status Validate() const;
};

struct SamplingParams {
  float temperature = 0;  // 0: greedy
  int top_k = 0;          // 0: no limit
  float typical_p = 1;    // in (0, 1]
  float top_p = 1;        // in (0, 1]
  float min_p = 0;        // in [0, 1)
  // On tokens of the prompt and the answer; in [0.01, 100], 1: none.
  float repetition_penalty = 1;
  // On tokens of the answer: once, and for each time; in [-100, 100].
  float presence_penalty = 0;
  float frequency_penalty = 0;
  // Added to the logits of these ids; at most 1024, each in [-100, 100].
  std::map<int32_t, float> logit_bias;
  // Same seed, model and prompt give the same text whatever else runs. Unset: chosen by the engine
  // and reported.
  std::optional<uint64_t> seed;
  absl::Status Validate() const;
};

inline constexpr int kMaxLogprobs = 20;
inline constexpr int kMaxStopIds = 64;

enum class FinishReason {
  kEndOfText,
  kStopSequence,
  kMaxOutputTokens,
  kContextFull,  // the last token has no room for its keys and values
  kTimeLimit,
};

// Of the requests that wait those of higher priority are admitted first, and they lose their pages
// last. One that is older than kPriorityAgeing and still waits counts as kHigh, so that none waits
// for ever.
enum class Priority { kLow, kNormal, kHigh };
inline constexpr int kNumPriorities = 3;
inline constexpr absl::Duration kPriorityAgeing = absl::Minutes(1);

struct GenerationRequest {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  // 0: up to the model's context.
  int max_output_tokens = 0;
  // As long as the answer is shorter, neither end-of-text ids nor stop_ids are drawn.
  int min_output_tokens = 0;
  // Log-probabilities, handed to OnLogprobs: of each token of the answer, and of this many most
  // probable ones beside it, at most kMaxLogprobs. Unset: none.
  std::optional<int> num_logprobs;
  // The same of the tokens of the prompt, handed to OnPromptLogprobs. The prefix cache is not used.
  std::optional<int> num_prompt_logprobs;
  // Ends with kMaxOutputTokens where the prompt does, and nothing is drawn; max_output_tokens and
  // min_output_tokens are 0 then.
  bool prompt_only = false;
  // At most 4, each 1 to 64 bytes of UTF-8. The text ends before the first match.
  std::vector<std::string> stop_sequences;
  // Sampling goes on through end-of-text tokens (calibration wants full lengths).
  bool ignore_end_of_text = false;
  // Ids that end the text beside the model's own end-of-text ids (a chat format's); at most
  // kMaxStopIds.
  std::vector<int32_t> stop_ids;
  // Of CompileConstraint, for this model: the answer is one of its texts, or the beginning of one
  // when a limit or a stop sequence ends it before. End-of-text ids and stop_ids are drawn only
  // where a text may end, special tokens never, whatever logit_bias says. Where nothing but the end
  // can follow the answer ends with kEndOfText, also before min_output_tokens.
  std::shared_ptr<const Constraint> constraint;
  // Who asks; empty when that is not known. Principals get equal shares of the tokens. Only
  // requests of the same one share what the prefix cache holds, so that nobody can find out by
  // timing what another one asked.
  std::string principal;
  Priority priority = Priority::kNormal;
  // Expired requests are dropped with DEADLINE_EXCEEDED, also while queued.
  absl::Time deadline = absl::InfiniteFuture();
  // From Submit on, more than 0: then the answer ends with kTimeLimit, as far as it has come; while
  // queued, with nothing.
  absl::Duration time_limit = absl::InfiniteDuration();
};

struct GenerationResult {
  FinishReason finish_reason = FinishReason::kEndOfText;
  std::string matched_stop_sequence;
  uint64_t seed = 0;
  int prompt_tokens = 0;
  int cached_prompt_tokens = 0;   // of these, found in the prefix cache
  int output_tokens = 0;          // ids handed to OnTokens
  int64_t recomputed_tokens = 0;  // computed again after the request had lost its pages
  absl::Duration queue_duration;
  absl::Duration time_to_first_token;
  absl::Duration total_duration;
};

// Of the model's own distribution: before temperature, penalties and limits.
struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;  // natural
};

// Where the tokens of one request go. Called from the engine thread, so implementations must be
// quick and must not call back into the engine (cancelled() apart, from any thread).
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  // New ids and the text that is now certain (complete characters; what may still become a stop
  // sequence is held back). `ids` is empty when only held text comes; `text` may be empty. The
  // end-of-text id is not handed over unless ignore_end_of_text asks for it.
  virtual void OnTokens(absl::Span<const int32_t> ids, absl::string_view text) = 0;
  // Before OnTokens of `token`, when the request asks for it. `most_probable`: num_logprobs of
  // them, the most probable first.
  virtual void OnLogprobs(const TokenLogprob& /*token*/,
                          absl::Span<const TokenLogprob> /*most_probable*/) {}
  // Before the first OnTokens, once for each token of the prompt in order, when the request asks
  // for it. The first has none before it that could predict it: a logprob of 0 and no
  // `most_probable`.
  virtual void OnPromptLogprobs(const TokenLogprob& /*token*/,
                                absl::Span<const TokenLogprob> /*most_probable*/) {}
  // Before OnEnd of a request that did not end well: so many tokens were computed for it in vain.
  virtual void OnDiscarded(int64_t /*num_tokens*/) {}
  // Called exactly once, last. OK with a result, or why the request failed or was cancelled:
  // CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE (the engine stops) or INTERNAL. Stats() counts the
  // request as ended by then, its pages are free and its place in the queue is too.
  virtual void OnEnd(absl::StatusOr<GenerationResult> result) = 0;
  // Asked each step, also while queued; true frees the request's pages within a step and ends it
  // with CANCELLED.
  virtual bool cancelled() const = 0;
};

// A loaded model; opaque. Valid until Unload.
using ModelHandle = int;

struct ModelInfo {
  ModelConfig config;
  // Tokens of the longest sequence: max_position_embeddings, or what the KV pages hold.
  int max_context_tokens = 0;
  int64_t weight_bytes = 0;       // in the form the kernels read
  int64_t step_weight_bytes = 0;  // of these, what every step reads
  // Of weight_bytes, what another model held already when this one was loaded: held once for both.
  int64_t shared_weight_bytes = 0;
  int64_t kv_bytes = 0;        // reserved for its KV cache
  int64_t kv_token_bytes = 0;  // of these, what a token takes
  KvCacheType kv_cache_type = KvCacheType::kFloat16;
  // What the KV cache's rounding costs, measured at load on a short text: the mean of KL(KV cache
  // of half floats || this one), nats. Unset for half floats, and when it could not be measured.
  std::optional<double> kv_cache_kl;
  std::string kernel;  // name of the table
  ChatFormat chat_format = ChatFormat::kNone;
};

// What the metrics read; a consistent copy, made by the engine thread after each step.
struct EngineStats {
  int requests_running = 0;
  int requests_waiting = 0;
  int64_t queued_tokens = 0;  // of all unfinished requests, as max_queued_tokens counts them
  int64_t kv_pages_used = 0;
  int64_t kv_pages_total = 0;
  int64_t steps = 0;
  int64_t kv_pages_cached = 0;       // not used, but still found by their tokens
  int64_t prompt_tokens = 0;         // prefilled
  int64_t cached_prompt_tokens = 0;  // found in the prefix cache instead
  int64_t generated_tokens = 0;      // sampled
  int64_t discarded_tokens = 0;      // computed for requests that did not end well
  int64_t guessed_tokens = 0;        // computed in speculation
  int64_t accepted_guesses = 0;      // of these, the right ones
  int64_t preemptions = 0;           // sequences that lost their pages and were computed again
  absl::Time last_step_time = absl::InfinitePast();
};

// Hears of each finished step, for histograms. Called from the engine thread.
class StepObserver {
 public:
  virtual ~StepObserver() = default;
  virtual void OnStep(absl::Duration duration, int num_tokens, int num_sequences) = 0;
};

// Why Submit said RESOURCE_EXHAUSTED: requests or tokens are at their limit, the principal holds
// its share of the queue, or the wait would be too long. None for other statuses. RetryDelayOf such
// a status says when to try again, by what the engine computed lately.
enum class NoRoom { kRequests, kTokens, kShare, kWait };
std::optional<NoRoom> NoRoomOf(const absl::Status& status);

// Thread-safe.
class Engine {
 public:
  // Starts the thread. `observer` may be null, `clock` too (the system's); they outlive the engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options,
                                                        StepObserver* observer = nullptr,
                                                        Clock* clock = nullptr);
  // Ends what still runs with UNAVAILABLE.
  virtual ~Engine() = default;

  // Prepacks the weights for this CPU and reserves pages, on the calling thread: what runs goes on
  // meanwhile. Seconds. RESOURCE_EXHAUSTED when there is no memory, or `kv_cache_bytes` is less
  // than one page (and, quantized, one that is being filled); DATA_LOSS when a weight is not
  // finite.
  virtual absl::StatusOr<ModelHandle> Load(const ModelSource& source,
                                           const LoadOptions& options) = 0;
  absl::StatusOr<ModelHandle> Load(const ModelSource& source) { return Load(source, {}); }
  // What Load would take. Quick: only shapes of `source` are read. Errors as Load.
  virtual absl::StatusOr<ModelMemory> PlanMemory(const ModelSource& source,
                                                 const LoadOptions& options) const = 0;
  absl::StatusOr<ModelMemory> PlanMemory(const ModelSource& source) const {
    return PlanMemory(source, {});
  }
  // Lets what runs finish, then frees the memory; blocks until then. New requests are refused
  // with FAILED_PRECONDITION from the call on.
  virtual absl::Status Unload(ModelHandle model) = 0;
  virtual absl::StatusOr<ModelInfo> Info(ModelHandle model) const = 0;
  // Null when the model came without a tokenizer.
  virtual absl::StatusOr<std::shared_ptr<const Tokenizer>> GetTokenizer(
      ModelHandle model) const = 0;
  // Ids for a chat in the model's own format; see RenderChat. FAILED_PRECONDITION when the model
  // has no tokenizer. A request made of them also wants ChatStopIds.
  virtual absl::StatusOr<std::vector<int32_t>> EncodeChat(
      ModelHandle model, const std::vector<ChatMessage>& messages) const = 0;

  // What Submit would say now of a small request of `principal`: OK, RESOURCE_EXHAUSTED or
  // UNAVAILABLE. Quick; to refuse before the work of making a request. Without a model how long it
  // would wait does not count; NOT_FOUND when there is no such model.
  virtual absl::Status CheckRoom(absl::string_view principal) const = 0;
  virtual absl::Status CheckRoom(absl::string_view principal, ModelHandle model,
                                 Priority priority) const = 0;
  // Compiles what a request's answers must be, or finds it among what was compiled before, on the
  // calling thread: tens of milliseconds at most. FAILED_PRECONDITION when the model has no
  // tokenizer, INVALID_ARGUMENT naming what is not supported or which limit was met.
  virtual absl::StatusOr<CompiledConstraint> CompileConstraint(
      ModelHandle model, const ConstraintSpec& spec) const = 0;

  // Queues a request; `sink` lives until OnEnd has returned. An error here means OnEnd will not be
  // called: INVALID_ARGUMENT (ids out of range, an empty prompt, a prompt longer than the context,
  // parameters out of range), NOT_FOUND (no such model), FAILED_PRECONDITION (it is being
  // unloaded), RESOURCE_EXHAUSTED (queue full), UNAVAILABLE (draining). Else OnEnd may have been
  // called before this returns.
  virtual absl::Status Submit(ModelHandle model, GenerationRequest request,
                              std::shared_ptr<TokenSink> sink) = 0;

  // Logits of the positions of `tokens` [n], n <= max_context_tokens, from `first_position` on (in
  // [0, n); others cost no output head), through the serving kernels, in pieces:
  // `on_logits(position, logits[vocab_size])` in order of position, each once, on the engine
  // thread. Blocks; of several callers those of one model are computed together. For evaluation.
  // Errors as Submit, and UNAVAILABLE.
  virtual absl::Status Score(
      ModelHandle model, absl::Span<const int32_t> tokens, int first_position,
      const std::function<void(int position, absl::Span<const float> logits)>& on_logits) = 0;
  // Of every position.
  absl::Status Score(
      ModelHandle model, absl::Span<const int32_t> tokens,
      const std::function<void(int position, absl::Span<const float> logits)>& on_logits) {
    return Score(model, tokens, 0, on_logits);
  }

  virtual EngineStats Stats() const = 0;
  // False when the engine thread has got nowhere (no block of a model computed) for `limit`
  // although work waits. Idle is healthy.
  virtual bool Healthy(absl::Duration limit) const = 0;
  // Refuses new requests (UNAVAILABLE), lets the running ones end until `grace` is over, then ends
  // the rest with UNAVAILABLE.
  virtual void Drain(absl::Duration grace) = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_ENGINE_H_
