#include "services/jobs/artifact_service.h"

#include <utility>

#include "core/base/status_macros.h"
#include "services/common/unary.h"
#include "services/jobs/read_file_reactor.h"
#include "services/jobs/request_fields.h"

namespace quern {

grpc::ServerUnaryReactor* ArtifactServiceImpl::GetArtifact(
    grpc::CallbackServerContext* context, const artifact::v1::GetArtifactRequest* request,
    artifact::v1::Artifact* response) {
  return RunUnary(executor_, context, [this, request, response]() -> absl::Status {
    ASSIGN_OR_RETURN(const Digest id, ParseArtifactName("name", request->name()));
    ASSIGN_OR_RETURN(*response, catalog_.Get(id));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ArtifactServiceImpl::ListArtifacts(
    grpc::CallbackServerContext* context, const artifact::v1::ListArtifactsRequest* request,
    artifact::v1::ListArtifactsResponse* response) {
  return RunUnary(executor_, context, [this, request, response]() -> absl::Status {
    ASSIGN_OR_RETURN(const int page_size, CheckPageSize(request->page_size()));
    RETURN_IF_ERROR(CheckText("page_token", request->page_token(), 128));
    ASSIGN_OR_RETURN(JobStore::ArtifactPage page,
                     board_.store().ListArtifacts(page_size, request->page_token()));
    for (const JobStore::ArtifactRecord& record : page.artifacts) {
      ASSIGN_OR_RETURN(*response->add_artifacts(), ArtifactCatalog::FromRecord(record));
    }
    response->set_next_page_token(std::move(page.next_page_token));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ArtifactServiceImpl::DeleteArtifact(
    grpc::CallbackServerContext* context, const artifact::v1::DeleteArtifactRequest* request,
    google::protobuf::Empty*) {
  return RunUnary(executor_, context, [this, request]() -> absl::Status {
    ASSIGN_OR_RETURN(const Digest id, ParseArtifactName("name", request->name()));
    return catalog_.Delete(id);
  });
}

grpc::ServerWriteReactor<artifact::v1::ReadArtifactFileResponse>*
ArtifactServiceImpl::ReadArtifactFile(grpc::CallbackServerContext*,
                                      const artifact::v1::ReadArtifactFileRequest* request) {
  return StartReadFile(catalog_, executor_, *request);
}

}  // namespace quern
