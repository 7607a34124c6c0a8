#ifndef QUERN_SERVICES_INFERENCE_TEXT_GENERATOR_H_
#define QUERN_SERVICES_INFERENCE_TEXT_GENERATOR_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <functional>
#include <memory>
#include <string>

#include "core/engine/engine.h"
#include "services/common/executor.h"
#include "services/inference/generation_sink.h"
#include "services/inference/metrics.h"
#include "services/inference/model_registry.h"

namespace quern {

// The way of a request into the engine, whichever protocol it came by: checked, tokenized and
// submitted. Thread-safe.
class TextGenerator {
 public:
  // All references outlive this. The registry is drained before this goes. A request may take
  // `request_timeout` from its arrival on, whatever the client allows.
  TextGenerator(Engine& engine, ModelRegistry& registry, InferenceMetrics& metrics,
                absl::Duration request_timeout);

  // When a request that arrives now is over, for a client that waits until `asked`.
  absl::Time DeadlineOf(absl::Time asked) const;
  // What the engine would say of a request now. Quick, so that a front refuses before it does
  // anything else.
  absl::Status CheckRoom(absl::string_view principal) const { return engine_.CheckRoom(principal); }
  // RESOURCE_EXHAUSTED when too many wait. Tokenizing a long prompt takes milliseconds, compiling a
  // constraint up to tens: they and what takes as long run on threads of this.
  [[nodiscard]] absl::Status Post(std::function<void()> work);

  // Calls `then` with a use of the model `name`, or why there is none: at once when it is in
  // memory, else when it has been loaded, on a thread of this.
  using ModelThen = std::function<void(absl::StatusOr<std::shared_ptr<const ActiveModel>> model)>;
  void WithModel(absl::string_view name, const ModelThen& then);

  // Checks, tokenizes, compiles and submits, in time and while there is room, on the calling thread
  // or when the model has been loaded; `sink` hears of a refusal like of any other end. `request`
  // lives as long as `sink`. `principal` is whose request it is; empty: nobody's in particular.
  void Generate(const inference::v1::GenerateTextRequest& request, const std::string& principal,
                absl::Time deadline, const std::shared_ptr<GenerationSink>& sink);

  // What needs a model's tokenizer alone, on the calling thread.
  absl::Status CountTokens(const inference::v1::CountTokensRequest& request,
                           const ActiveModel& model,
                           inference::v1::CountTokensResponse* response) const;
  absl::Status Tokenize(const inference::v1::TokenizeRequest& request, const ActiveModel& model,
                        inference::v1::TokenizeResponse* response) const;
  absl::Status Detokenize(const inference::v1::DetokenizeRequest& request, const ActiveModel& model,
                          inference::v1::DetokenizeResponse* response) const;

 private:
  void SubmitTo(absl::StatusOr<std::shared_ptr<const ActiveModel>> model,
                const inference::v1::GenerateTextRequest& request, const std::string& principal,
                absl::Time deadline, const std::shared_ptr<GenerationSink>& sink);
  // Of a checked request. An error says why there will be no end by the engine.
  absl::Status Submit(const inference::v1::GenerateTextRequest& request, const ActiveModel& model,
                      const std::string& principal, absl::Time deadline,
                      const std::shared_ptr<GenerationSink>& sink);

  // Compiles what the request's text must be, if anything, into `generation`.
  absl::Status Constrain(const inference::v1::GenerateTextRequest& request,
                         const ActiveModel& model, GenerationRequest& generation);

  Engine& engine_;
  ModelRegistry& registry_;
  InferenceMetrics& metrics_;
  const absl::Duration request_timeout_;
  Executor executor_;
};

// How a refusal is counted. `status` must not be OK.
Rejection RejectionOf(const absl::Status& status);

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_TEXT_GENERATOR_H_
