#include "core/engine/served_model.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <optional>
#include <utility>

#include "core/base/log.h"
#include "core/base/status_macros.h"

namespace quern {
namespace {

// What an answer without a limit counts as in the queue: few are longer.
constexpr int kAssumedOutputTokens = 1024;
// Rows of logits of a step in which guesses are tried: with more, products are no longer bound by
// reading the weights, and a guess costs what a token does.
constexpr int kMaxSpeculativeRows = 8;

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// Runs code that is not the engine's. What it throws fails its own request only.
template <typename Callback>
absl::Status Guarded(absl::string_view what, Callback callback) {
  try {
    callback();
    return absl::OkStatus();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat(what, " threw: ", error.what()));
  } catch (...) {
    return absl::InternalError(absl::StrCat(what, " threw"));
  }
}

// 0, or why a step of a constraint failed: unlike the rest of a draw it may want memory.
template <typename Step>
absl::StatusOr<int32_t> Constrained(Step step) {
  absl::Status status;
  RETURN_IF_ERROR(Guarded("the constraint", [&] { status = step(); }));
  RETURN_IF_ERROR(status);
  return 0;
}

// What the end of a request says of why it did not end well; OK while it may go on.
absl::Status WhyOver(const Sequence& sequence, absl::Time now) {
  bool cancelled = false;
  RETURN_IF_ERROR(Guarded("cancelled()", [&] { cancelled = sequence.sink->cancelled(); }));
  if (cancelled) return absl::CancelledError("the request was cancelled");
  if (now >= sequence.request.deadline) {
    return absl::DeadlineExceededError(absl::StrCat(
        "the request's deadline has passed after ", sequence.num_output_tokens(), " tokens, ",
        absl::FormatDuration(now - sequence.submit_time), " after it came"));
  }
  return absl::OkStatus();
}

GenerationResult MakeResult(const Sequence& sequence, FinishReason reason, absl::Time now) {
  return {.finish_reason = reason,
          .matched_stop_sequence = sequence.text.matched().value_or(""),
          .seed = sequence.seed,
          .prompt_tokens = sequence.num_prompt_tokens,
          .cached_prompt_tokens = sequence.num_cached,
          .output_tokens = sequence.num_output_tokens(),
          .recomputed_tokens = sequence.recomputed_tokens,
          .queue_duration = std::min(sequence.admit_time, now) - sequence.submit_time,
          .time_to_first_token = std::min(sequence.first_token_time, now) - sequence.submit_time,
          .total_duration = now - sequence.submit_time};
}

}  // namespace

ServedModel::ServedModel(ModelInfo info, std::shared_ptr<const Tokenizer> tokenizer,
                         std::string chat_template, std::unique_ptr<BackendModel> model,
                         const SchedulerLimits& limits, bool prefix_cache, ThreadPool* pool,
                         Clock* clock)
    : info_(std::move(info)),
      tokenizer_(std::move(tokenizer)),
      chat_template_(std::move(chat_template)),
      constraints_(tokenizer_ == nullptr
                       ? nullptr
                       : std::make_unique<ConstraintCompiler>(tokenizer_, info_.config.vocab_size)),
      pool_(pool),
      clock_(clock),
      prefix_cache_(prefix_cache),
      model_(std::move(model)),
      pages_(model_->num_pages(), limits.page_tokens, limits.max_sequences),
      scheduler_(limits, &pages_),
      scratch_(pool->num_threads()) {
  draws_.reserve(limits.max_logits);
  for (SamplerScratch& scratch : scratch_) {
    // Here, as the threads of a step cannot report that there is no memory.
    scratch.Reserve(info_.config.vocab_size);
  }
}

