#ifndef QUERN_SERVICES_JOBS_READ_FILE_REACTOR_H_
#define QUERN_SERVICES_JOBS_READ_FILE_REACTOR_H_

#include <grpcpp/grpcpp.h>
#include <quern/artifact/v1/artifact_service.pb.h>

#include "services/common/executor.h"
#include "services/jobs/artifact_catalog.h"

namespace quern {

// Streams one file of a published artifact in messages of 1 MiB. The reactor deletes itself;
// `catalog` and `executor` must outlive the server.
grpc::ServerWriteReactor<artifact::v1::ReadArtifactFileResponse>* StartReadFile(
    ArtifactCatalog& catalog, Executor& executor,
    const artifact::v1::ReadArtifactFileRequest& request);

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_READ_FILE_REACTOR_H_
