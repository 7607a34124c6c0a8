#ifndef QUERN_SERVICES_INFERENCE_GENERATION_SINK_H_
#define QUERN_SERVICES_INFERENCE_GENERATION_SINK_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>

#include "core/engine/engine.h"
#include "services/inference/active_model.h"
#include "services/inference/metrics.h"

namespace quern {

// The part that the unary and the streaming call share: counts one request in the metrics and
// turns the engine's result into the closing fields of the response.
//
// One thread at a time drives it: first the one that prepares the request, then the engine's.
class GenerationSink : public TokenSink {
 public:
  // The request arrives now.
  explicit GenerationSink(InferenceMetrics& metrics) : metrics_(metrics) {}

  // The model was found; from now on the request counts among its own.
  void Bind(std::shared_ptr<const ActiveModel> model) { model_ = std::move(model); }
  // Call before Submit.
  void set_prompt_tokens(int prompt_tokens) { prompt_tokens_ = prompt_tokens; }

  // Ends a request that the engine did not take.
  void Refuse(Rejection reason, const absl::Status& status);

  void OnLogprobs(const TokenLogprob& token, absl::Span<const TokenLogprob> most_probable) final;
  void OnPromptLogprobs(const TokenLogprob& token,
                        absl::Span<const TokenLogprob> most_probable) final;
  void OnTokens(absl::Span<const int32_t> ids, absl::string_view text) final;
  void OnDiscarded(int64_t num_tokens) final { discarded_tokens_ = num_tokens; }
  void OnEnd(absl::StatusOr<GenerationResult> result) final;
  bool cancelled() const final { return cancelled_; }

 protected:
  // Hands on a piece; must not block.
  virtual void Deliver(const inference::v1::GenerateTextResponse& piece) = 0;
  // Ends the call. `closing` has the fields of the last message when `status` is OK.
  virtual void Close(const absl::Status& status,
                     const inference::v1::GenerateTextResponse& closing) = 0;

  // The client is gone; the engine frees the sequence within a step. From any thread.
  void MarkCancelled() { cancelled_ = true; }

  using SteadyTime = std::chrono::steady_clock::time_point;
  InferenceMetrics& metrics() { return metrics_; }

 private:
  // Lets go of the model, which may leave memory while its last text is still on its way, and
  // closes.
  void End(const absl::Status& status, const inference::v1::GenerateTextResponse& closing);
  void Fill(const TokenLogprob& token, absl::Span<const TokenLogprob> most_probable,
            inference::v1::TokenLogprobs* out) const;
  void CountEnd(Outcome outcome);
  void CountFirstToken(SteadyTime now);

  InferenceMetrics& metrics_;
  const SteadyTime arrival_ = std::chrono::steady_clock::now();
  std::atomic<bool> cancelled_ = false;

  std::shared_ptr<const ActiveModel> model_;  // from Bind to the end
  int prompt_tokens_ = 0;
  // Of the next piece; kept for their memory.
  google::protobuf::RepeatedPtrField<inference::v1::TokenLogprobs> logprobs_;
  google::protobuf::RepeatedPtrField<inference::v1::TokenLogprobs> prompt_logprobs_;
  inference::v1::GenerateTextResponse piece_;
  int generated_tokens_ = 0;
  int64_t discarded_tokens_ = 0;
  // Of the first and the latest tokens; the epoch before them.
  SteadyTime first_tokens_{};
  SteadyTime last_tokens_{};
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_GENERATION_SINK_H_