std::unique_ptr<Sequence> ServedModel::NewSequence(GenerationRequest request,
                                                   std::shared_ptr<TokenSink> sink,
                                                   LogitsFn on_logits, uint64_t seed) {
  // After nothing but special tokens a text begins; else it goes on where the prompt ends.
  const bool continues_text =
      tokenizer_ != nullptr && std::any_of(request.prompt.begin(), request.prompt.end(),
                                           [&](int32_t id) { return !tokenizer_->IsSpecial(id); });
  TextStream text(tokenizer_, continues_text, request.stop_sequences);
  // What is in the cache is not computed, and has no logits.
  const bool wants_logits = on_logits != nullptr || request.num_prompt_logprobs.has_value();
  const uint64_t prefix_root = prefix_cache_ && !wants_logits ? PrefixRoot(request.principal) : 0;
  auto sequence =
      std::make_unique<Sequence>(std::move(request), std::move(sink), std::move(on_logits),
                                 std::move(text), &pages_, prefix_root, clock_->Now());
  sequence->seed = seed;
  sequence->end_ids.assign(info_.config.eos_token_ids.begin(), info_.config.eos_token_ids.end());
  sequence->end_ids.insert(sequence->end_ids.end(), sequence->request.stop_ids.begin(),
                           sequence->request.stop_ids.end());
  int64_t output_tokens = sequence->request.max_output_tokens;
  if (output_tokens == 0 && !sequence->scoring()) output_tokens = kAssumedOutputTokens;
  sequence->queue_tokens =
      std::min<int64_t>(sequence->num_prompt_tokens + output_tokens, info_.max_context_tokens);
  if (max_guesses_ > 0) sequence->draft.reserve(1 + max_guesses_);
  // Room for the whole answer, so that no step has to make it.
  const int64_t tokens = sequence->num_prompt_tokens + int64_t{sequence->request.max_output_tokens};
  sequence->tokens.reserve(std::min<int64_t>(tokens, info_.max_context_tokens + 1));
  return sequence;
}

void ServedModel::Plan(EngineStats& stats, std::vector<EndedSequence>& ended) {
  plan_ = nullptr;
  Contained(stats, ended, [&] {
    EndCancelled(stats, ended);
    DraftGuesses();
    const int64_t preemptions_before = scheduler_.num_preemptions();
    plan_ = &scheduler_.Plan(clock_->Now());
    stats.preemptions += scheduler_.num_preemptions() - preemptions_before;
  });
}

ServedModel::StepReport ServedModel::Step(EngineStats& stats, std::vector<EndedSequence>& ended) {
  StepReport report;
  if (plan_ == nullptr || plan_->empty()) return report;
  Contained(stats, ended, [&] { report = RunPlan(*plan_, stats, ended); });
  plan_ = nullptr;
  return report;
}

template <typename Body>
void ServedModel::Contained(EngineStats& stats, std::vector<EndedSequence>& ended, Body body) {
  const absl::Status status = Guarded("a step", body);
  if (status.ok()) return;
  LOG(ERROR) << "step failed sequences=" << scheduler_.num_running() << " error=" << status;
  finished_.clear();
  plan_ = nullptr;
  EndAll(status, stats, ended);
}

