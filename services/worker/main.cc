// quern-worker: leases jobs from quern-jobs, runs the quantizer on them, publishes what it makes.

#include <absl/flags/flag.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <climits>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "services/common/build_info.h"
#include "services/common/channel.h"
#include "services/common/flags.h"
#include "services/common/metrics_endpoint.h"
#include "services/common/process_metrics.h"
#include "services/common/ready_file.h"
#include "services/common/rpc_metrics.h"
#include "services/common/security.h"
#include "services/common/signals.h"
#include "services/worker/config.h"
#include "services/worker/lease_loop.h"
#include "services/worker/quantizer_process.h"

ABSL_FLAG(std::string, jobs, "127.0.0.1:7400", "HOST:PORT of quern-jobs");
ABSL_FLAG(std::string, tls_ca, "",
          "PEM file of the CA that the certificate of --jobs must come from; empty: no TLS to it");
ABSL_FLAG(std::string, token_file, "",
          "file with the token that is shown to --jobs, a worker's; empty: none");
ABSL_FLAG(std::string, work_directory, "",
          "where unfinished work is kept, by one worker at a time; required");
ABSL_FLAG(std::string, model_root, "", "directory that checkpoints of jobs lie below; required");
ABSL_FLAG(std::string, data_root, "",
          "directory that calibration and evaluation texts lie below; required");
ABSL_FLAG(std::string, quantizer, "",
          "path of quern-quantizer; empty means the one beside this program");
ABSL_FLAG(int, threads, 0, "threads of the quantizer, 0 to 1024; 0 means one for each core");
ABSL_FLAG(int, activation_memory_mib, 0,
          "memory of the quantizer for the states of calibration sequences between blocks, in MiB; "
          "those that do not fit lie in files in the work directory; 0 means half of the device's");
ABSL_FLAG(std::string, device, "auto", "where to train: auto, cpu or cuda");
ABSL_FLAG(
    std::string, name, "",
    "name of this worker in logs and metrics, at most 63 letters, digits, '.', '_' and '-'; empty "
    "means the host's name");

namespace quern {
namespace {

std::string QuantizerBesideThisProgram() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "" : (self.parent_path() / "quern-quantizer").string();
}

WorkerConfig ConfigFromFlags(const CommonConfig& common) {
  WorkerConfig config;
  config.jobs = absl::GetFlag(FLAGS_jobs);
  config.metrics_listen = common.metrics_listen;
  config.security = common.security;
  config.tls_ca = absl::GetFlag(FLAGS_tls_ca);
  config.token_file = absl::GetFlag(FLAGS_token_file);
  config.ready_file = common.ready_file;
  config.log_format = common.log_format;
  config.work_directory = absl::GetFlag(FLAGS_work_directory);
  config.model_root = absl::GetFlag(FLAGS_model_root);
  config.data_root = absl::GetFlag(FLAGS_data_root);
  config.quantizer = absl::GetFlag(FLAGS_quantizer);
  if (config.quantizer.empty()) config.quantizer = QuantizerBesideThisProgram();
  config.threads = absl::GetFlag(FLAGS_threads);
  config.activation_memory_mib = absl::GetFlag(FLAGS_activation_memory_mib);
  config.device = absl::GetFlag(FLAGS_device);
  config.name = absl::GetFlag(FLAGS_name);
  if (config.name.empty()) config.name = DefaultWorkerName();
  return config;
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const WorkerConfig& config,
                                                       prometheus::Registry& registry) {
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> credentials,
                   MakeChannelCredentials("--jobs", config.jobs,
                                          {.tls_ca = config.tls_ca,
                                           .tls_cert = config.security.tls_cert,
                                           .tls_key = config.security.tls_key,
                                           .token_file = config.token_file}));
  grpc::ChannelArguments arguments;
  // A quern-jobs that vanished without a word is noticed within 30 seconds.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5'000);
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> creators;
  creators.push_back(MakeClientRpcMetrics(registry));
  return grpc::experimental::CreateCustomChannelWithInterceptors(config.jobs, credentials,
                                                                 arguments, std::move(creators));
}

absl::Status Serve(const WorkerConfig& config) {
  RETURN_IF_ERROR(config.Validate());
  RETURN_IF_ERROR(RemoveReadyFile(config.ready_file));
  prometheus::Registry registry;
  ExportBuildInfo(registry, "quern-worker");
  WorkerMetrics metrics(registry, config.name);
  ProcessMetrics process_metrics(registry, "work", config.work_directory);
  LeaseLoopOptions options;
  options.name = config.name;
  options.work_directory = config.work_directory;
  ASSIGN_OR_RETURN(const std::unique_ptr<Security> security,
                   Security::Open(config.security, registry));
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> jobs, Connect(config, registry));
  QuantizerProcessOptions process;
  process.program = config.quantizer;
  process.model_root = config.model_root;
  process.data_root = config.data_root;
  process.threads = config.threads;
  process.activation_memory_mib = config.activation_memory_mib;
  process.device = config.device;
  process.log_format = config.log_format;
  process.jobs = jobs;
  QuantizerProcessRunner runner(process);
  ASSIGN_OR_RETURN(std::unique_ptr<LeaseLoop> loop,
                   LeaseLoop::Create(options, jobs, runner, metrics));

  MetricsEndpointOptions endpoint_options;
  endpoint_options.listen = config.metrics_listen;
  endpoint_options.security = security.get();
  endpoint_options.ready = [&loop] { return loop->Ready(); };
  endpoint_options.before_scrape = [&process_metrics] { process_metrics.Update(); };
  ASSIGN_OR_RETURN(std::unique_ptr<MetricsEndpoint> endpoint,
                   MetricsEndpoint::Start(endpoint_options, registry));
  RETURN_IF_ERROR(WriteReadyFile(config.ready_file, {.metrics = endpoint->address()}));
  LOG(INFO) << "working worker=" << config.name << " jobs=" << config.jobs
            << " metrics=" << endpoint->address();
  std::thread thread([&loop] { loop->Run(); });
  const int signal = WaitForShutdownSignal();
  LOG(INFO) << "shutting down signal=" << signal;
  loop->Drain();
  thread.join();
  LOG(INFO) << "stopped";
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  const CommonConfig common =
      InitService("quern-worker", "Runs quantization jobs of a quern-jobs service.",
                  "127.0.0.1:7411", argc, argv);
  const absl::Status status = Serve(ConfigFromFlags(common));
  if (status.ok()) return 0;
  LOG(ERROR) << "not started: " << status.message();
  return kExitConfig;
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) { return quern::Main(argc, argv); }
