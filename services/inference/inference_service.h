#ifndef QUERN_SERVICES_INFERENCE_INFERENCE_SERVICE_H_
#define QUERN_SERVICES_INFERENCE_INFERENCE_SERVICE_H_

#include <quern/inference/v1/inference_service.grpc.pb.h>

#include <memory>

#include "services/inference/generation_sink.h"
#include "services/inference/metrics.h"
#include "services/inference/text_generator.h"

namespace quern {

// quern.inference.v1.InferenceService over the engine. Thread-safe.
class InferenceServiceImpl final : public inference::v1::InferenceService::CallbackService {
 public:
  // All references must outlive the server.
  InferenceServiceImpl(TextGenerator& generator, InferenceMetrics& metrics);

  grpc::ServerUnaryReactor* GenerateText(grpc::CallbackServerContext* context,
                                         const inference::v1::GenerateTextRequest* request,
                                         inference::v1::GenerateTextResponse* response) override;
  grpc::ServerWriteReactor<inference::v1::GenerateTextResponse>* StreamGenerateText(
      grpc::CallbackServerContext* context,
      const inference::v1::GenerateTextRequest* request) override;
  grpc::ServerUnaryReactor* CountTokens(grpc::CallbackServerContext* context,
                                        const inference::v1::CountTokensRequest* request,
                                        inference::v1::CountTokensResponse* response) override;

 private:
  // `request` lives until `sink` ends its call.
  void Begin(const grpc::CallbackServerContext& context,
             const inference::v1::GenerateTextRequest* request,
             std::shared_ptr<GenerationSink> sink);

  TextGenerator& generator_;
  InferenceMetrics& metrics_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_INFERENCE_SERVICE_H_
