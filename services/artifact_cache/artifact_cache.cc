#include "services/artifact_cache/artifact_cache.h"

#include <absl/functional/function_ref.h>
#include <absl/strings/str_cat.h>
#include <absl/time/time.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/status_macros.h"
#include "services/common/status.h"

namespace quern {
namespace {

constexpr int64_t kMaxManifestBytes = int64_t{16} << 20;
constexpr int64_t kMaxArtifactBytes = int64_t{1} << 50;
// Attempts in a row that bring no byte, before a pull gives up.
constexpr int kMaxIdleAttempts = 5;
constexpr absl::Duration kFirstRetryDelay = absl::Milliseconds(200);

bool IsDirectory(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// The size of a regular file, or nothing.
std::optional<int64_t> FileSize(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
  return info.st_size;
}

// Holds the lock until destroyed. A process that dies lets go of it.
absl::StatusOr<FileDescriptor> LockFile(const std::string& path) {
  FileDescriptor file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (file.get() < 0) return absl::ErrnoToStatus(errno, path);
  while (flock(file.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return absl::ErrnoToStatus(errno, path);
  }
  return file;
}

absl::Status WriteAll(int fd, absl::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, path);
    bytes.remove_prefix(written);
  }
  return absl::OkStatus();
}

// Feeds what `fd` holds from its start to `hash`.
absl::Status HashExisting(int fd, Sha256& hash, const std::string& path) {
  std::vector<char> buffer(1 << 20);
  while (true) {
    const ssize_t count = read(fd, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, path);
    if (count == 0) return absl::OkStatus();
    hash.Update(absl::string_view(buffer.data(), count));
  }
}

absl::Status CheckRoom(const std::string& directory, int64_t needed_bytes) {
  ASSIGN_OR_RETURN(const int64_t free_bytes, FreeDiskBytes(directory));
  if (free_bytes >= needed_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(directory, ": the artifact needs ", needed_bytes,
                                                   " bytes, the disk has ", free_bytes,
                                                   "; free some or set --cache-directory"));
}

// False when `stop` came during the wait.
bool WaitFor(absl::Duration duration, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock<std::mutex> lock(mutex);
  never.wait_for(lock, stop, absl::ToChronoMilliseconds(duration), [] { return false; });
  return !stop.stop_requested();
}

using ChunkFn = absl::FunctionRef<absl::Status(absl::string_view)>;

// Streams one file from `offset` on. An error of `on_chunk` ends the call and is returned.
absl::Status StreamFile(artifact::v1::ArtifactService::Stub& stub, const Digest& digest,
                        absl::string_view path, int64_t offset, const std::stop_token& stop,
                        ChunkFn on_chunk) {
  grpc::ClientContext context;
  std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  artifact::v1::ReadArtifactFileRequest request;
  request.set_name(absl::StrCat("artifacts/", digest.hex()));
  request.set_path(std::string(path));
  request.set_offset_bytes(offset);
  const auto reader = stub.ReadArtifactFile(&context, request);
  artifact::v1::ReadArtifactFileResponse response;
  while (reader->Read(&response)) {
    if (absl::Status status = on_chunk(response.chunk()); !status.ok()) {
      context.TryCancel();
      const grpc::Status ended = reader->Finish();
      return status;
    }
  }
  const absl::Status status = FromGrpcStatus(reader->Finish());
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat("artifacts/", digest.hex(), " ", path,
                                   ": reading it from quern-jobs: ", status.message()));
}

// One file on its way: what an earlier pull left is kept, hashed and continued.
class PartialFile {
 public:
  static absl::StatusOr<PartialFile> Open(std::string path, int64_t size_bytes) {
    FileDescriptor fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (fd.get() < 0) return absl::ErrnoToStatus(errno, path);
    PartialFile file(std::move(path), std::move(fd), size_bytes);
    const off_t there = lseek(file.fd_.get(), 0, SEEK_END);
    if (there < 0) return absl::ErrnoToStatus(errno, file.path_);
    if (there > size_bytes && ftruncate(file.fd_.get(), 0) != 0) {
      return absl::ErrnoToStatus(errno, file.path_);
    }
    if (lseek(file.fd_.get(), 0, SEEK_SET) < 0) return absl::ErrnoToStatus(errno, file.path_);
    RETURN_IF_ERROR(HashExisting(file.fd_.get(), file.hash_, file.path_));
    file.offset_ = there > size_bytes ? 0 : there;
    return file;
  }

