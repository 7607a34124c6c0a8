#include "services/jobs/stage_artifact_reactor.h"

#include <absl/base/thread_annotations.h>
#include <absl/strings/str_cat.h>

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/log.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "services/common/status.h"
#include "services/jobs/request_fields.h"

namespace quern {
namespace {

using worker::v1::StageArtifactRequest;
using worker::v1::StageArtifactResponse;

constexpr int kMaxFiles = 64;
constexpr int64_t kMaxFileBytes = int64_t{1} << 42;
constexpr size_t kMaxChunkBytes = 1 << 20;

// Takes the messages of one upload, one after the other.
class Upload {
 public:
  Upload(JobBoard& board, ArtifactCatalog& catalog, JobsMetrics& metrics)
      : board_(board), catalog_(catalog), metrics_(metrics) {}

  absl::Status Take(const StageArtifactRequest& message) {
    switch (message.payload_case()) {
      case StageArtifactRequest::kHeader:
        return TakeHeader(message.header());
      case StageArtifactRequest::kChunk:
        return TakeChunk(message.chunk());
      case StageArtifactRequest::PAYLOAD_NOT_SET:
        break;
    }
    return absl::InvalidArgumentError("payload: is required, a header or a chunk");
  }

  // After the last message: the artifact's id.
  absl::StatusOr<Digest> End() {
    if (files_.empty()) return absl::InvalidArgumentError("header: is required, none came");
    if (next_file_ < files_.size() || writer_ != nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("chunk: the stream ended before the last byte of '",
                       files_[next_file_ - (writer_ != nullptr ? 1 : 0)].path, "'"));
    }
    RETURN_IF_ERROR(board_.CheckLease(token_).status());
    return catalog_.CheckStaged(files_);
  }

 private:
  absl::Status TakeHeader(const StageArtifactRequest::Header& header) {
    if (!files_.empty()) return absl::InvalidArgumentError("header: came twice");
    if (header.token().empty()) return absl::InvalidArgumentError("header.token: is required");
    if (header.files().empty() || header.files_size() > kMaxFiles) {
      return absl::InvalidArgumentError(
          absl::StrCat("header.files: found ", header.files_size(), ", wanted 1 to ", kMaxFiles));
    }
    std::set<std::string> paths;
    std::vector<ArtifactFileInfo> files;
    for (int i = 0; i < header.files_size(); ++i) {
      const artifact::v1::ArtifactFile& file = header.files(i);
      const std::string field = absl::StrCat("header.files[", i, "]");
      RETURN_IF_ERROR(CheckArtifactPath(field + ".path", file.path()));
      if (!paths.insert(file.path()).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(field, ".path: '", file.path(), "' came twice"));
      }
      if (file.size_bytes() < 0 || file.size_bytes() > kMaxFileBytes) {
        return absl::InvalidArgumentError(absl::StrCat(
            field, ".size_bytes: found ", file.size_bytes(), ", wanted 0 to ", kMaxFileBytes));
      }
      absl::StatusOr<Digest> digest = Digest::Parse(file.sha256());
      if (!digest.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat(field, ".sha256: ", digest.status().message()));
      }
      files.push_back({file.path(), file.size_bytes(), file.sha256()});
    }
    RETURN_IF_ERROR(board_.CheckLease(header.token()).status());
    token_ = header.token();
    files_ = std::move(files);
    return OpenNext();
  }

  absl::Status TakeChunk(absl::string_view bytes) {
    if (files_.empty()) return absl::InvalidArgumentError("chunk: came before the header");
    if (bytes.size() > kMaxChunkBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("chunk: ", bytes.size(), " bytes, at most ", kMaxChunkBytes, " are taken"));
    }
    while (!bytes.empty()) {
      if (writer_ == nullptr) {
        return absl::InvalidArgumentError("chunk: more bytes than the files of the header have");
      }
      const absl::string_view part = bytes.substr(0, remaining_bytes_);
      RETURN_IF_ERROR(writer_->Append(part));
      remaining_bytes_ -= static_cast<int64_t>(part.size());
      bytes.remove_prefix(part.size());
      if (remaining_bytes_ == 0) RETURN_IF_ERROR(CloseAndOpenNext());
    }
    return absl::OkStatus();
  }

  // Starts the next file; empty ones are complete at once.
  absl::Status OpenNext() {
    while (next_file_ < files_.size()) {
      const ArtifactFileInfo& file = files_[next_file_++];
      ASSIGN_OR_RETURN(const Digest digest, Digest::Parse(file.sha256));
      ASSIGN_OR_RETURN(writer_, catalog_.blobs().StartBlob(digest, file.size_bytes));
      remaining_bytes_ = file.size_bytes;
      if (remaining_bytes_ > 0) return absl::OkStatus();
      RETURN_IF_ERROR(Close());
    }
    return absl::OkStatus();
  }

  absl::Status Close() {
    StoreTimer timer(metrics_, "commit_blob", "local");
    const std::unique_ptr<BlobWriter> writer = std::move(writer_);
    const absl::Status status = writer->Commit();
    if (absl::IsInvalidArgument(status)) metrics_.store_verify_failures_total.Increment();
    return status;
  }

  absl::Status CloseAndOpenNext() {
    RETURN_IF_ERROR(Close());
    return OpenNext();
  }

  JobBoard& board_;
  ArtifactCatalog& catalog_;
  JobsMetrics& metrics_;
  std::string token_;
  std::vector<ArtifactFileInfo> files_;
  size_t next_file_ = 0;
  std::unique_ptr<BlobWriter> writer_;
  int64_t remaining_bytes_ = 0;
};

// One read is in flight or one message is being taken, never both, so a slow disk holds back the
// sender.
class StageArtifactReactor final : public grpc::ServerReadReactor<StageArtifactRequest> {
 public:
  StageArtifactReactor(JobBoard& board, ArtifactCatalog& catalog, JobsMetrics& metrics,
                       Executor& executor, StageArtifactResponse* response)
      : upload_(board, catalog, metrics), executor_(executor), response_(response) {}

  void Start() {
    MutexLock lock(&mutex_);
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    // Whoever started the read has let go of all else by now, or will within microseconds.
    MutexLock lock(&mutex_);
    executor_.Post([this, ok] { ok ? Take() : End(); });
  }

  void OnDone() override {
    // The last step may still hold the lock: it called Finish.
    { MutexLock lock(&mutex_); }
    delete this;
  }

 private:
  void Take() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    const absl::Status status = upload_.Take(message_);
    if (status.ok()) {
      StartRead(&message_);
    } else {
      FinishWith(status);
    }
  }

  void End() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    const absl::StatusOr<Digest> id = upload_.End();
    if (id.ok()) response_->set_artifact(ArtifactName(id->hex()));
    FinishWith(id.status());
  }

  void FinishWith(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!status.ok()) LOG(WARNING) << "artifact not staged: " << status.message();
    Finish(ToGrpcStatus(status));
  }

  Mutex mutex_;
  Upload upload_ ABSL_GUARDED_BY(mutex_);
  StageArtifactRequest message_ ABSL_GUARDED_BY(mutex_);
  Executor& executor_;
  StageArtifactResponse* const response_;
};

}  // namespace

grpc::ServerReadReactor<StageArtifactRequest>* StartStageArtifact(JobBoard& board,
                                                                  ArtifactCatalog& catalog,
                                                                  JobsMetrics& metrics,
                                                                  Executor& executor,
                                                                  StageArtifactResponse* response) {
  auto* reactor = new StageArtifactReactor(board, catalog, metrics, executor, response);
  reactor->Start();
  return reactor;
}

}  // namespace quern
