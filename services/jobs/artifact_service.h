#ifndef QUERN_SERVICES_JOBS_ARTIFACT_SERVICE_H_
#define QUERN_SERVICES_JOBS_ARTIFACT_SERVICE_H_

#include <quern/artifact/v1/artifact_service.grpc.pb.h>

#include "services/common/executor.h"
#include "services/jobs/artifact_catalog.h"
#include "services/jobs/job_board.h"

namespace quern {

// Published artifacts, for users and inference servers. Thread-safe.
class ArtifactServiceImpl final : public artifact::v1::ArtifactService::CallbackService {
 public:
  // All must outlive the service.
  ArtifactServiceImpl(JobBoard& board, ArtifactCatalog& catalog, Executor& executor)
      : board_(board), catalog_(catalog), executor_(executor) {}

  grpc::ServerUnaryReactor* GetArtifact(grpc::CallbackServerContext* context,
                                        const artifact::v1::GetArtifactRequest* request,
                                        artifact::v1::Artifact* response) override;
  grpc::ServerUnaryReactor* ListArtifacts(grpc::CallbackServerContext* context,
                                          const artifact::v1::ListArtifactsRequest* request,
                                          artifact::v1::ListArtifactsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteArtifact(grpc::CallbackServerContext* context,
                                           const artifact::v1::DeleteArtifactRequest* request,
                                           google::protobuf::Empty* response) override;
  grpc::ServerWriteReactor<artifact::v1::ReadArtifactFileResponse>* ReadArtifactFile(
      grpc::CallbackServerContext* context,
      const artifact::v1::ReadArtifactFileRequest* request) override;

 private:
  JobBoard& board_;
  ArtifactCatalog& catalog_;
  Executor& executor_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_ARTIFACT_SERVICE_H_
