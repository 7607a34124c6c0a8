#include "core/store/local_artifact_store.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/status_macros.h"
#include "core/store/random_id.h"

namespace quern {
namespace {

// No digest starts with a dot.
constexpr absl::string_view kTemporaryPrefix = ".upload-";

bool IsDirectory(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// mkdir whose entry is durable: POSIX promises a new directory's name only after an fsync of its
// parent.
absl::Status EnsureDirectory(const std::string& path, const std::string& parent) {
  if (IsDirectory(path)) return absl::OkStatus();
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::ErrnoToStatus(errno, absl::StrCat("making ", path));
  }
  return SyncDirectory(parent);
}

class LocalBlobWriter final : public BlobWriter {
 public:
  LocalBlobWriter(FileDescriptor file, std::string temporary, std::string directory,
                  std::string path, Digest digest, int64_t size_bytes,
                  std::shared_ptr<LocalArtifactStore::Tally> tally)
      : file_(std::move(file)),
        temporary_(std::move(temporary)),
        directory_(std::move(directory)),
        path_(std::move(path)),
        digest_(std::move(digest)),
        size_bytes_(size_bytes),
        tally_(std::move(tally)) {}

  ~LocalBlobWriter() override {
    // What stays after a failure here is removed at the next start.
    if (!committed_ && unlink(temporary_.c_str()) != 0) {
      LOG(WARNING) << "upload not removed path=" << temporary_;
    }
  }

  absl::Status Append(absl::string_view bytes) override {
    if (static_cast<int64_t>(bytes.size()) > size_bytes_ - written_bytes_) {
      return absl::InvalidArgumentError(absl::StrCat(
          "blob ", digest_.hex(), ": more bytes than the ", size_bytes_, " announced"));
    }
    hash_.Update(bytes);
    written_bytes_ += static_cast<int64_t>(bytes.size());
    while (!bytes.empty()) {
      const ssize_t written = write(file_.get(), bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) {
        if (errno == ENOSPC || errno == EDQUOT) {
          return absl::ResourceExhaustedError(absl::StrCat(temporary_, ": the disk is full"));
        }
        return absl::ErrnoToStatus(errno, absl::StrCat("writing ", temporary_));
      }
      bytes.remove_prefix(static_cast<size_t>(written));
    }
    return absl::OkStatus();
  }

  absl::Status Commit() override {
    if (written_bytes_ != size_bytes_) {
      return absl::InvalidArgumentError(absl::StrCat("blob ", digest_.hex(), ": ", written_bytes_,
                                                     " bytes, announced were ", size_bytes_));
    }
    const std::string found = hash_.FinishHex();
    if (found != digest_.hex()) {
      return absl::InvalidArgumentError(
          absl::StrCat("blob ", digest_.hex(), ": the bytes have SHA-256 ", found));
    }
    if (fsync(file_.get()) != 0) {
      // Never tried again: the kernel may have dropped the pages and would report success.
      return absl::ErrnoToStatus(errno, absl::StrCat("fsync of ", temporary_));
    }
    RETURN_IF_ERROR(Rename());
    committed_ = true;
    return SyncDirectory(directory_);
  }

 private:
  absl::Status Rename() {
    MutexLock lock(&tally_->mutex);
    const bool is_new = access(path_.c_str(), F_OK) != 0;
    if (rename(temporary_.c_str(), path_.c_str()) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("renaming to ", path_));
    }
    if (is_new) {
      tally_->usage.bytes += size_bytes_;
      ++tally_->usage.blobs;
    }
    return absl::OkStatus();
  }

  const FileDescriptor file_;
  const std::string temporary_;
  const std::string directory_;
  const std::string path_;
  const Digest digest_;
  const int64_t size_bytes_;
  const std::shared_ptr<LocalArtifactStore::Tally> tally_;
  int64_t written_bytes_ = 0;
  Sha256 hash_;
  bool committed_ = false;
};

}  // namespace

LocalArtifactStore::LocalArtifactStore(const LocalArtifactStoreOptions& options)
    : options_(options), root_(options.directory + "/blobs/sha256") {}

std::string LocalArtifactStore::DirectoryOf(const Digest& digest) const {
  return absl::StrCat(root_, "/", digest.hex().substr(0, 2));
}

std::string LocalArtifactStore::PathOf(const Digest& digest) const {
  return absl::StrCat(DirectoryOf(digest), "/", digest.hex());
}

