#ifndef QUERN_CORE_ENGINE_SERVED_MODEL_H_
#define QUERN_CORE_ENGINE_SERVED_MODEL_H_

#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/base/thread_pool.h"
#include "core/constraint/constraint.h"
#include "core/engine/admission.h"
#include "core/engine/backend.h"
#include "core/engine/sampler.h"
#include "core/engine/scheduler.h"
#include "core/engine/sequence.h"
#include "core/engine/speculation.h"

namespace quern {

BackendLimits LimitsOf(const EngineOptions& options);
// How the draft model of a model that is loaded with `options` is loaded.
LoadOptions DraftOptions(const LoadOptions& options);

// A loaded model with its sequences. What is const may be read from any thread; the rest is the
// engine thread's.
class ServedModel {
 public:
  // On any thread; seconds.
  static absl::StatusOr<std::unique_ptr<ServedModel>> Load(const ModelSource& source,
                                                           const LoadOptions& load_options,
                                                           const EngineOptions& options,
                                                           Backend* backend, ThreadPool* pool,
                                                           Clock* clock);

  const ModelInfo& info() const { return info_; }
  const std::shared_ptr<const Tokenizer>& tokenizer() const { return tokenizer_; }
  const std::string& chat_template() const { return chat_template_; }
  // Null without a tokenizer. Thread-safe.
  ConstraintCompiler* constraints() const { return constraints_.get(); }

  // A sequence of a request that was found valid for this model. On any thread.
  std::unique_ptr<Sequence> NewSequence(GenerationRequest request, std::shared_ptr<TokenSink> sink,
                                        LogitsFn on_logits, uint64_t seed);
  // INVALID_ARGUMENT naming the field. On any thread.
  absl::Status Validate(const GenerationRequest& request) const;

  // --- Engine thread --------------------------------------------------------------------------
  struct StepReport {
    int num_tokens = 0;
    int num_sequences = 0;
  };
  void Add(std::unique_ptr<Sequence> sequence) { scheduler_.Add(std::move(sequence)); }
  bool has_work() const { return scheduler_.num_running() + scheduler_.num_waiting() > 0; }
  // Ends what was cancelled or has expired and decides on the next step. Counts into `stats` and
  // appends to `ended`. This and Step never fail as a whole: what fails ends its sequences.
  void Plan(EngineStats& stats, std::vector<EndedSequence>& ended);
  // Runs the step that was planned and hands out its tokens; nothing when there is none.
  StepReport Step(EngineStats& stats, std::vector<EndedSequence>& ended);
  // Ends every sequence with `status`.
  void EndAll(const absl::Status& status, EngineStats& stats, std::vector<EndedSequence>& ended);
  // Adds what there is now: running and waiting requests, pages.
  void AddGauges(EngineStats& stats) const;
  // Adds what waits and what room there is. `output_share`: how long answers are, of what was asked
  // for.
  void AddLoad(double output_share, EngineLoad& load) const;

 private:
  ServedModel(ModelInfo info, std::shared_ptr<const Tokenizer> tokenizer, std::string chat_template,
              std::unique_ptr<BackendModel> model, const SchedulerLimits& limits, bool prefix_cache,
              ThreadPool* pool, Clock* clock);

  struct Draw {
    Sequence* sequence;
    int64_t row;  // of the step's logits
    const ScheduledRun* run = nullptr;
    int num_accepted = 0;  // of the run's guesses
    // The place in the prompt whose logits these are, when the request wants the prompt's logprobs.
    int position = -1;
    absl::StatusOr<int32_t> token;
    bool ends = false;  // the constraint leaves no token: instead of `token` the text ends
    // As the request asks for them; here, since the threads that draw must not allocate.
    TokenLogprob logprob;
    std::array<TokenLogprob, kMaxLogprobs> most_probable;
  };

  // Loads what makes the guesses. INVALID_ARGUMENT when a draft model cannot make any for this one.
  absl::Status StartSpeculation(const LoadOptions& options, const ModelSource& source,
                                const BackendLimits& limits, Backend* backend);