ServedModel::StepReport ServedModel::RunPlan(const std::vector<ScheduledRun>& plan,
                                             EngineStats& stats,
                                             std::vector<EndedSequence>& ended) {
  StepReport report{.num_sequences = static_cast<int>(plan.size())};
  batch_.clear();
  for (const ScheduledRun& run : plan) {
    const Sequence& sequence = *run.sequence;
    batch_.push_back({.tokens = run.num_guesses > 0
                                    ? absl::MakeConstSpan(sequence.draft).first(run.num_tokens)
                                    : absl::MakeConstSpan(sequence.tokens)
                                          .subspan(sequence.num_computed, run.num_tokens),
                      .position = sequence.num_computed,
                      .pages = sequence.pages.pages(),
                      .slot = sequence.pages.slot(),
                      .num_logits = run.num_logits});
    report.num_tokens += run.num_tokens;
  }
  const absl::StatusOr<absl::Span<const float>> logits = model_->Step(batch_);

  draws_.clear();
  int64_t row = 0;
  for (const ScheduledRun& run : plan) {
    Sequence& sequence = *run.sequence;
    if (!logits.ok()) {
      Finish(sequence, logits.status());
      continue;
    }
    if (sequence.work_tokens == 0) stats.cached_prompt_tokens += sequence.num_cached;
    stats.prompt_tokens +=
        std::clamp(sequence.num_prompt_tokens - sequence.num_computed, 0, run.num_tokens);
    // Guesses count when they turn out right.
    sequence.num_computed += run.num_tokens - run.num_guesses;
    sequence.work_tokens += run.num_tokens;
    stats.guessed_tokens += run.num_guesses;
    if (sequence.scoring()) {
      DeliverLogits(run, logits->data() + row * info_.config.vocab_size);
    } else {
      PlanDraws(run, row);
    }
    row += run.num_logits;
  }
  while (logits.ok() && !draws_.empty()) {
    DrawTokens(*logits);
    std::erase_if(draws_, [&](Draw& draw) { return !TakeDraw(draw, stats); });
  }
  for (const ScheduledRun& run : plan) {
    Sequence& sequence = *run.sequence;
    sequence.pages.Publish(absl::MakeConstSpan(sequence.tokens).first(sequence.num_computed));
    sequence.draft.clear();
  }
  CollectEnded(stats, ended);
  return report;
}

void ServedModel::DraftGuesses() {
  if (drafter_ == nullptr) return;
  drafting_.clear();
  scheduler_.ForEachDecoding([&](Sequence& sequence) { drafting_.push_back(&sequence); });
  if (drafting_.empty()) return;
  const int share = kMaxSpeculativeRows / static_cast<int>(drafting_.size()) - 1;
  std::erase_if(drafting_, [&](Sequence* sequence) {
    if (sequence->guess_limit == 0) sequence->guess_limit = max_guesses_;
    sequence->max_guesses =
        std::min({share, sequence->guess_limit,
                  // The last token of an answer and of a context need not be guessed from.
                  sequence->request.max_output_tokens > 0
                      ? sequence->request.max_output_tokens - sequence->num_output_tokens() - 1
                      : max_guesses_,
                  info_.max_context_tokens - sequence->num_tokens()});
    if (info_.kv_cache_type != KvCacheType::kFloat16) {
      // A page is rounded when the next one is begun, which only a token that stays may do.
      const int page_tokens = model_->page_tokens();
      sequence->max_guesses =
          std::min(sequence->max_guesses, page_tokens - 1 - sequence->num_computed % page_tokens);
    }
    if (sequence->max_guesses > 0) sequence->draft.assign(1, sequence->tokens.back());
    return sequence->max_guesses <= 0;
  });
  if (!drafting_.empty()) drafter_->Draft(absl::MakeConstSpan(drafting_));
}

bool ServedModel::TakeDraw(Draw& draw, EngineStats& stats) {
  Sequence& sequence = *draw.sequence;
  // Its other draws are no longer wanted.
  if (!finished_.empty() && finished_.back().first == &sequence) return false;
  if (!draw.token.ok()) {
    Finish(sequence, draw.token.status());
    return false;
  }
  if (!DeliverPromptLogprobs(draw) || IsOfPrompt(draw)) return false;
  if (sequence.request.prompt_only) {
    Finish(sequence, MakeResult(sequence, FinishReason::kMaxOutputTokens, clock_->Now()));
    return false;
  }
  if (!draw.ends) ++stats.generated_tokens;
  const bool goes_on = DeliverToken(draw);
  const int num_guesses = draw.run->num_guesses;
  if (num_guesses == 0) return false;
  if (goes_on && draw.num_accepted < num_guesses &&
      sequence.draft[1 + draw.num_accepted] == *draw.token) {
    // Its keys and values are there already, and so are the logits that follow it.
    ++sequence.num_computed;
    ++stats.accepted_guesses;
    ++draw.num_accepted;
    ++draw.row;
    return true;
  }
  sequence.guess_limit = draw.num_accepted == num_guesses ? std::min(max_guesses_, num_guesses + 2)
                                                          : draw.num_accepted + 1;
  return false;
}

