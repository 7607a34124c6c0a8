#include "services/inference/text_generator.h"

#include <absl/time/clock.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "core/base/retry_delay.h"
#include "core/base/status_macros.h"
#include "services/inference/request_check.h"

namespace quern {
namespace {

// Two of them keep the reaction threads free.
constexpr int kNumThreads = 2;
constexpr int kMaxWaiting = 1024;

}  // namespace

Rejection RejectionOf(const absl::Status& status) {
  if (IsTooLong(status)) return Rejection::kTooLong;
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return Rejection::kNoModel;
    case absl::StatusCode::kResourceExhausted:
      switch (NoRoomOf(status).value_or(NoRoom::kRequests)) {
        case NoRoom::kRequests:
          return Rejection::kQueueFull;
        case NoRoom::kTokens:
          return Rejection::kQueueTokens;
        case NoRoom::kShare:
          return Rejection::kShare;
        case NoRoom::kWait:
          return Rejection::kQueueWait;
      }
      return Rejection::kQueueFull;
    case absl::StatusCode::kDeadlineExceeded:
      return Rejection::kDeadline;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnavailable:
      return Rejection::kNotReady;
    default:
      return Rejection::kInvalid;
  }
}

TextGenerator::TextGenerator(Engine& engine, ModelRegistry& registry, InferenceMetrics& metrics,
                             absl::Duration request_timeout)
    : engine_(engine),
      registry_(registry),
      metrics_(metrics),
      request_timeout_(request_timeout),
      executor_(kNumThreads, kMaxWaiting) {}

absl::Time TextGenerator::DeadlineOf(absl::Time asked) const {
  return std::min(asked, absl::Now() + request_timeout_);
}

absl::Status TextGenerator::Post(std::function<void()> work) {
  if (executor_.TryPost(std::move(work))) return absl::OkStatus();
  absl::Status status =
      absl::ResourceExhaustedError("too many requests wait on this server; try again later");
  SetRetryDelay(absl::Seconds(1), &status);
  return status;
}

void TextGenerator::Generate(const inference::v1::GenerateTextRequest& request,
                             const std::string& principal, absl::Time deadline,
                             const std::shared_ptr<GenerationSink>& sink) {
  if (const absl::Status status = CheckGenerateText(request); !status.ok()) {
    return sink->Refuse(RejectionOf(status), status);
  }
  WithModel(request.model(), [this, &request, principal, deadline,
                              sink](absl::StatusOr<std::shared_ptr<const ActiveModel>> model) {
    SubmitTo(std::move(model), request, principal, deadline, sink);
  });
}

void TextGenerator::WithModel(absl::string_view name, const ModelThen& then) {
  absl::StatusOr<std::shared_ptr<const ActiveModel>> model = registry_.Find(
      name, [this, then](const absl::StatusOr<std::shared_ptr<const ActiveModel>>& loaded) {
        // Work that was admitted before it waited.
        executor_.Post([then, loaded] { then(loaded); });
      });
  if (!model.ok() || *model != nullptr) then(std::move(model));
}

void TextGenerator::SubmitTo(absl::StatusOr<std::shared_ptr<const ActiveModel>> model,
                             const inference::v1::GenerateTextRequest& request,
                             const std::string& principal, absl::Time deadline,
                             const std::shared_ptr<GenerationSink>& sink) {
  if (!model.ok()) return sink->Refuse(RejectionOf(model.status()), model.status());
  sink->Bind(*model);
  const absl::Status submitted = Submit(request, **model, principal, deadline, sink);
  if (submitted.ok()) return;
  // The engine refuses new requests only when it drains.
  const bool draining = absl::IsUnavailable(submitted);
  sink->Refuse(draining ? Rejection::kDraining : RejectionOf(submitted), submitted);
}

absl::Status TextGenerator::Submit(const inference::v1::GenerateTextRequest& request,
                                   const ActiveModel& model, const std::string& principal,
                                   absl::Time deadline,
                                   const std::shared_ptr<GenerationSink>& sink) {
  // It may have waited for a thread of this. No prompt is tokenized in vain.
  if (absl::Now() >= deadline) {
    return absl::DeadlineExceededError("the request's deadline passed before it was taken");
  }
  RETURN_IF_ERROR(engine_.CheckRoom(principal, model.handle, PriorityOf(request.priority())));
  ASSIGN_OR_RETURN(GenerationRequest generation, MakeGeneration(request, model, engine_, deadline));
  RETURN_IF_ERROR(Constrain(request, model, generation));
  generation.principal = principal;
  sink->set_prompt_tokens(static_cast<int>(generation.prompt.size()));
  return engine_.Submit(model.handle, std::move(generation), sink);
}

absl::Status TextGenerator::CountTokens(const inference::v1::CountTokensRequest& request,
                                        const ActiveModel& model,
                                        inference::v1::CountTokensResponse* response) const {
  ASSIGN_OR_RETURN(const int count, CountPromptTokens(request, model, engine_));
  response->set_token_count(count);
  return absl::OkStatus();
}

absl::Status TextGenerator::Tokenize(const inference::v1::TokenizeRequest& request,
                                     const ActiveModel& model,
                                     inference::v1::TokenizeResponse* response) const {
  ASSIGN_OR_RETURN(*response, TokenizeInput(request, model, engine_));
  return absl::OkStatus();
}

absl::Status TextGenerator::Detokenize(const inference::v1::DetokenizeRequest& request,
                                       const ActiveModel& model,
                                       inference::v1::DetokenizeResponse* response) const {
  ASSIGN_OR_RETURN(*response, DetokenizeIds(request, model));
  return absl::OkStatus();
}

absl::Status TextGenerator::Constrain(const inference::v1::GenerateTextRequest& request,
                                      const ActiveModel& model, GenerationRequest& generation) {
  const std::optional<ConstraintSpec> spec = ConstraintOf(request);
  if (!spec.has_value()) return absl::OkStatus();
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<CompiledConstraint> compiled = engine_.CompileConstraint(model.handle, *spec);
  if (!compiled.ok()) {
    metrics_.ConstraintRefused();
    return compiled.status();
  }
  if (compiled->from_cache) {
    metrics_.ConstraintFound();
  } else {
    metrics_.ConstraintCompiled(absl::FromChrono(std::chrono::steady_clock::now() - start));
  }
  generation.constraint = std::move(compiled->constraint);
  return absl::OkStatus();
}

}  // namespace quern
