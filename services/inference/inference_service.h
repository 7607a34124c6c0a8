#ifndef QUERN_SERVICES_INFERENCE_INFERENCE_SERVICE_H_
#define QUERN_SERVICES_INFERENCE_INFERENCE_SERVICE_H_

#include <quern/inference/v1/inference_service.grpc.pb.h>

#include <memory>

#include "services/common/security.h"
#include "services/inference/generation_sink.h"
#include "services/inference/metrics.h"
#include "services/inference/text_generator.h"

namespace quern {

// quern.inference.v1.InferenceService over the engine. Thread-safe.
class InferenceServiceImpl final : public inference::v1::InferenceService::CallbackService {
 public:
  // All references must outlive the server.
  InferenceServiceImpl(TextGenerator& generator, InferenceMetrics& metrics,
                       const Security& security);

  grpc::ServerUnaryReactor* GenerateText(grpc::CallbackServerContext* context,
                                         const inference::v1::GenerateTextRequest* request,
                                         inference::v1::GenerateTextResponse* response) override;
  grpc::ServerWriteReactor<inference::v1::GenerateTextResponse>* StreamGenerateText(
      grpc::CallbackServerContext* context,
      const inference::v1::GenerateTextRequest* request) override;
  grpc::ServerUnaryReactor* CountTokens(grpc::CallbackServerContext* context,
                                        const inference::v1::CountTokensRequest* request,
                                        inference::v1::CountTokensResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const inference::v1::TokenizeRequest* request,
                                     inference::v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const inference::v1::DetokenizeRequest* request,
                                       inference::v1::DetokenizeResponse* response) override;

 private:
  // `request` lives until `sink` ends its call.
  void Begin(const grpc::CallbackServerContext& context,
             const inference::v1::GenerateTextRequest* request,
             std::shared_ptr<GenerationSink> sink);
  // Runs `work` on a thread of the generator.
  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* RunUnary(
      grpc::CallbackServerContext* context, const Request* request, Response* response,
      absl::Status (TextGenerator::*work)(const Request&, const ActiveModel&, Response*) const);

  TextGenerator& generator_;
  InferenceMetrics& metrics_;
  const Security& security_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_INFERENCE_SERVICE_H_
