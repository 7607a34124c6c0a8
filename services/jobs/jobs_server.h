#ifndef QUERN_SERVICES_JOBS_JOBS_SERVER_H_
#define QUERN_SERVICES_JOBS_JOBS_SERVER_H_

#include <absl/status/statusor.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>

#include "core/base/clock.h"
#include "core/store/local_artifact_store.h"
#include "core/store/sqlite_job_store.h"
#include "services/common/executor.h"
#include "services/common/metrics_endpoint.h"
#include "services/common/process_metrics.h"
#include "services/common/security.h"
#include "services/common/server.h"
#include "services/jobs/artifact_catalog.h"
#include "services/jobs/artifact_service.h"
#include "services/jobs/config.h"
#include "services/jobs/job_board.h"
#include "services/jobs/metrics.h"
#include "services/jobs/quantization_service.h"
#include "services/jobs/task_planner.h"
#include "services/jobs/worker_service.h"

namespace quern {

// quern-jobs in one object, so that tests can run it inside their process.
class JobsServer {
 public:
  // Opens the stores and serves. `clock` must outlive the server. Errors as those of its parts.
  static absl::StatusOr<std::unique_ptr<JobsServer>> Start(const JobsConfig& config, Clock& clock);

  ~JobsServer();

  const std::string& grpc_address() const { return server_->address(); }
  const std::string& metrics_address() const { return metrics_endpoint_->address(); }
  prometheus::Registry& registry() { return registry_; }

  // Stops taking calls, ends streams and waiting calls, waits for the rest. Once only.
  void Shutdown();

 private:
  explicit JobsServer(const JobsConfig& config);
  absl::Status Open(Clock& clock);

  // In the order they are needed: each lives longer than those below it.
  const JobsConfig config_;
  prometheus::Registry registry_;
  JobsMetrics metrics_;
  ProcessMetrics process_metrics_;
  std::unique_ptr<Security> security_;
  std::unique_ptr<SqliteJobStore> jobs_;
  std::unique_ptr<LocalArtifactStore> blobs_;
  std::unique_ptr<JobBoard> board_;
  std::unique_ptr<ArtifactCatalog> catalog_;
  std::unique_ptr<TaskPlanner> planner_;
  std::unique_ptr<QuantizationServiceImpl> quantization_;
  std::unique_ptr<WorkerServiceImpl> worker_;
  std::unique_ptr<ArtifactServiceImpl> artifact_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<MetricsEndpoint> metrics_endpoint_;
  bool shut_down_ = false;
};

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_JOBS_SERVER_H_
