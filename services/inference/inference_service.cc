#include "services/inference/inference_service.h"

#include <chrono>
#include <utility>

#include "services/common/status.h"
#include "services/inference/generate_text_writer.h"

namespace quern {
namespace {

using inference::v1::CountTokensRequest;
using inference::v1::CountTokensResponse;
using inference::v1::DetokenizeRequest;
using inference::v1::DetokenizeResponse;
using inference::v1::GenerateTextRequest;
using inference::v1::GenerateTextResponse;
using inference::v1::TokenizeRequest;
using inference::v1::TokenizeResponse;

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

}  // namespace

InferenceServiceImpl::InferenceServiceImpl(TextGenerator& generator, InferenceMetrics& metrics,
                                           const Security& security)
    : generator_(generator), metrics_(metrics), security_(security) {}

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
  absl::StatusOr<Principal> principal = security_.PrincipalOf(context);
  if (!principal.ok()) return sink->Refuse(Rejection::kInvalid, principal.status());
  const absl::Time deadline = generator_.DeadlineOf(DeadlineOf(context));
  absl::Status taken = generator_.CheckRoom(principal->name);
  if (taken.ok()) {
    taken = generator_.Post([this, request, principal = std::move(principal->name), deadline,
                             sink] { generator_.Generate(*request, principal, deadline, sink); });
  }
  if (taken.ok()) return;
  sink->Refuse(absl::IsUnavailable(taken) ? Rejection::kDraining : RejectionOf(taken), taken);
}

template <typename Request, typename Response>
grpc::ServerUnaryReactor* InferenceServiceImpl::RunUnary(
    grpc::CallbackServerContext* context, const Request* request, Response* response,
    absl::Status (TextGenerator::*work)(const Request&, const ActiveModel&, Response*) const) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto with_model = [this, request, response, reactor,
                           work](absl::StatusOr<std::shared_ptr<const ActiveModel>> model) {
    reactor->Finish(ToGrpcStatus(model.ok() ? (generator_.*work)(*request, **model, response)
                                            : model.status()));
  };
  const absl::Status posted = generator_.Post(
      [this, request, with_model] { generator_.WithModel(request->model(), with_model); });
  if (!posted.ok()) reactor->Finish(ToGrpcStatus(posted));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceServiceImpl::CountTokens(grpc::CallbackServerContext* context,
                                                            const CountTokensRequest* request,
                                                            CountTokensResponse* response) {
  return RunUnary(context, request, response, &TextGenerator::CountTokens);
}

grpc::ServerUnaryReactor* InferenceServiceImpl::Tokenize(grpc::CallbackServerContext* context,
                                                         const TokenizeRequest* request,
                                                         TokenizeResponse* response) {
  return RunUnary(context, request, response, &TextGenerator::Tokenize);
}

grpc::ServerUnaryReactor* InferenceServiceImpl::Detokenize(grpc::CallbackServerContext* context,
                                                           const DetokenizeRequest* request,
                                                           DetokenizeResponse* response) {
  return RunUnary(context, request, response, &TextGenerator::Detokenize);
}

}  // namespace quern
