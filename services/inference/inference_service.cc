#include "services/inference/inference_service.h"

#include <chrono>
#include <utility>

#include "services/common/status.h"
#include "services/inference/generate_text_writer.h"
#include "services/inference/request_check.h"

namespace quern {
namespace {

using inference::v1::CountTokensRequest;
using inference::v1::CountTokensResponse;
using inference::v1::GenerateTextRequest;
using inference::v1::GenerateTextResponse;

// Tokenizing a long prompt takes milliseconds; two of them keep the reaction threads free.
constexpr int kNumCountThreads = 2;
constexpr int kMaxWaiting = 1024;

absl::Status Busy() {
  return absl::ResourceExhaustedError("too many requests wait on this server; try again later");
}

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

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

InferenceServiceImpl::InferenceServiceImpl(Engine& engine, ModelRegistry& registry,
                                           InferenceMetrics& metrics)
    : engine_(engine),
      registry_(registry),
      metrics_(metrics),
      executor_(kNumCountThreads, kMaxWaiting) {}

grpc::ServerUnaryReactor* InferenceServiceImpl::GenerateText(grpc::CallbackServerContext* context,
                                                             const GenerateTextRequest* request,
                                                             GenerateTextResponse* response) {
  const auto call = GenerateTextCall::Start(metrics_, response);
  Begin(*context, request, call);
  return call.get();
}

grpc::ServerWriteReactor<GenerateTextResponse>* InferenceServiceImpl::StreamGenerateText(
    grpc::CallbackServerContext* context, const GenerateTextRequest* request) {
  const auto writer = GenerateTextWriter::Start(metrics_);
  Begin(*context, request, writer);
  return writer.get();
}

void InferenceServiceImpl::Begin(const grpc::CallbackServerContext& context,
                                 const GenerateTextRequest* request,
                                 std::shared_ptr<GenerationSink> sink) {
  const absl::Time deadline = DeadlineOf(context);
  const bool posted =
      executor_.TryPost([this, request, deadline, sink] { Prepare(*request, deadline, sink); });
  if (!posted) sink->Refuse(Rejection::kQueueFull, Busy());
}

void InferenceServiceImpl::Prepare(const GenerateTextRequest& request, absl::Time deadline,
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

grpc::ServerUnaryReactor* InferenceServiceImpl::CountTokens(grpc::CallbackServerContext* context,
                                                            const CountTokensRequest* request,
                                                            CountTokensResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool posted = executor_.TryPost([this, request, response, reactor] {
    const absl::StatusOr<std::shared_ptr<const ServedModel>> model =
        registry_.Find(request->model());
    const absl::StatusOr<int> count =
        model.ok() ? CountPromptTokens(*request, **model) : absl::StatusOr<int>(model.status());
    if (count.ok()) response->set_token_count(*count);
    reactor->Finish(ToGrpcStatus(count.status()));
  });
  if (!posted) reactor->Finish(ToGrpcStatus(Busy()));
  return reactor;
}

}  // namespace quern
