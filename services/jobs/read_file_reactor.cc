#include "services/jobs/read_file_reactor.h"

#include <absl/base/thread_annotations.h>
#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "core/base/file.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "services/common/status.h"
#include "services/jobs/request_fields.h"

namespace quern {
namespace {

using artifact::v1::ReadArtifactFileRequest;
using artifact::v1::ReadArtifactFileResponse;

constexpr int64_t kChunkBytes = 1 << 20;

// One chunk is being read from disk or written to the stream at any time.
class ReadFileReactor final : public grpc::ServerWriteReactor<ReadArtifactFileResponse> {
 public:
  ReadFileReactor(ArtifactCatalog& catalog, Executor& executor,
                  const ReadArtifactFileRequest& request)
      : catalog_(catalog), executor_(executor), request_(request) {}

  void ScheduleStep() {
    executor_.Post([this] { Step(); });
  }

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(&mutex_);
      if (!ok) cancelled_ = true;
    }
    ScheduleStep();
  }

  void OnCancel() override {
    MutexLock lock(&mutex_);
    cancelled_ = true;
  }

  void OnDone() override {
    // The last step may still hold the lock: it called Finish.
    { MutexLock lock(&mutex_); }
    delete this;
  }

 private:
  void Step() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    absl::Status status = cancelled_ ? absl::CancelledError("the read was cancelled") : NextChunk();
    if (!status.ok() || message_.chunk().empty()) {
      Finish(ToGrpcStatus(status));
    } else {
      StartWrite(&message_);
    }
  }

  // Leaves the chunk empty at the end of the file.
  absl::Status NextChunk() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (file_.get() < 0) RETURN_IF_ERROR(Open());
    std::string& chunk = *message_.mutable_chunk();
    chunk.resize(static_cast<size_t>(std::min(kChunkBytes, size_bytes_ - offset_bytes_)));
    size_t filled = 0;
    while (filled < chunk.size()) {
      const ssize_t got = pread(file_.get(), chunk.data() + filled, chunk.size() - filled,
                                offset_bytes_ + static_cast<int64_t>(filled));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat("reading ", request_.path()));
      if (got == 0) return absl::DataLossError(absl::StrCat(request_.path(), ": was cut short"));
      filled += static_cast<size_t>(got);
    }
    offset_bytes_ += static_cast<int64_t>(filled);
    return absl::OkStatus();
  }

  absl::Status Open() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ASSIGN_OR_RETURN(const Digest id, ParseArtifactName("name", request_.name()));
    ASSIGN_OR_RETURN(const artifact::v1::Artifact artifact, catalog_.Get(id));
    const auto found = std::find_if(
        artifact.files().begin(), artifact.files().end(),
        [this](const artifact::v1::ArtifactFile& file) { return file.path() == request_.path(); });
    if (found == artifact.files().end()) {
      RETURN_IF_ERROR(CheckArtifactPath("path", request_.path()));
      return absl::NotFoundError(
          absl::StrCat("path: artifact ", id.hex(), " has no file '", request_.path(), "'"));
    }
    if (request_.offset_bytes() < 0 || request_.offset_bytes() > found->size_bytes()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "offset_bytes: found ", request_.offset_bytes(), ", wanted 0 to ", found->size_bytes()));
    }
    ASSIGN_OR_RETURN(const Digest digest, Digest::Parse(found->sha256()));
    ASSIGN_OR_RETURN(const std::string path, catalog_.blobs().BlobPath(digest));
    file_ = FileDescriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (file_.get() < 0) return absl::ErrnoToStatus(errno, absl::StrCat("opening ", path));
    struct stat info;
    if (fstat(file_.get(), &info) != 0 || info.st_size != found->size_bytes()) {
      return absl::DataLossError(absl::StrCat(request_.path(), ": ", info.st_size,
                                              " bytes in the store, published with ",
                                              found->size_bytes()));
    }
    size_bytes_ = found->size_bytes();
    offset_bytes_ = request_.offset_bytes();
    return absl::OkStatus();
  }

  ArtifactCatalog& catalog_;
  Executor& executor_;
  const ReadArtifactFileRequest request_;
  Mutex mutex_;
  FileDescriptor file_ ABSL_GUARDED_BY(mutex_);
  int64_t size_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t offset_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  ReadArtifactFileResponse message_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

grpc::ServerWriteReactor<ReadArtifactFileResponse>* StartReadFile(
    ArtifactCatalog& catalog, Executor& executor, const ReadArtifactFileRequest& request) {
  auto* reactor = new ReadFileReactor(catalog, executor, request);
  reactor->ScheduleStep();
  return reactor;
}

}  // namespace quern
