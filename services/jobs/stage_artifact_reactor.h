#ifndef QUERN_SERVICES_JOBS_STAGE_ARTIFACT_REACTOR_H_
#define QUERN_SERVICES_JOBS_STAGE_ARTIFACT_REACTOR_H_

#include <grpcpp/grpcpp.h>
#include <quern/worker/v1/worker_service.pb.h>

#include "services/common/executor.h"
#include "services/jobs/artifact_catalog.h"
#include "services/jobs/job_board.h"

namespace quern {

// Receives the files of one artifact under a lease: header, then their bytes in that order. Every
// blob is verified and durable before the answer. The reactor deletes itself; the others must
// outlive the server, `response` is gRPC's.
grpc::ServerReadReactor<worker::v1::StageArtifactRequest>* StartStageArtifact(
    JobBoard& board, ArtifactCatalog& catalog, JobsMetrics& metrics, Executor& executor,
    worker::v1::StageArtifactResponse* response);

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_STAGE_ARTIFACT_REACTOR_H_
