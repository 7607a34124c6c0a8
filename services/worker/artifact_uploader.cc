#include "services/worker/artifact_uploader.h"

#include <absl/strings/str_cat.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "core/base/file.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "services/common/status.h"

namespace quern {
namespace {

using worker::v1::StageArtifactRequest;
using worker::v1::StageArtifactResponse;

constexpr size_t kChunkBytes = 1 << 20;

// Calls `take` with each MiB of `file`, and `keep_lease` after it.
absl::Status ForEachChunk(const MappedFile& file, absl::FunctionRef<absl::Status()> keep_lease,
                          absl::FunctionRef<absl::Status(absl::string_view)> take) {
  for (size_t offset = 0; offset < file.size_bytes(); offset += kChunkBytes) {
    RETURN_IF_ERROR(take(file.bytes().substr(offset, kChunkBytes)));
    RETURN_IF_ERROR(keep_lease());
  }
  return absl::OkStatus();
}

// A call under way; cancelled when it is left early, so that nothing waits for more.
class UploadCall {
 public:
  explicit UploadCall(worker::v1::WorkerService::StubInterface& stub)
      : writer_(stub.StageArtifact(&context_, &response_)) {}
  ~UploadCall() {
    if (finished_) return;
    context_.TryCancel();
    writer_->Finish();
  }

  // False when the call has ended; Finish tells why.
  bool Write(const StageArtifactRequest& message) { return writer_->Write(message); }

  absl::StatusOr<std::string> Finish() {
    finished_ = true;
    writer_->WritesDone();
    RETURN_IF_ERROR(FromGrpcStatus(writer_->Finish()));
    return response_.artifact();
  }

 private:
  grpc::ClientContext context_;
  StageArtifactResponse response_;
  std::unique_ptr<grpc::ClientWriterInterface<StageArtifactRequest>> writer_;
  bool finished_ = false;
};

}  // namespace

absl::StatusOr<std::string> UploadArtifact(worker::v1::WorkerService::StubInterface& stub,
                                           const std::string& token, const std::string& directory,
                                           absl::FunctionRef<absl::Status()> keep_lease) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
  StageArtifactRequest header;
  header.mutable_header()->set_token(token);
  std::vector<MappedFile> files;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(absl::StrCat(directory, "/", name)));
    Sha256 hash;
    RETURN_IF_ERROR(ForEachChunk(file, keep_lease, [&](absl::string_view bytes) {
      hash.Update(bytes);
      return absl::OkStatus();
    }));
    artifact::v1::ArtifactFile& entry = *header.mutable_header()->add_files();
    entry.set_path(name);
    entry.set_size_bytes(static_cast<int64_t>(file.size_bytes()));
    entry.set_sha256(hash.FinishHex());
    files.push_back(std::move(file));
  }

  UploadCall call(stub);
  bool open = call.Write(header);
  for (size_t i = 0; i < files.size() && open; ++i) {
    RETURN_IF_ERROR(ForEachChunk(files[i], keep_lease, [&](absl::string_view bytes) {
      StageArtifactRequest chunk;
      chunk.set_chunk(bytes.data(), bytes.size());
      open = open && call.Write(chunk);
      return absl::OkStatus();
    }));
  }
  return call.Finish();
}

}  // namespace quern