void ServedModel::EndCancelled(EngineStats& stats, std::vector<EndedSequence>& ended) {
  const absl::Time now = clock_->Now();
  const auto check = [&](Sequence& sequence) {
    absl::Status why = WhyOver(sequence, now);
    if (!why.ok()) return Finish(sequence, std::move(why));
    if (now >= sequence.stop_time) EndAtTimeLimit(sequence, now);
  };
  scheduler_.ForEachRunning(check);
  scheduler_.ForEachWaiting(check);
  CollectEnded(stats, ended);
}

void ServedModel::EndAtTimeLimit(Sequence& sequence, absl::Time now) {
  const std::string held = sequence.text.Finish();
  const FinishReason reason =
      sequence.text.matched().has_value() ? FinishReason::kStopSequence : FinishReason::kTimeLimit;
  if (!held.empty()) {
    const absl::Status status = Guarded("OnTokens", [&] { sequence.sink->OnTokens({}, held); });
    if (!status.ok()) return Finish(sequence, status);
  }
  Finish(sequence, MakeResult(sequence, reason, now));
}

void ServedModel::DeliverLogits(const ScheduledRun& run, const float* logits) {
  Sequence& sequence = *run.sequence;
  for (int i = 0; i < run.num_logits; ++i) {
    const auto row =
        absl::MakeConstSpan(logits + int64_t{i} * info_.config.vocab_size, info_.config.vocab_size);
    const absl::Status status =
        Guarded("on_logits", [&] { sequence.on_logits(sequence.num_scored, row); });
    if (!status.ok()) return Finish(sequence, status);
    ++sequence.num_scored;
  }
  if (sequence.num_pending() == 0) {
    Finish(sequence, MakeResult(sequence, FinishReason::kContextFull, clock_->Now()));
  }
}

void ServedModel::PlanDraws(const ScheduledRun& run, int64_t row) {
  Sequence& sequence = *run.sequence;
  if (!sequence.wants_prompt_logits()) {
    if (run.num_logits > 0) {
      draws_.push_back({.sequence = &sequence, .row = row, .run = &run, .token = 0});
    }
    return;
  }
  for (int i = 0; i < run.num_logits; ++i) {
    draws_.push_back({.sequence = &sequence,
                      .row = row + i,
                      .run = &run,
                      .position = sequence.num_scored++,
                      .token = 0});
  }
}

void ServedModel::DrawTokens(absl::Span<const float> logits) {
  const auto num_draws = static_cast<int64_t>(draws_.size());
  const int num_threads = pool_->num_threads();
  // One draw alone is for one thread.
  pool_->ParallelFor(num_threads, num_draws > 1 ? 1 : num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t i = num_draws * thread / num_threads; i < num_draws * (thread + 1) / num_threads;
           ++i) {
        DrawToken(logits.subspan(draws_[i].row * info_.config.vocab_size, info_.config.vocab_size),
                  scratch_[thread], draws_[i]);
      }
    }
  });
}

DrawContext ServedModel::ContextOf(const Sequence& sequence) const {
  const auto tokens = absl::MakeConstSpan(sequence.tokens);
  DrawContext context{.prompt = tokens.first(sequence.num_prompt_tokens),
                      .output = tokens.subspan(sequence.num_prompt_tokens)};
  if (sequence.num_output_tokens() < sequence.request.min_output_tokens) {
    context.excluded = sequence.end_ids;
  }
  return context;
}

