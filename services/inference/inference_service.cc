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

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

}  // namespace

InferenceServiceImpl::InferenceServiceImpl(TextGenerator& generator, InferenceMetrics& metrics)
    : generator_(generator), metrics_(metrics) {}

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
  const absl::Time deadline = generator_.DeadlineOf(DeadlineOf(context));
  absl::Status taken = generator_.CheckRoom();
  if (taken.ok()) {
    taken = generator_.Post(
        [this, request, deadline, sink] { generator_.Generate(*request, deadline, sink); });
  }
  if (taken.ok()) return;
  sink->Refuse(absl::IsUnavailable(taken) ? Rejection::kDraining : RejectionOf(taken), taken);
}

grpc::ServerUnaryReactor* InferenceServiceImpl::CountTokens(grpc::CallbackServerContext* context,
                                                            const CountTokensRequest* request,
                                                            CountTokensResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto count_with = [request, response,
                           reactor](absl::StatusOr<std::shared_ptr<const ActiveModel>> model) {
    const absl::StatusOr<int> count =
        model.ok() ? CountPromptTokens(*request, **model) : absl::StatusOr<int>(model.status());
    if (count.ok()) response->set_token_count(*count);
    reactor->Finish(ToGrpcStatus(count.status()));
  };
  const absl::Status posted = generator_.Post(
      [this, request, count_with] { generator_.WithModel(request->model(), count_with); });
  if (!posted.ok()) reactor->Finish(ToGrpcStatus(posted));
  return reactor;
}

}  // namespace quern
