// quern-jobs: takes jobs, leases them to workers, keeps and serves artifacts.

#include <absl/flags/flag.h>

#include <memory>
#include <string>

#include "core/base/log.h"
#include "core/store/boot_clock.h"
#include "services/common/flags.h"
#include "services/common/ready_file.h"
#include "services/common/signals.h"
#include "services/jobs/jobs_server.h"

ABSL_FLAG(std::string, listen, "127.0.0.1:7400", "HOST:PORT for gRPC; port 0 means any free one");
ABSL_FLAG(std::string, data_directory, "",
          "where jobs and artifacts are kept, by one process at a time; required");
ABSL_FLAG(
    int, lease_seconds, 30,
    "a job is given to another worker when its own was silent for this many seconds, 1 to 3600");
ABSL_FLAG(std::string, model_root, "", "directory that checkpoints of jobs lie below; required");
ABSL_FLAG(std::string, data_root, "",
          "directory that calibration and evaluation texts lie below; required");

namespace quern {
namespace {

int Main(int argc, char** argv) {
  const CommonConfig common = InitService(
      "quern-jobs", "Takes quantization jobs, leases them to workers, keeps their artifacts.",
      "127.0.0.1:7401", argc, argv);
  JobsConfig config;
  config.listen = absl::GetFlag(FLAGS_listen);
  config.metrics_listen = common.metrics_listen;
  config.security = common.security;
  config.ready_file = common.ready_file;
  config.data_directory = absl::GetFlag(FLAGS_data_directory);
  config.lease_duration = absl::Seconds(absl::GetFlag(FLAGS_lease_seconds));
  config.model_root = absl::GetFlag(FLAGS_model_root);
  config.data_root = absl::GetFlag(FLAGS_data_root);
  const absl::Status removed = RemoveReadyFile(config.ready_file);
  if (!removed.ok()) {
    LOG(ERROR) << removed.message();
    return kExitConfig;
  }

  BootClock clock;
  absl::StatusOr<std::unique_ptr<JobsServer>> server = JobsServer::Start(config, clock);
  if (!server.ok()) {
    LOG(ERROR) << "not started: " << server.status().message();
    return kExitConfig;
  }
  const absl::Status written =
      WriteReadyFile(config.ready_file,
                     {.grpc = (*server)->grpc_address(), .metrics = (*server)->metrics_address()});
  if (!written.ok()) {
    LOG(ERROR) << "not started: " << written.message();
    return kExitConfig;
  }
  LOG(INFO) << "serving grpc=" << (*server)->grpc_address()
            << " metrics=" << (*server)->metrics_address() << " data=" << config.data_directory;
  const int signal = WaitForShutdownSignal();
  LOG(INFO) << "shutting down signal=" << signal;
  (*server)->Shutdown();
  LOG(INFO) << "stopped";
  return 0;
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) { return quern::Main(argc, argv); }
