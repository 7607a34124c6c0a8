#ifndef QUERN_SERVICES_INFERENCE_INFERENCE_SERVER_H_
#define QUERN_SERVICES_INFERENCE_INFERENCE_SERVER_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <prometheus/registry.h>

#include <atomic>
#include <memory>
#include <string>

#include "core/base/clock.h"
#include "core/engine/engine.h"
#include "services/artifact_cache/artifact_cache.h"
#include "services/common/http_server.h"
#include "services/common/metrics_endpoint.h"
#include "services/common/process_metrics.h"
#include "services/common/security.h"
#include "services/common/server.h"
#include "services/inference/config.h"
#include "services/inference/engine_watch.h"
#include "services/inference/inference_service.h"
#include "services/inference/metrics.h"
#include "services/inference/model_loader.h"
#include "services/inference/model_registry.h"
#include "services/inference/model_service.h"
#include "services/inference/openai_server.h"
#include "services/inference/text_generator.h"

namespace quern {

// quern-inference in one object, so that tests can run it inside their process.
class InferenceServer {
 public:
  // Checks the configuration, starts the engine and serves. `clock` must outlive the server.
  static absl::StatusOr<std::unique_ptr<InferenceServer>> Start(const InferenceConfig& config,
                                                                Clock& clock);
  // Shuts down unless that was done.
  ~InferenceServer();

  const std::string& grpc_address() const { return server_->address(); }
  // "" when there is none.
  std::string http_address() const { return http_server_ ? http_server_->address() : ""; }
  const std::string& metrics_address() const { return endpoint_->address(); }

  // Refuses new requests, lets running ones finish within the configured grace, ends the rest.
  void Shutdown();

 private:
  explicit InferenceServer(const InferenceConfig& config);
  absl::Status Open(Clock& clock);
  // UNAVAILABLE when the engine has got nowhere for `limit` although work waits.
  absl::Status CheckEngine(absl::Duration limit) const;

  // In the order they are needed: each lives longer than those below it.
  const InferenceConfig config_;
  prometheus::Registry prometheus_registry_;
  InferenceMetrics metrics_;
  EngineGauges gauges_;
  ProcessMetrics process_metrics_;
  std::unique_ptr<Security> security_;
  // Exchanges that still end must find it.
  std::unique_ptr<HttpServer> http_server_;
  std::unique_ptr<ArtifactCache> cache_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ModelLoader> loader_;
  std::unique_ptr<ModelRegistry> registry_;
  std::unique_ptr<ModelServiceImpl> model_service_;
  std::unique_ptr<TextGenerator> generator_;
  std::unique_ptr<InferenceServiceImpl> inference_service_;
  std::unique_ptr<OpenAiApi> openai_api_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<EngineWatch> watch_;
  std::atomic<bool> draining_ = false;
  std::unique_ptr<MetricsEndpoint> endpoint_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_INFERENCE_SERVER_H_
