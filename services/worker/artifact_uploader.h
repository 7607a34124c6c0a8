#ifndef QUERN_SERVICES_WORKER_ARTIFACT_UPLOADER_H_
#define QUERN_SERVICES_WORKER_ARTIFACT_UPLOADER_H_

#include <absl/functional/function_ref.h>
#include <absl/status/statusor.h>
#include <quern/worker/v1/worker_service.grpc.pb.h>

#include <string>

namespace quern {

// Sends the files of `directory` (regular files only, no folders) under the lease of `token` and
// returns the name of the staged artifact. `keep_lease` is called after each MiB; its error ends
// the upload and is returned. Local errors are INVALID_ARGUMENT, DATA_LOSS or those of the file
// system; others come from quern-jobs.
absl::StatusOr<std::string> UploadArtifact(worker::v1::WorkerService::StubInterface& stub,
                                           const std::string& token, const std::string& directory,
                                           absl::FunctionRef<absl::Status()> keep_lease);

}  // namespace quern

#endif  // QUERN_SERVICES_WORKER_ARTIFACT_UPLOADER_H_