  // Runs `body`; when it throws (there is no memory), every sequence ends with INTERNAL.
  template <typename Body>
  void Contained(EngineStats& stats, std::vector<EndedSequence>& ended, Body body);
  // Has the decoding sequences' next tokens guessed.
  void DraftGuesses();
  StepReport RunPlan(const std::vector<ScheduledRun>& plan, EngineStats& stats,
                     std::vector<EndedSequence>& ended);
  // Ends what was cancelled, has expired or is over its time limit.
  void EndCancelled(EngineStats& stats, std::vector<EndedSequence>& ended);
  // Hands a scoring sequence's logits over, [num_logits, vocab_size] from `logits`.
  void DeliverLogits(const ScheduledRun& run, const float* logits);
  // Notes what the step's rows from `row` on are for.
  void PlanDraws(const ScheduledRun& run, int64_t row);
  void DrawTokens(absl::Span<const float> logits);
  // Whether `draw` is of a token that the prompt has already.
  static bool IsOfPrompt(const Draw& draw) {
    return draw.position >= 0 && draw.position + 1 < draw.sequence->num_prompt_tokens;
  }
  absl::Span<TokenLogprob> MostProbable(Draw& draw, const std::optional<int>& count) const {
    return absl::MakeSpan(draw.most_probable.data(),
                          std::min(count.value_or(0), info_.config.vocab_size));
  }
  absl::Span<const TokenLogprob> MostProbable(const Draw& draw,
                                              const std::optional<int>& count) const {
    return absl::MakeConstSpan(draw.most_probable.data(),
                               std::min(count.value_or(0), info_.config.vocab_size));
  }
  void DrawToken(absl::Span<const float> logits, SamplerScratch& scratch, Draw& draw) const;
  // Hands on the prompt's logprobs that `draw` has. False when that failed and ended the sequence.
  bool DeliverPromptLogprobs(const Draw& draw);
  void EndAtTimeLimit(Sequence& sequence, absl::Time now);
  // What the request draws from `logits` as its next token.
  absl::StatusOr<int32_t> DrawNext(const Sequence& sequence, const DrawContext& context,
                                   absl::Span<const float> logits, SamplerScratch& scratch) const;
  DrawContext ContextOf(const Sequence& sequence) const;
  // Puts what the sequence's constraint allows into `context`, or says how the draw ends.
  absl::Status ConstrainDraw(Draw& draw, DrawContext& context) const;
  // Hands the draw's token over. Whether the next row is to be drawn from: the guess was right, and
  // the text goes on.
  bool TakeDraw(Draw& draw, EngineStats& stats);
  // False when that ended the sequence.
  bool DeliverToken(const Draw& draw);
  // Notes that `sequence` is over; CollectEnded takes it out.
  void Finish(Sequence& sequence, absl::StatusOr<GenerationResult> result);
  void CollectEnded(EngineStats& stats, std::vector<EndedSequence>& ended);

  ModelInfo info_;  // const once it is loaded
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const std::string chat_template_;
  const std::unique_ptr<ConstraintCompiler> constraints_;
  ThreadPool* const pool_;
  Clock* const clock_;
  const bool prefix_cache_;

  const std::unique_ptr<BackendModel> model_;
  // Of one sequence in one step; 0 without speculation.
  int max_guesses_ = 0;
  std::unique_ptr<Drafter> drafter_;  // null then
  std::vector<Sequence*> drafting_;   // of one DraftGuesses; kept for its memory
  KvPagePool pages_;
  Scheduler scheduler_;
  std::vector<SamplerScratch> scratch_;  // one a thread

  const std::vector<ScheduledRun>* plan_ = nullptr;  // of the next step, until it has run
  // Of the step that runs; kept for their memory.
  Batch batch_;
  std::vector<Draw> draws_;
  std::vector<std::pair<Sequence*, absl::StatusOr<GenerationResult>>> finished_;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_SERVED_MODEL_H_
