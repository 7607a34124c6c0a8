#include "services/inference/model_service.h"

#include <utility>

#include "services/common/status.h"
#include "services/common/unary.h"

namespace quern {
namespace {

// Answers at once with a value or why there is none.
template <typename T>
grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, absl::StatusOr<T> result,
                                 T* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (result.ok()) *response = *std::move(result);
  reactor->Finish(ToGrpcStatus(result.status()));
  return reactor;
}

// The same on `executor`, for what waits for the disk: `handler` gives the result.
template <typename T, typename Handler>
grpc::ServerUnaryReactor* AnswerOn(Executor& executor, grpc::CallbackServerContext* context,
                                   T* response, Handler handler) {
  return RunUnary(executor, context, [response, handler]() -> absl::Status {
    absl::StatusOr<T> result = handler();
    if (result.ok()) *response = *std::move(result);
    return result.status();
  });
}

// A call that may outlive its client's patience: the deletion goes on, the answer is dropped.
class DeleteCall final : public grpc::ServerUnaryReactor {
 public:
  void OnDone() override { delete this; }
};

}  // namespace

grpc::ServerUnaryReactor* ModelServiceImpl::CreateModel(
    grpc::CallbackServerContext* context, const inference::v1::CreateModelRequest* request,
    inference::v1::Model* response) {
  return AnswerOn(executor_, context, response,
                  [this, request] { return registry_.Create(*request); });
}

grpc::ServerUnaryReactor* ModelServiceImpl::GetModel(grpc::CallbackServerContext* context,
                                                     const inference::v1::GetModelRequest* request,
                                                     inference::v1::Model* response) {
  return Answer(context, registry_.Get(request->name()), response);
}

grpc::ServerUnaryReactor* ModelServiceImpl::ListModels(
    grpc::CallbackServerContext* context, const inference::v1::ListModelsRequest* request,
    inference::v1::ListModelsResponse* response) {
  return Answer(context, registry_.List(*request), response);
}

grpc::ServerUnaryReactor* ModelServiceImpl::DeleteModel(
    grpc::CallbackServerContext*, const inference::v1::DeleteModelRequest* request,
    google::protobuf::Empty*) {
  auto* call = new DeleteCall();
  const bool posted = executor_.TryPost([this, request, call] {
    registry_.Delete(*request,
                     [call](const absl::Status& status) { call->Finish(ToGrpcStatus(status)); });
  });
  if (!posted) call->Finish(ToGrpcStatus(TooBusy()));
  return call;
}

grpc::ServerUnaryReactor* ModelServiceImpl::CreateAlias(
    grpc::CallbackServerContext* context, const inference::v1::CreateAliasRequest* request,
    inference::v1::Alias* response) {
  return AnswerOn(executor_, context, response,
                  [this, request] { return registry_.CreateAlias(*request); });
}

grpc::ServerUnaryReactor* ModelServiceImpl::GetAlias(grpc::CallbackServerContext* context,
                                                     const inference::v1::GetAliasRequest* request,
                                                     inference::v1::Alias* response) {
  return Answer(context, registry_.GetAlias(request->name()), response);
}

grpc::ServerUnaryReactor* ModelServiceImpl::ListAliases(
    grpc::CallbackServerContext* context, const inference::v1::ListAliasesRequest* request,
    inference::v1::ListAliasesResponse* response) {
  return Answer(context, registry_.ListAliases(*request), response);
}

grpc::ServerUnaryReactor* ModelServiceImpl::UpdateAlias(
    grpc::CallbackServerContext* context, const inference::v1::UpdateAliasRequest* request,
    inference::v1::Alias* response) {
  return AnswerOn(executor_, context, response,
                  [this, request] { return registry_.UpdateAlias(*request); });
}

grpc::ServerUnaryReactor* ModelServiceImpl::DeleteAlias(
    grpc::CallbackServerContext* context, const inference::v1::DeleteAliasRequest* request,
    google::protobuf::Empty*) {
  return RunUnary(executor_, context, [this, request] { return registry_.DeleteAlias(*request); });
}

}  // namespace quern
