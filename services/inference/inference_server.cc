#include "services/inference/inference_server.h"

#include <absl/strings/str_cat.h>
#include <absl/time/time.h>
#include <grpcpp/create_channel.h>

#include "core/base/machine.h"
#include "core/base/status_macros.h"
#include "services/common/build_info.h"
#include "services/common/channel.h"

namespace quern {
namespace {

// What is still to be written to clients when the last request has ended.
constexpr absl::Duration kWriteGrace = absl::Seconds(5);
// An engine that is stalled gets no new requests (kStallLimit); after this long it will not go on
// any more, and the process is to be restarted.
constexpr absl::Duration kDeadLimit = absl::Seconds(60);

constexpr int kMaxHttpHeaderBytes = 16 << 10;
constexpr int kMaxHttpBodyBytes = 4 << 20;
constexpr int kMaxHttpConnections = 1024;
constexpr absl::Duration kHttpTimeout = absl::Seconds(60);

}  // namespace

absl::StatusOr<std::unique_ptr<InferenceServer>> InferenceServer::Start(
    const InferenceConfig& config, Clock& clock) {
  RETURN_IF_ERROR(config.Validate());
  std::unique_ptr<InferenceServer> server(new InferenceServer(config));
  RETURN_IF_ERROR(server->Open(clock));
  return server;
}

InferenceServer::InferenceServer(const InferenceConfig& config)
    : config_(config),
      metrics_(prometheus_registry_),
      gauges_(prometheus_registry_),
      process_metrics_(prometheus_registry_, "cache", config.cache_directory) {}

InferenceServer::~InferenceServer() {
  if (server_ != nullptr && !draining_) Shutdown();
}

absl::Status InferenceServer::Open(Clock& clock) {
  ASSIGN_OR_RETURN(security_, Security::Open(config_.security, prometheus_registry_));
  std::shared_ptr<grpc::Channel> jobs;
  if (!config_.jobs.empty()) {
    ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> credentials,
                     MakeChannelCredentials("--jobs", config_.jobs,
                                            {.tls_ca = config_.tls_ca,
                                             .tls_cert = config_.security.tls_cert,
                                             .tls_key = config_.security.tls_key,
                                             .token_file = config_.token_file}));
    jobs = grpc::CreateChannel(config_.jobs, credentials);
  }
  ASSIGN_OR_RETURN(cache_, ArtifactCache::Open(config_.cache_directory, jobs));
  EngineOptions engine_options;
  engine_options.num_threads = config_.threads > 0 ? config_.threads : AvailableCpus();
  engine_options.prefix_cache = config_.prefix_cache;
  engine_options.kv_cache_bytes = int64_t{config_.kv_cache_mib} << 20;
  engine_options.max_sequences = config_.max_sequences;
  engine_options.max_step_tokens = config_.max_step_tokens;
  engine_options.max_queued_requests = config_.max_queued_requests;
  engine_options.max_queued_tokens = config_.max_queued_tokens;
  engine_options.max_queue_wait = config_.max_queue_wait;
  ASSIGN_OR_RETURN(engine_, Engine::Create(engine_options, &metrics_));

  loader_ = std::make_unique<ModelLoader>(config_.model_root, *engine_, *cache_);
  ModelRegistryOptions registry_options;
  registry_options.list_path = config_.cache_directory + "/models.json";
  registry_options.memory_bytes = config_.model_memory_mib > 0
                                      ? int64_t{config_.model_memory_mib} << 20
                                      : AvailableMemoryBytes() / 10 * 9;
  registry_options.evict_for_memory = config_.evict_idle_models;
  ASSIGN_OR_RETURN(registry_options.kv_cache_type, ParseKvCacheType(config_.kv_cache_type));
  if (config_.idle_model_timeout > absl::ZeroDuration()) {
    registry_options.idle_timeout = config_.idle_model_timeout;
  }
  registry_ =
      std::make_unique<ModelRegistry>(registry_options, *engine_, *loader_, metrics_, clock);
  RETURN_IF_ERROR(registry_->Restore());
  model_service_ = std::make_unique<ModelServiceImpl>(*registry_);
  generator_ =
      std::make_unique<TextGenerator>(*engine_, *registry_, metrics_, config_.request_timeout);
  inference_service_ = std::make_unique<InferenceServiceImpl>(*generator_, metrics_, *security_);
  ServerOptions server_options;
  server_options.listen = config_.listen;
  server_options.security = security_.get();
  server_options.health_names = {inference::v1::ModelService::service_full_name(),
                                 inference::v1::InferenceService::service_full_name()};
  ASSIGN_OR_RETURN(
      server_, GrpcServer::Start(server_options, {model_service_.get(), inference_service_.get()},
                                 prometheus_registry_));
  if (!config_.http_listen.empty()) {
    openai_api_ = std::make_unique<OpenAiApi>(*generator_, *registry_, metrics_, clock);
    const HttpServerOptions http_options{.flag = "--http-listen",
                                         .listen = config_.http_listen,
                                         .security = security_.get(),
                                         .max_header_bytes = kMaxHttpHeaderBytes,
                                         .max_body_bytes = kMaxHttpBodyBytes,
                                         .max_connections = kMaxHttpConnections,
                                         .timeout = kHttpTimeout,
                                         .refuse = OpenAiApi::Refuse};
    ASSIGN_OR_RETURN(
        http_server_,
        HttpServer::Start(http_options, [this](std::shared_ptr<HttpExchange> exchange) {
          openai_api_->Handle(std::move(exchange));
        }));
  }
  ExportBuildInfo(prometheus_registry_, "quern-inference");
  MetricsEndpointOptions endpoint_options;
  endpoint_options.listen = config_.metrics_listen;
  endpoint_options.security = security_.get();
  endpoint_options.live = [this] { return CheckEngine(kDeadLimit); };
  endpoint_options.ready = [this]() -> absl::Status {
    if (draining_) return absl::UnavailableError("shutting down");
    return CheckEngine(kStallLimit);
  };
  endpoint_options.before_scrape = [this] {
    gauges_.Update(engine_->Stats());
    process_metrics_.Update();
  };
  ASSIGN_OR_RETURN(endpoint_, MetricsEndpoint::Start(endpoint_options, prometheus_registry_));
  server_->SetServing(true);
  registry_->ObserveHealth([this](const std::string& id, bool serving) {
    server_->SetServing(absl::StrCat("models/", id), serving);
  });
  watch_ = std::make_unique<EngineWatch>(*engine_, [this](bool on) { server_->SetServing(on); });
  return absl::OkStatus();
}

absl::Status InferenceServer::CheckEngine(absl::Duration limit) const {
  if (engine_->Healthy(limit)) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the engine has work and has got nowhere for ", absl::FormatDuration(limit)));
}

void InferenceServer::Shutdown() {
  draining_ = true;
  watch_ = nullptr;
  // What is under way there ends when the engine has drained.
  if (http_server_ != nullptr) http_server_->Shutdown(absl::ZeroDuration());
  server_->Shutdown(kWriteGrace, [this] {
    registry_->Drain();
    engine_->Drain(config_.drain_grace);
  });
  registry_->ObserveHealth(nullptr);
  if (http_server_ != nullptr) http_server_->Shutdown(kWriteGrace);
}

}  // namespace quern
