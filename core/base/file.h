#ifndef QUERN_CORE_BASE_FILE_H_
#define QUERN_CORE_BASE_FILE_H_

// Files: bounded reading, mapping, durable writing, and access confined to a root.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace quern {

// An open file descriptor, closed when destroyed. Movable.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept;
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor();
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

// A regular file mapped read-only. The mapping stays valid until destroyed; bytes change only if
// another process writes the file. Movable; safe to read from many threads.
class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED, or FAILED_PRECONDITION when it is no regular file.
  static absl::StatusOr<MappedFile> Open(absl::string_view path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const uint8_t* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }
  absl::string_view bytes() const {
    return absl::string_view(reinterpret_cast<const char*>(data_), size_bytes_);
  }

 private:
  MappedFile(const uint8_t* data, size_t size_bytes) : data_(data), size_bytes_(size_bytes) {}
  const uint8_t* data_ = nullptr;
  size_t size_bytes_ = 0;
};

// Reads a regular file of at most `max_bytes`; RESOURCE_EXHAUSTED when it is larger.
absl::StatusOr<std::string> ReadFile(absl::string_view path, size_t max_bytes);

// A file that is written in pieces and takes its name when it is whole: a temporary file in the
// same directory, fsync, rename, fsync of the directory. Destroyed before Commit it leaves nothing,
// and what was there under the name before. Movable.
class DurableFile {
 public:
  static absl::StatusOr<DurableFile> Create(absl::string_view path);

  DurableFile(DurableFile&& other) noexcept = default;
  DurableFile& operator=(DurableFile&& other) = delete;
  ~DurableFile();

  // RESOURCE_EXHAUSTED when the disk is full.
  absl::Status Append(absl::string_view bytes);
  // To be called once; nothing can be appended afterwards.
  absl::Status Commit();

 private:
  DurableFile(FileDescriptor fd, std::string path, std::string temporary)
      : fd_(std::move(fd)), path_(std::move(path)), temporary_(std::move(temporary)) {}

  FileDescriptor fd_;
  std::string path_;
  std::string temporary_;  // empty once committed
};

// Makes `path` hold `bytes` after any crash from then on, as a DurableFile does. An error leaves
// the old content.
absl::Status WriteFileDurably(absl::string_view path, absl::string_view bytes);

// fsync of a directory, so that names made or renamed in it survive a power cut.
absl::Status SyncDirectory(absl::string_view path);

// Flushes the file's bytes to disk.
absl::Status SyncFile(absl::string_view path);

// mkdir -p with mode 0700 for what is made.
absl::Status CreateDirectories(absl::string_view path);

// Removes a directory tree; OK when it is not there.
absl::Status RemoveTree(absl::string_view path);

// Names (not paths) in a directory, sorted; "." and ".." left out.
absl::StatusOr<std::vector<std::string>> ListDirectory(absl::string_view path);

// Resolves a path that came from outside against a root directory, with openat2
// RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS, and returns the real absolute path of the file or
// directory found. INVALID_ARGUMENT when `path` is empty, absolute, has a NUL or a '..' segment;
// PERMISSION_DENIED when a link leads outside the root; NOT_FOUND.
absl::StatusOr<std::string> ResolveBeneath(absl::string_view root, absl::string_view path);

}  // namespace quern

#endif  // QUERN_CORE_BASE_FILE_H_