absl::StatusOr<std::unique_ptr<LocalArtifactStore>> LocalArtifactStore::Open(
    const LocalArtifactStoreOptions& options) {
  std::unique_ptr<LocalArtifactStore> store(new LocalArtifactStore(options));
  RETURN_IF_ERROR(CreateDirectories(store->root_));
  RETURN_IF_ERROR(SyncDirectory(options.directory + "/blobs"));
  RETURN_IF_ERROR(SyncDirectory(options.directory));
  ASSIGN_OR_RETURN(const std::vector<std::string> shards, ListDirectory(store->root_));
  for (const std::string& shard : shards) {
    const std::string directory = absl::StrCat(store->root_, "/", shard);
    if (!IsDirectory(directory)) continue;
    ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
    for (const std::string& name : names) {
      if (!absl::StartsWith(name, kTemporaryPrefix)) continue;
      const std::string path = absl::StrCat(directory, "/", name);
      if (unlink(path.c_str()) != 0) {
        return absl::ErrnoToStatus(errno, absl::StrCat("removing ", path));
      }
    }
  }
  ASSIGN_OR_RETURN(const std::vector<Digest> blobs, store->ListBlobs());
  MutexLock lock(&store->tally_->mutex);
  for (const Digest& digest : blobs) {
    struct stat info;
    if (stat(store->PathOf(digest).c_str(), &info) != 0) continue;
    store->tally_->usage.bytes += info.st_size;
    ++store->tally_->usage.blobs;
  }
  return store;
}

absl::StatusOr<std::unique_ptr<BlobWriter>> LocalArtifactStore::StartBlob(const Digest& digest,
                                                                          int64_t size_bytes) {
  if (size_bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("blob size ", size_bytes, " is negative"));
  }
  ASSIGN_OR_RETURN(const int64_t free_bytes, FreeDiskBytes(root_));
  if (free_bytes - options_.reserve_bytes < size_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the disk of ", root_, " has ", free_bytes, " bytes free; ", size_bytes,
                     " more would leave less than the reserve of ", options_.reserve_bytes));
  }
  const std::string directory = DirectoryOf(digest);
  RETURN_IF_ERROR(EnsureDirectory(directory, root_));
  std::string temporary = absl::StrCat(directory, "/", kTemporaryPrefix, RandomHex(8));
  FileDescriptor file(
      open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (file.get() < 0) return absl::ErrnoToStatus(errno, absl::StrCat("making ", temporary));
  return std::make_unique<LocalBlobWriter>(std::move(file), std::move(temporary), directory,
                                           PathOf(digest), digest, size_bytes, tally_);
}

bool LocalArtifactStore::HasBlob(const Digest& digest) const { return BlobPath(digest).ok(); }

absl::StatusOr<std::string> LocalArtifactStore::BlobPath(const Digest& digest) const {
  std::string path = PathOf(digest);
  struct stat info;
  if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::NotFoundError(absl::StrCat("no blob ", digest.hex()));
  }
  return path;
}

absl::Status LocalArtifactStore::DeleteBlob(const Digest& digest) {
  const std::string path = PathOf(digest);
  MutexLock lock(&tally_->mutex);
  struct stat info;
  if (stat(path.c_str(), &info) != 0 && errno == ENOENT) return absl::OkStatus();
  if (unlink(path.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("removing blob ", digest.hex()));
  }
  tally_->usage.bytes -= info.st_size;
  --tally_->usage.blobs;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Digest>> LocalArtifactStore::ListBlobs() const {
  std::vector<Digest> blobs;
  ASSIGN_OR_RETURN(const std::vector<std::string> shards, ListDirectory(root_));
  for (const std::string& shard : shards) {
    const std::string directory = absl::StrCat(root_, "/", shard);
    if (!IsDirectory(directory)) continue;
    ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
    for (const std::string& name : names) {
      // Uploads under way, and what is not ours.
      absl::StatusOr<Digest> digest = Digest::Parse(name);
      if (digest.ok()) blobs.push_back(*std::move(digest));
    }
  }
  return blobs;
}

absl::StatusOr<ArtifactStore::Usage> LocalArtifactStore::GetUsage() const {
  MutexLock lock(&tally_->mutex);
  return tally_->usage;
}

}  // namespace quern
