#ifndef QUERN_SERVICES_INFERENCE_MODEL_SERVICE_H_
#define QUERN_SERVICES_INFERENCE_MODEL_SERVICE_H_

#include <quern/inference/v1/inference_service.grpc.pb.h>

#include "services/inference/model_registry.h"

namespace quern {

// quern.inference.v1.ModelService over a registry. Thread-safe.
class ModelServiceImpl final : public inference::v1::ModelService::CallbackService {
 public:
  // `registry` must outlive the server.
  explicit ModelServiceImpl(ModelRegistry& registry) : registry_(registry) {}

  grpc::ServerUnaryReactor* CreateModel(grpc::CallbackServerContext* context,
                                        const inference::v1::CreateModelRequest* request,
                                        inference::v1::Model* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const inference::v1::GetModelRequest* request,
                                     inference::v1::Model* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const inference::v1::ListModelsRequest* request,
                                       inference::v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteModel(grpc::CallbackServerContext* context,
                                        const inference::v1::DeleteModelRequest* request,
                                        google::protobuf::Empty* response) override;

 private:
  ModelRegistry& registry_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_MODEL_SERVICE_H_
