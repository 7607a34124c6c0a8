#include "services/inference/text_generator.h"

#include <utility>

#include "services/inference/request_check.h"

namespace quern {
namespace {

// Two of them keep the reaction threads free.
constexpr int kNumThreads = 2;
constexpr int kMaxWaiting = 1024;

Rejection RejectionOf(const absl::Status& status) {
  if (IsTooLong(status)) return Rejection::kTooLong;
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return Rejection::kNoModel;
    case absl::StatusCode::kResourceExhausted:
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

}  // namespace

TextGenerator::TextGenerator(Engine& engine, ModelRegistry& registry)
    : engine_(engine), registry_(registry), executor_(kNumThreads, kMaxWaiting) {}

absl::Status TextGenerator::Post(std::function<void()> work) {
  if (executor_.TryPost(std::move(work))) return absl::OkStatus();
  return absl::ResourceExhaustedError("too many requests wait on this server; try again later");
}

void TextGenerator::Generate(const inference::v1::GenerateTextRequest& request, absl::Time deadline,
                             const std::shared_ptr<GenerationSink>& sink) {
  if (const absl::Status status = CheckGenerateText(request); !status.ok()) {
    return sink->Refuse(RejectionOf(status), status);
  }
  absl::StatusOr<std::shared_ptr<const ServedModel>> model = registry_.Find(request.model());
  if (!model.ok()) return sink->Refuse(RejectionOf(model.status()), model.status());
  sink->Bind(*model);
  absl::StatusOr<GenerationRequest> generation =
      MakeGeneration(request, **model, engine_, deadline);
  if (!generation.ok()) return sink->Refuse(RejectionOf(generation.status()), generation.status());
  sink->set_prompt_tokens(static_cast<int>(generation->prompt.size()));
  const absl::Status submitted = engine_.Submit((*model)->handle, *std::move(generation), sink);
  if (submitted.ok()) return;
  // The engine refuses new requests only when it drains.
  const bool draining = absl::IsUnavailable(submitted);
  sink->Refuse(draining ? Rejection::kDraining : RejectionOf(submitted), submitted);
}

}  // namespace quern