  int64_t offset() const { return offset_; }
  bool full() const { return offset_ == size_bytes_; }

  absl::Status Append(absl::string_view bytes) {
    if (static_cast<int64_t>(bytes.size()) > size_bytes_ - offset_) {
      return absl::DataLossError(
          absl::StrCat(path_, ": more than the ", size_bytes_, " bytes of the manifest came"));
    }
    RETURN_IF_ERROR(WriteAll(fd_.get(), bytes, path_));
    hash_.Update(bytes);
    offset_ += static_cast<int64_t>(bytes.size());
    return absl::OkStatus();
  }

  // Verifies, makes durable and moves to `path`.
  absl::Status Finish(const std::string& path, absl::string_view sha256) {
    if (const std::string found = hash_.FinishHex(); found != sha256) {
      unlink(path_.c_str());
      return absl::DataLossError(
          absl::StrCat(path, ": SHA-256 is ", found, ", the manifest says ", sha256));
    }
    if (fsync(fd_.get()) != 0) return absl::ErrnoToStatus(errno, path_);
    if (rename(path_.c_str(), path.c_str()) != 0) return absl::ErrnoToStatus(errno, path);
    return absl::OkStatus();
  }

 private:
  PartialFile(std::string path, FileDescriptor fd, int64_t size_bytes)
      : path_(std::move(path)), fd_(std::move(fd)), size_bytes_(size_bytes) {}
  std::string path_;
  FileDescriptor fd_;
  int64_t size_bytes_;
  int64_t offset_ = 0;
  Sha256 hash_;
};

std::string ParentOf(const std::string& path) { return path.substr(0, path.rfind('/')); }

}  // namespace

ArtifactCache::ArtifactCache(absl::string_view directory, std::shared_ptr<grpc::Channel> jobs)
    : directory_(directory),
      stub_(jobs == nullptr ? nullptr : artifact::v1::ArtifactService::NewStub(std::move(jobs))) {}

absl::StatusOr<std::unique_ptr<ArtifactCache>> ArtifactCache::Open(
    absl::string_view directory, std::shared_ptr<grpc::Channel> jobs) {
  for (absl::string_view name : {"artifacts", "partial", "locks"}) {
    RETURN_IF_ERROR(CreateDirectories(absl::StrCat(directory, "/", name)));
  }
  return std::unique_ptr<ArtifactCache>(new ArtifactCache(directory, std::move(jobs)));
}

std::optional<std::string> ArtifactCache::Find(const Digest& digest) const {
  std::string complete = absl::StrCat(directory_, "/artifacts/", digest.hex());
  if (!IsDirectory(complete)) return std::nullopt;
  return complete;
}

absl::StatusOr<std::string> ArtifactCache::Fetch(const Digest& digest, std::stop_token stop) {
  const std::string complete = absl::StrCat(directory_, "/artifacts/", digest.hex());
  if (IsDirectory(complete)) return complete;
  if (stub_ == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("artifacts/", digest.hex(),
                     " is not in the cache, and this server was started without --jobs"));
  }
  ASSIGN_OR_RETURN(const FileDescriptor lock,
                   LockFile(absl::StrCat(directory_, "/locks/", digest.hex())));
  // Another may have pulled it while this one waited for the lock.
  if (IsDirectory(complete)) return complete;
  absl::StatusOr<std::string> result = Pull(digest, complete, stop);
  if (!result.ok() && stop.stop_requested()) return absl::CancelledError("the load was cancelled");
  return result;
}

absl::Status ArtifactCache::Discard(const Digest& digest) {
  ASSIGN_OR_RETURN(const FileDescriptor lock,
                   LockFile(absl::StrCat(directory_, "/locks/", digest.hex())));
  RETURN_IF_ERROR(RemoveTree(absl::StrCat(directory_, "/partial/", digest.hex())));
  return RemoveTree(absl::StrCat(directory_, "/artifacts/", digest.hex()));
}

