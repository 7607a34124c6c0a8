#include "services/inference/model_service.h"

#include <utility>

#include "services/common/status.h"

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

// A call that may outlive its client's patience: the deletion goes on, the answer is dropped.
class DeleteCall final : public grpc::ServerUnaryReactor {
 public:
  void OnDone() override { delete this; }
};

}  // namespace

grpc::ServerUnaryReactor* ModelServiceImpl::CreateModel(
    grpc::CallbackServerContext* context, const inference::v1::CreateModelRequest* request,
    inference::v1::Model* response) {
  return Answer(context, registry_.Create(*request), response);
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
  registry_.Delete(request->name(),
                   [call](const absl::Status& status) { call->Finish(ToGrpcStatus(status)); });
  return call;
}

}  // namespace quern