absl::StatusOr<int32_t> ServedModel::DrawNext(const Sequence& sequence, const DrawContext& context,
                                              absl::Span<const float> logits,
                                              SamplerScratch& scratch) const {
  const SamplingParams& sampling = sequence.request.sampling;
  return SampleToken(AdjustLogits(logits, sampling, context, scratch), sampling, sequence.seed,
                     sequence.num_output_tokens(), scratch);
}

void ServedModel::DrawToken(absl::Span<const float> logits, SamplerScratch& scratch,
                            Draw& draw) const {
  Sequence& sequence = *draw.sequence;
  const GenerationRequest& request = sequence.request;
  if (IsOfPrompt(draw)) {
    draw.logprob = Logprobs(logits, sequence.tokens[draw.position + 1],
                            MostProbable(draw, request.num_prompt_logprobs), scratch);
    if (std::isnan(draw.logprob.logprob)) {
      draw.token = absl::InternalError(
          absl::StrCat("the logits of prompt token ", draw.position, " are not finite"));
    }
    return;
  }
  if (request.prompt_only) return;
  DrawContext context = ContextOf(sequence);
  if (sequence.constraint.has_value()) {
    draw.token = Constrained([&] { return ConstrainDraw(draw, context); });
    if (!draw.token.ok() || draw.ends) return;
  }
  draw.token = DrawNext(sequence, context, logits, scratch);
  if (!draw.token.ok()) return;
  if (sequence.constraint.has_value() && !Contains(sequence.end_ids, *draw.token)) {
    const int32_t token = *draw.token;
    draw.token = Constrained([&] { return sequence.constraint->Accept(token); });
    if (!draw.token.ok()) return;
    draw.token = token;
  }
  if (!request.num_logprobs.has_value()) return;
  draw.logprob = Logprobs(logits, *draw.token, MostProbable(draw, request.num_logprobs), scratch);
}

bool ServedModel::DeliverPromptLogprobs(const Draw& draw) {
  if (draw.position < 0) return true;
  Sequence& sequence = *draw.sequence;
  absl::Status status = Guarded("OnPromptLogprobs", [&] {
    if (draw.position == 0) sequence.sink->OnPromptLogprobs({.id = sequence.tokens[0]}, {});
    if (!IsOfPrompt(draw)) return;
    sequence.sink->OnPromptLogprobs(draw.logprob,
                                    MostProbable(draw, sequence.request.num_prompt_logprobs));
  });
  if (status.ok()) return true;
  Finish(sequence, std::move(status));
  return false;
}

absl::Status ServedModel::ConstrainDraw(Draw& draw, DrawContext& context) const {
  ConstraintState& constraint = *draw.sequence->constraint;
  ASSIGN_OR_RETURN(context.allowed, constraint.AllowedTokens());
  const std::vector<int32_t>& end_ids = draw.sequence->end_ids;
  // Ids that end the text are no text, also where they have some.
  const bool some_token = [&] {
    for (size_t i = 0; i < context.allowed.size(); ++i) {
      uint64_t word = context.allowed[i];
      if (word == 0) continue;
      for (const int32_t id : end_ids) {
        if (static_cast<size_t>(id) / 64 == i) word &= ~(uint64_t{1} << (id % 64));
      }
      if (word != 0) return true;
    }
    return false;
  }();
  if (some_token) {
    (constraint.may_end() ? context.also_allowed : context.excluded) = end_ids;
    return absl::OkStatus();
  }
  draw.ends = constraint.may_end();
  if (draw.ends) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "no token of the model's vocabulary goes on with the text that the constraint wants");
}

