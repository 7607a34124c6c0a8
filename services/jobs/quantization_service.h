#ifndef QUERN_SERVICES_JOBS_QUANTIZATION_SERVICE_H_
#define QUERN_SERVICES_JOBS_QUANTIZATION_SERVICE_H_

#include <quern/quantization/v1/quantization_service.grpc.pb.h>

#include "services/common/executor.h"
#include "services/jobs/job_board.h"
#include "services/jobs/task_planner.h"

namespace quern {

// What users do with jobs. Thread-safe.
class QuantizationServiceImpl final
    : public quantization::v1::QuantizationService::CallbackService {
 public:
  // All must outlive the service.
  QuantizationServiceImpl(JobBoard& board, const TaskPlanner& planner, Executor& executor)
      : board_(board), planner_(planner), executor_(executor) {}

  grpc::ServerUnaryReactor* CreateQuantizationJob(
      grpc::CallbackServerContext* context,
      const quantization::v1::CreateQuantizationJobRequest* request,
      quantization::v1::QuantizationJob* response) override;
  grpc::ServerUnaryReactor* GetQuantizationJob(
      grpc::CallbackServerContext* context,
      const quantization::v1::GetQuantizationJobRequest* request,
      quantization::v1::QuantizationJob* response) override;
  grpc::ServerUnaryReactor* ListQuantizationJobs(
      grpc::CallbackServerContext* context,
      const quantization::v1::ListQuantizationJobsRequest* request,
      quantization::v1::ListQuantizationJobsResponse* response) override;
  grpc::ServerUnaryReactor* CancelQuantizationJob(
      grpc::CallbackServerContext* context,
      const quantization::v1::CancelQuantizationJobRequest* request,
      quantization::v1::QuantizationJob* response) override;
  grpc::ServerUnaryReactor* DeleteQuantizationJob(
      grpc::CallbackServerContext* context,
      const quantization::v1::DeleteQuantizationJobRequest* request,
      google::protobuf::Empty* response) override;
  grpc::ServerWriteReactor<quantization::v1::JobEvent>* WatchQuantizationJob(
      grpc::CallbackServerContext* context,
      const quantization::v1::WatchQuantizationJobRequest* request) override;

 private:
  absl::Status Create(const quantization::v1::CreateQuantizationJobRequest& request,
                      quantization::v1::QuantizationJob& response);
  absl::Status List(const quantization::v1::ListQuantizationJobsRequest& request,
                    quantization::v1::ListQuantizationJobsResponse& response);

  JobBoard& board_;
  const TaskPlanner& planner_;
  Executor& executor_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_QUANTIZATION_SERVICE_H_
