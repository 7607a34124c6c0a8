#include "services/inference/generation_sink.h"

#include <absl/time/time.h>

#include "core/base/log.h"
#include "core/base/utf8.h"

namespace quern {
namespace {

using inference::v1::GenerateTextResponse;

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

void SetDuration(absl::Duration duration, google::protobuf::Duration* out) {
  absl::Duration rest;
  out->set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &rest));
  out->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
}

GenerateTextResponse::FinishReason FinishReasonToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEndOfText:
      return GenerateTextResponse::END_OF_TEXT;
    case FinishReason::kStopSequence:
      return GenerateTextResponse::STOP_SEQUENCE;
    case FinishReason::kMaxOutputTokens:
      return GenerateTextResponse::MAX_OUTPUT_TOKENS;
    case FinishReason::kContextFull:
      return GenerateTextResponse::CONTEXT_FULL;
    case FinishReason::kTimeLimit:
      return GenerateTextResponse::TIME_LIMIT;
  }
  return GenerateTextResponse::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

void GenerationSink::Refuse(Rejection reason, const absl::Status& status) {
  metrics_.Reject(reason);
  if (model_ != nullptr) CountEnd(OutcomeOf(status));
  End(status, GenerateTextResponse());
}

void GenerationSink::OnTokens(absl::Span<const int32_t> ids, absl::string_view text) {
  if (!ids.empty()) {
    const SteadyTime now = std::chrono::steady_clock::now();
    if (generated_tokens_ == 0) {
      CountFirstToken(now);
    } else {
      const double gap = Seconds(now - last_tokens_) / static_cast<double>(ids.size());
      for (size_t i = 0; i < ids.size(); ++i) {
        model_->metrics->inter_token_latency_seconds->Observe(gap);
      }
    }
    last_tokens_ = now;
    generated_tokens_ += static_cast<int>(ids.size());
    model_->metrics->generated_tokens_total->Increment(static_cast<double>(ids.size()));
  }
  if (ids.empty() && text.empty()) return;
  piece_.Clear();
  piece_.mutable_token_ids()->Add(ids.begin(), ids.end());
  piece_.set_text(text.data(), text.size());
  piece_.mutable_logprobs()->Swap(&logprobs_);
  piece_.mutable_prompt_logprobs()->Swap(&prompt_logprobs_);
  Deliver(piece_);
}

void GenerationSink::OnLogprobs(const TokenLogprob& token,
                                absl::Span<const TokenLogprob> most_probable) {
  Fill(token, most_probable, logprobs_.Add());
}

void GenerationSink::OnPromptLogprobs(const TokenLogprob& token,
                                      absl::Span<const TokenLogprob> most_probable) {
  Fill(token, most_probable, prompt_logprobs_.Add());
}

void GenerationSink::Fill(const TokenLogprob& token, absl::Span<const TokenLogprob> most_probable,
                          inference::v1::TokenLogprobs* out) const {
  // The tokenizer has the bytes of every token at hand: nothing is decoded here.
  const auto fill = [&](const TokenLogprob& from, inference::v1::TokenLogprobs::Candidate* to) {
    to->set_token_id(from.id);
    to->set_logprob(from.logprob);
    if (model_->tokenizer == nullptr) return;
    const absl::string_view bytes = model_->tokenizer->TokenBytes(from.id);
    if (IsUtf8(bytes)) {
      to->set_text(bytes.data(), bytes.size());
    } else {
      to->set_text(ReplaceInvalidUtf8(bytes));
    }
  };
  fill(token, out->mutable_token());
  for (const TokenLogprob& candidate : most_probable) fill(candidate, out->add_most_probable());
}

void GenerationSink::OnEnd(absl::StatusOr<GenerationResult> result) {
  const ModelMetrics& metrics = *model_->metrics;
  if (!result.ok()) {
    metrics.discarded_tokens_total[static_cast<int>(DiscardOf(result.status()))]->Increment(
        static_cast<double>(discarded_tokens_));
    // What never came to a first token was dropped from the queue, not cut short.
    if (generated_tokens_ == 0 && absl::IsDeadlineExceeded(result.status())) {
      metrics_.Reject(Rejection::kDeadline);
    }
    if (const Outcome outcome = OutcomeOf(result.status()); outcome == Outcome::kInternal) {
      LOG(ERROR) << "request lost model=" << model_->id << " error=" << result.status();
    }
    CountEnd(OutcomeOf(result.status()));
    End(result.status(), GenerateTextResponse());
    return;
  }
  const SteadyTime now = std::chrono::steady_clock::now();
  metrics.discarded_tokens_total[static_cast<int>(Discard::kPreempted)]->Increment(
      static_cast<double>(result->recomputed_tokens));
  // A first token that ended the text at once was never handed on. A time limit may have passed
  // before there was one.
  if (generated_tokens_ == 0 && result->finish_reason != FinishReason::kTimeLimit) {
    CountFirstToken(now);
  }
  if (const int more = result->output_tokens - generated_tokens_; more > 0) {
    metrics.generated_tokens_total->Increment(more);
  }
  const absl::Duration first = result->time_to_first_token;
  metrics.request_queue_seconds->Observe(absl::ToDoubleSeconds(result->queue_duration));
  metrics.request_prefill_seconds->Observe(absl::ToDoubleSeconds(first - result->queue_duration));
  metrics.request_decode_seconds->Observe(absl::ToDoubleSeconds(result->total_duration - first));
  CountEnd(OutcomeOf(result->finish_reason));

  GenerateTextResponse closing;
  closing.mutable_prompt_logprobs()->Swap(&prompt_logprobs_);  // no token came
  closing.set_finish_reason(FinishReasonToProto(result->finish_reason));
  closing.set_matched_stop_sequence(result->matched_stop_sequence);
  closing.set_seed(static_cast<int64_t>(result->seed));
  closing.set_system_fingerprint(model_->system_fingerprint);
  inference::v1::Usage* usage = closing.mutable_usage();
  usage->set_prompt_tokens(result->prompt_tokens);
  usage->set_cached_prompt_tokens(result->cached_prompt_tokens);
  usage->set_output_tokens(result->output_tokens);
  SetDuration(result->queue_duration, usage->mutable_queue_duration());
  // Clients wait from the arrival of the request, not from its place in the engine's queue.
  if (first_tokens_ != SteadyTime{}) {
    SetDuration(absl::FromChrono(first_tokens_ - arrival_), usage->mutable_time_to_first_token());
  }
  SetDuration(absl::FromChrono(now - arrival_), usage->mutable_total_duration());
  End(absl::OkStatus(), closing);
}

void GenerationSink::End(const absl::Status& status, const GenerateTextResponse& closing) {
  model_ = nullptr;
  Close(status, closing);
}

void GenerationSink::CountFirstToken(SteadyTime now) {
  first_tokens_ = now;
  model_->metrics->prompt_tokens_total->Increment(prompt_tokens_);
  model_->metrics->time_to_first_token_seconds->Observe(Seconds(now - arrival_));
}

void GenerationSink::CountEnd(Outcome outcome) {
  model_->metrics->requests_total[static_cast<int>(outcome)]->Increment();
  model_->metrics->request_seconds->Observe(Seconds(std::chrono::steady_clock::now() - arrival_));
}

}  // namespace quern
