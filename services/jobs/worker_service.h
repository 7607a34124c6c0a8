#ifndef QUERN_SERVICES_JOBS_WORKER_SERVICE_H_
#define QUERN_SERVICES_JOBS_WORKER_SERVICE_H_

#include <quern/worker/v1/worker_service.grpc.pb.h>

#include <memory>

#include "services/common/executor.h"
#include "services/jobs/artifact_catalog.h"
#include "services/jobs/job_board.h"
#include "services/jobs/metrics.h"
#include "services/jobs/task_planner.h"

namespace quern {

// What workers do with jobs. Thread-safe.
class WorkerServiceImpl final : public worker::v1::WorkerService::CallbackService {
 public:
  // All must outlive the service.
  WorkerServiceImpl(JobBoard& board, ArtifactCatalog& catalog, const TaskPlanner& planner,
                    JobsMetrics& metrics, Executor& executor)
      : board_(board),
        catalog_(catalog),
        planner_(planner),
        metrics_(metrics),
        executor_(executor) {}

  grpc::ServerUnaryReactor* LeaseJob(grpc::CallbackServerContext* context,
                                     const worker::v1::LeaseJobRequest* request,
                                     worker::v1::LeaseJobResponse* response) override;
  grpc::ServerUnaryReactor* RenewLease(grpc::CallbackServerContext* context,
                                       const worker::v1::RenewLeaseRequest* request,
                                       worker::v1::RenewLeaseResponse* response) override;
  grpc::ServerUnaryReactor* ReleaseLease(grpc::CallbackServerContext* context,
                                         const worker::v1::ReleaseLeaseRequest* request,
                                         google::protobuf::Empty* response) override;
  grpc::ServerReadReactor<worker::v1::StageArtifactRequest>* StageArtifact(
      grpc::CallbackServerContext* context, worker::v1::StageArtifactResponse* response) override;
  grpc::ServerUnaryReactor* CompleteJob(grpc::CallbackServerContext* context,
                                        const worker::v1::CompleteJobRequest* request,
                                        google::protobuf::Empty* response) override;

 private:
  // A LeaseJob call that waits: held by whoever will look for a job next.
  struct PendingLease;
  void TryLease(std::shared_ptr<PendingLease> pending);
  absl::Status Renew(const worker::v1::RenewLeaseRequest& request,
                     worker::v1::RenewLeaseResponse& response);
  absl::Status CompleteWithoutArtifact(const worker::v1::CompleteJobRequest& request);
  absl::Status Complete(const worker::v1::CompleteJobRequest& request);

  JobBoard& board_;
  ArtifactCatalog& catalog_;
  const TaskPlanner& planner_;
  JobsMetrics& metrics_;
  Executor& executor_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_WORKER_SERVICE_H_