bool ServedModel::DeliverToken(const Draw& draw) {
  Sequence& sequence = *draw.sequence;
  const int32_t token = *draw.token;
  const GenerationRequest& request = sequence.request;
  const absl::Time now = clock_->Now();
  sequence.first_token_time = std::min(sequence.first_token_time, now);
  const bool ends_text =
      draw.ends || (!request.ignore_end_of_text && Contains(sequence.end_ids, token));
  std::optional<FinishReason> reason;
  std::string text;
  if (ends_text) {
    reason = FinishReason::kEndOfText;
  } else {
    sequence.tokens.push_back(token);
    text = sequence.text.Append(token);
    if (sequence.constraint.has_value() && sequence.constraint->must_end()) {
      reason = FinishReason::kEndOfText;
    } else if (sequence.num_output_tokens() == request.max_output_tokens) {
      reason = FinishReason::kMaxOutputTokens;
    } else if (sequence.num_tokens() > info_.max_context_tokens) {
      reason = FinishReason::kContextFull;
    }
  }
  if (reason.has_value()) text += sequence.text.Finish();
  if (sequence.text.matched().has_value()) reason = FinishReason::kStopSequence;

  if (!ends_text || !text.empty()) {
    const absl::Status status = Guarded("OnTokens", [&] {
      const absl::Span<const int32_t> ids =
          ends_text ? absl::Span<const int32_t>() : absl::MakeConstSpan(&token, 1);
      if (request.num_logprobs.has_value() && !ends_text) {
        sequence.sink->OnLogprobs(draw.logprob, MostProbable(draw, request.num_logprobs));
      }
      sequence.sink->OnTokens(ids, text);
    });
    if (!status.ok()) {
      Finish(sequence, status);
      return false;
    }
  }
  if (reason.has_value()) Finish(sequence, MakeResult(sequence, *reason, now));
  return !reason.has_value();
}

void ServedModel::Finish(Sequence& sequence, absl::StatusOr<GenerationResult> result) {
  finished_.emplace_back(&sequence, std::move(result));
}

void ServedModel::CollectEnded(EngineStats& stats, std::vector<EndedSequence>& ended) {
  if (finished_.empty()) return;
  const auto find = [&](const Sequence& sequence) {
    return std::find_if(finished_.begin(), finished_.end(),
                        [&](const auto& entry) { return entry.first == &sequence; });
  };
  auto removed = scheduler_.Remove(
      [&](const Sequence& sequence) { return find(sequence) != finished_.end(); });
  for (std::unique_ptr<Sequence>& sequence : removed) {
    absl::StatusOr<GenerationResult> result = std::move(find(*sequence)->second);
    sequence->ReleasePages();
    if (!result.ok()) stats.discarded_tokens += sequence->work_tokens;
    ended.push_back({std::move(sequence), std::move(result)});
  }
  finished_.clear();
}

void ServedModel::EndAll(const absl::Status& status, EngineStats& stats,
                         std::vector<EndedSequence>& ended) {
  for (std::unique_ptr<Sequence>& sequence :
       scheduler_.Remove([](const Sequence&) { return true; })) {
    sequence->ReleasePages();
    stats.discarded_tokens += sequence->work_tokens;
    ended.push_back({std::move(sequence), status});
  }
}

void ServedModel::AddGauges(EngineStats& stats) const {
  stats.requests_running += scheduler_.num_running();
  stats.requests_waiting += scheduler_.num_waiting();
  stats.kv_pages_used += pages_.num_pages() - pages_.num_free();
  stats.kv_pages_cached += pages_.num_cached();
  stats.kv_pages_total += pages_.num_pages();
}

void ServedModel::AddLoad(double output_share, EngineLoad& load) const {
  load.free_places += scheduler_.num_free_places();
  scheduler_.ForEachRunning([&](const Sequence& sequence) {
    load.prompt_tokens[static_cast<int>(sequence.priority)] +=
        std::max(0, sequence.num_prompt_tokens - sequence.num_computed);
    load.AddEnd(std::max(0.0, output_share * static_cast<double>(sequence.asked_output_tokens()) -
                                  sequence.num_output_tokens()));
  });
  scheduler_.ForEachWaiting([&](const Sequence& sequence) {
    load.AddWaiting(sequence.priority, sequence.num_prompt_tokens);
  });
}

}  // namespace quern
