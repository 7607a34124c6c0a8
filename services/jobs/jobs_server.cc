#include "services/jobs/jobs_server.h"

#include "core/base/error_reason.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "services/common/build_info.h"
#include "services/jobs/job_messages.h"

namespace quern {
namespace {

// Work of these threads waits for the disk, not for the processor.
constexpr int kExecutorThreads = 4;

std::string PoisonedError() {
  quantization::v1::JobError error;
  error.set_code(grpc::StatusCode::INTERNAL);
  error.set_reason(std::string(reason::kPoisoned));
  error.set_message(
      "every worker that took the job vanished before it made progress; see the job's log and the "
      "workers' logs");
  return SerializeCanonically(error);
}

}  // namespace

JobsServer::JobsServer(const JobsConfig& config)
    : config_(config),
      metrics_(registry_),
      process_metrics_(registry_, "data", config.data_directory) {}

JobsServer::~JobsServer() {
  if (server_ != nullptr) Shutdown();
}

absl::StatusOr<std::unique_ptr<JobsServer>> JobsServer::Start(const JobsConfig& config,
                                                              Clock& clock) {
  RETURN_IF_ERROR(config.Validate());
  std::unique_ptr<JobsServer> server(new JobsServer(config));
  RETURN_IF_ERROR(server->Open(clock));
  return server;
}

absl::Status JobsServer::Open(Clock& clock) {
  ASSIGN_OR_RETURN(security_, Security::Open(config_.security, registry_));
  SqliteJobStoreOptions job_options;
  job_options.data_directory = config_.data_directory;
  job_options.poisoned_error = PoisonedError();
  job_options.restart_lease = config_.lease_duration;
  ASSIGN_OR_RETURN(jobs_, SqliteJobStore::Open(job_options, clock));
  LocalArtifactStoreOptions blob_options;
  blob_options.directory = config_.data_directory;
  blob_options.reserve_bytes = config_.disk_reserve_bytes;
  ASSIGN_OR_RETURN(blobs_, LocalArtifactStore::Open(blob_options));
  JobBoardOptions board_options;
  board_options.lease_duration = config_.lease_duration;
  board_options.reap_interval = config_.reap_interval;
  board_ = std::make_unique<JobBoard>(*jobs_, metrics_, clock, board_options);
  catalog_ = std::make_unique<ArtifactCatalog>(*blobs_, *board_, metrics_);
  RETURN_IF_ERROR(catalog_->CollectGarbage());

  planner_ = std::make_unique<TaskPlanner>(
      config_.model_root, config_.data_root,
      [this](const Digest& artifact) { return catalog_->GetManifest(artifact); });

  executor_ = std::make_unique<Executor>(kExecutorThreads);
  quantization_ = std::make_unique<QuantizationServiceImpl>(*board_, *planner_, *executor_);
  worker_ =
      std::make_unique<WorkerServiceImpl>(*board_, *catalog_, *planner_, metrics_, *executor_);
  artifact_ = std::make_unique<ArtifactServiceImpl>(*board_, *catalog_, *executor_);

  ExportBuildInfo(registry_, "quern-jobs");
  MetricsEndpointOptions metrics_options;
  metrics_options.listen = config_.metrics_listen;
  metrics_options.security = security_.get();
  metrics_options.ready = [this]() -> absl::Status {
    if (board_->stopping()) return absl::UnavailableError("shutting down");
    return jobs_->CountByState().status();
  };
  metrics_options.before_scrape = [this, &clock] {
    process_metrics_.Update();
    const absl::StatusOr<std::optional<absl::Time>> oldest = jobs_->OldestQueued();
    if (oldest.ok()) {
      metrics_.SetOldestQueued(oldest->has_value() ? clock.Now() - **oldest : absl::ZeroDuration());
    }
    const absl::StatusOr<std::map<JobState, int64_t>> counts = jobs_->CountByState();
    if (counts.ok()) metrics_.SetJobs(*counts);
    const absl::StatusOr<ArtifactStore::Usage> usage = blobs_->GetUsage();
    if (usage.ok()) metrics_.SetStore(*usage);
  };
  ASSIGN_OR_RETURN(metrics_endpoint_, MetricsEndpoint::Start(metrics_options, registry_));

  ServerOptions server_options;
  server_options.listen = config_.listen;
  server_options.security = security_.get();
  server_options.health_names = {quantization::v1::QuantizationService::service_full_name(),
                                 worker::v1::WorkerService::service_full_name(),
                                 artifact::v1::ArtifactService::service_full_name()};
  ASSIGN_OR_RETURN(
      server_, GrpcServer::Start(server_options,
                                 {quantization_.get(), worker_.get(), artifact_.get()}, registry_));
  server_->SetServing(true);
  return absl::OkStatus();
}

void JobsServer::Shutdown() {
  if (shut_down_) return;
  shut_down_ = true;
  server_->Shutdown(config_.drain_grace, [this] { board_->Stop(); });
}

}  // namespace quern