absl::StatusOr<std::string> ArtifactCache::Pull(const Digest& digest, const std::string& complete,
                                                const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const std::string bytes, PullManifest(digest, stop));
  ASSIGN_OR_RETURN(
      const Manifest manifest,
      ParseManifest(bytes, absl::StrCat("artifacts/", digest.hex(), "/manifest.json")));
  int64_t total_bytes = 0;
  for (const ArtifactFileInfo& file : manifest.files) {
    // The manifest came from outside: its numbers must not overflow ours.
    if (file.size_bytes > kMaxArtifactBytes - total_bytes) {
      return absl::DataLossError(absl::StrCat(
          "artifacts/", digest.hex(), ": the manifest names over ", kMaxArtifactBytes, " bytes"));
    }
    total_bytes += file.size_bytes;
  }

  const std::string partial = absl::StrCat(directory_, "/partial/", digest.hex());
  RETURN_IF_ERROR(CreateDirectories(partial));
  RETURN_IF_ERROR(CheckRoom(partial, total_bytes));
  std::set<std::string> directories = {partial};
  for (const ArtifactFileInfo& file : manifest.files) {
    directories.insert(ParentOf(absl::StrCat(partial, "/", file.path)));
    RETURN_IF_ERROR(PullFile(digest, file.path, file.size_bytes, file.sha256, partial, stop));
  }
  RETURN_IF_ERROR(WriteFileDurably(absl::StrCat(partial, "/", kManifestName), bytes));
  for (const std::string& directory : directories) RETURN_IF_ERROR(SyncDirectory(directory));
  if (rename(partial.c_str(), complete.c_str()) != 0) return absl::ErrnoToStatus(errno, complete);
  RETURN_IF_ERROR(SyncDirectory(ParentOf(complete)));
  LOG(INFO) << "artifact pulled artifact=" << digest.hex() << " bytes=" << total_bytes;
  return complete;
}

absl::StatusOr<std::string> ArtifactCache::PullManifest(const Digest& digest,
                                                        const std::stop_token& stop) {
  std::string bytes;
  RETURN_IF_ERROR(StreamFile(*stub_, digest, kManifestName, 0, stop, [&](absl::string_view chunk) {
    if (static_cast<int64_t>(bytes.size() + chunk.size()) > kMaxManifestBytes) {
      return absl::DataLossError(absl::StrCat(
          "artifacts/", digest.hex(), ": the manifest has over ", kMaxManifestBytes, " bytes"));
    }
    bytes.append(chunk.data(), chunk.size());
    return absl::OkStatus();
  }));
  if (const std::string found = Sha256Hex(bytes); found != digest.hex()) {
    return absl::DataLossError(absl::StrCat("artifacts/", digest.hex(),
                                            ": the SHA-256 of the manifest that came is ", found));
  }
  return bytes;
}

absl::Status ArtifactCache::PullFile(const Digest& digest, absl::string_view path,
                                     int64_t size_bytes, absl::string_view sha256,
                                     const std::string& directory, const std::stop_token& stop) {
  const std::string target = absl::StrCat(directory, "/", path);
  // Only Finish makes this name, after its bytes are durable; LoadArtifact verifies them again.
  if (FileSize(target) == size_bytes) return absl::OkStatus();
  RETURN_IF_ERROR(CreateDirectories(ParentOf(target)));
  ASSIGN_OR_RETURN(PartialFile file, PartialFile::Open(target + ".part", size_bytes));
  absl::Duration delay = kFirstRetryDelay;
  for (int idle_attempts = 0; !file.full();) {
    const int64_t before = file.offset();
    const absl::Status status =
        StreamFile(*stub_, digest, path, before, stop,
                   [&file](absl::string_view chunk) { return file.Append(chunk); });
    if (status.ok() && file.full()) break;
    if (status.ok()) {
      return absl::DataLossError(
          absl::StrCat(target, ": ", file.offset(), " bytes came, the manifest says ", size_bytes));
    }
    if (!absl::IsUnavailable(status) || stop.stop_requested()) return status;
    idle_attempts = file.offset() > before ? 0 : idle_attempts + 1;
    if (idle_attempts >= kMaxIdleAttempts) return status;
    delay = idle_attempts == 0 ? kFirstRetryDelay : delay * 2;
    if (!WaitFor(delay, stop)) return status;
  }
  return file.Finish(target, sha256);
}

}  // namespace quern
