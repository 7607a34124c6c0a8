#ifndef QUERN_SERVICES_INFERENCE_MODEL_SERVICE_H_
#define QUERN_SERVICES_INFERENCE_MODEL_SERVICE_H_

#include <quern/inference/v1/inference_service.grpc.pb.h>

#include "services/common/executor.h"
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
  grpc::ServerUnaryReactor* CreateAlias(grpc::CallbackServerContext* context,
                                        const inference::v1::CreateAliasRequest* request,
                                        inference::v1::Alias* response) override;
  grpc::ServerUnaryReactor* GetAlias(grpc::CallbackServerContext* context,
                                     const inference::v1::GetAliasRequest* request,
                                     inference::v1::Alias* response) override;
  grpc::ServerUnaryReactor* ListAliases(grpc::CallbackServerContext* context,
                                        const inference::v1::ListAliasesRequest* request,
                                        inference::v1::ListAliasesResponse* response) override;
  grpc::ServerUnaryReactor* UpdateAlias(grpc::CallbackServerContext* context,
                                        const inference::v1::UpdateAliasRequest* request,
                                        inference::v1::Alias* response) override;
  grpc::ServerUnaryReactor* DeleteAlias(grpc::CallbackServerContext* context,
                                        const inference::v1::DeleteAliasRequest* request,
                                        google::protobuf::Empty* response) override;

 private:
  ModelRegistry& registry_;
  // Changes wait for the disk; they are made one after the other anyway.
  Executor executor_{1};
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_MODEL_SERVICE_H_
