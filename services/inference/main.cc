// quern-inference: serves models over gRPC.

#include <absl/flags/flag.h>
#include <absl/strings/str_cat.h>
#include <absl/time/time.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/grpcpp.h>
#include <prometheus/registry.h>
#include <sched.h>

#include <atomic>
#include <memory>
#include <string>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/engine/engine.h"
#include "services/common/flags.h"
#include "services/common/metrics_endpoint.h"
#include "services/common/ready_file.h"
#include "services/common/server.h"
#include "services/common/signals.h"
#include "services/inference/artifact_cache.h"
#include "services/inference/config.h"
#include "services/inference/inference_service.h"
#include "services/inference/metrics.h"
#include "services/inference/model_registry.h"
#include "services/inference/model_service.h"

ABSL_FLAG(std::string, listen, quern::InferenceConfig().listen,
          "HOST:PORT for gRPC; port 0 means any free one");
ABSL_FLAG(std::string, jobs, quern::InferenceConfig().jobs,
          "HOST:PORT of quern-jobs, where artifacts are pulled from; empty: none");
ABSL_FLAG(std::string, cache_directory, quern::InferenceConfig().cache_directory,
          "where pulled artifacts are kept");
ABSL_FLAG(std::string, model_root, "", "directory with the checkpoints that may be served as is");
ABSL_FLAG(int, threads, quern::InferenceConfig().threads,
          "threads of a step; 0 means one for each CPU that this process may use");
ABSL_FLAG(int, kv_cache_mib, quern::InferenceConfig().kv_cache_mib,
          "memory for the KV pages of each model, MiB");

namespace quern {
namespace {

// Running requests may take this long to finish after SIGTERM.
constexpr absl::Duration kDrainGrace = absl::Seconds(30);
// What then still is to be written to clients.
constexpr absl::Duration kWriteGrace = absl::Seconds(5);
// A step takes less, whatever the model: beyond it the engine hangs.
constexpr absl::Duration kStallLimit = absl::Seconds(60);

int AllowedCpus() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (sched_getaffinity(0, sizeof(cpus), &cpus) != 0) return 1;
  return CPU_COUNT(&cpus);
}

InferenceConfig ReadConfig(int argc, char** argv) {
  InferenceConfig config;
  const CommonConfig common = InitService("quern-inference", "Serves quantized models over gRPC.",
                                          config.metrics_listen, argc, argv);
  config.listen = absl::GetFlag(FLAGS_listen);
  config.metrics_listen = common.metrics_listen;
  config.allow_insecure_network = common.allow_insecure_network;
  config.ready_file = common.ready_file;
  config.jobs = absl::GetFlag(FLAGS_jobs);
  config.cache_directory = absl::GetFlag(FLAGS_cache_directory);
  config.model_root = absl::GetFlag(FLAGS_model_root);
  config.threads = absl::GetFlag(FLAGS_threads);
  config.kv_cache_mib = absl::GetFlag(FLAGS_kv_cache_mib);
  if (config.threads == 0) config.threads = AllowedCpus();
  return config;
}

MetricsEndpointOptions EndpointOptions(const InferenceConfig& config, const Engine& engine,
                                       EngineGauges& gauges, const std::atomic<bool>& draining) {
  const auto healthy = [&engine] {
    if (engine.Healthy(kStallLimit)) return absl::OkStatus();
    return absl::UnavailableError("the engine has work and has not finished a step for long");
  };
  MetricsEndpointOptions options;
  options.listen = config.metrics_listen;
  options.allow_insecure_network = config.allow_insecure_network;
  options.live = healthy;
  options.ready = [healthy, &draining]() -> absl::Status {
    if (draining) return absl::UnavailableError("shutting down");
    return healthy();
  };
  options.before_scrape = [&engine, &gauges] { gauges.Update(engine.Stats()); };
  return options;
}

absl::Status Serve(const InferenceConfig& config) {
  RETURN_IF_ERROR(RemoveReadyFile(config.ready_file));
  prometheus::Registry prometheus_registry;
  InferenceMetrics metrics(prometheus_registry);
  EngineGauges gauges(prometheus_registry);
  SystemClock clock;

  std::shared_ptr<grpc::Channel> jobs;
  if (!config.jobs.empty()) {
    jobs = grpc::CreateChannel(config.jobs, grpc::InsecureChannelCredentials());
  }
  ASSIGN_OR_RETURN(const auto cache, ArtifactCache::Open(config.cache_directory, jobs));
  EngineOptions engine_options;
  engine_options.num_threads = config.threads;
  engine_options.kv_cache_bytes = int64_t{config.kv_cache_mib} << 20;
  ASSIGN_OR_RETURN(const auto engine, Engine::Create(engine_options, &metrics));

  ModelRegistry registry(config.model_root, *engine, *cache, metrics, clock);
  ModelServiceImpl model_service(registry);
  InferenceServiceImpl inference_service(*engine, registry, metrics);
  ServerOptions server_options;
  server_options.listen = config.listen;
  server_options.allow_insecure_network = config.allow_insecure_network;
  ASSIGN_OR_RETURN(
      const auto server,
      GrpcServer::Start(server_options, {&model_service, &inference_service}, prometheus_registry));
  std::atomic<bool> draining = false;
  ASSIGN_OR_RETURN(const auto endpoint,
                   MetricsEndpoint::Start(EndpointOptions(config, *engine, gauges, draining),
                                          prometheus_registry));
  server->SetServing(true);
  RETURN_IF_ERROR(WriteReadyFile(config.ready_file, server->address(), endpoint->address()));
  LOG(INFO) << "serving address=" << server->address() << " metrics=" << endpoint->address()
            << " threads=" << config.threads;

  WaitForShutdownSignal();
  LOG(INFO) << "draining grace=" << absl::FormatDuration(kDrainGrace);
  draining = true;
  server->Shutdown(kWriteGrace, [&] {
    registry.Drain();
    engine->Drain(kDrainGrace);
  });
  LOG(INFO) << "stopped";
  return absl::OkStatus();
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) {
  const quern::InferenceConfig config = quern::ReadConfig(argc, argv);
  if (const absl::Status status = config.Validate(); !status.ok()) {
    LOG(ERROR) << status.message();
    return quern::kExitConfig;
  }
  if (const absl::Status status = quern::Serve(config); !status.ok()) {
    LOG(ERROR) << status;
    return 1;
  }
  return 0;
}
