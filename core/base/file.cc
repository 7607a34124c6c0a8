#include "core/base/file.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/base/status_macros.h"

namespace quern {
namespace {

absl::Status Errno(absl::string_view what) { return absl::ErrnoToStatus(errno, what); }

// Opens without blocking on a FIFO; the result is checked to be a regular file.
absl::StatusOr<FileDescriptor> OpenRegular(absl::string_view path, size_t* size_bytes) {
  FileDescriptor fd(open(std::string(path).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return Errno(path);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return Errno(path);
  if (!S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": not a regular file"));
  }
  *size_bytes = static_cast<size_t>(info.st_size);
  return fd;
}

absl::Status WriteAll(int fd, absl::string_view bytes, absl::string_view path) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Errno(absl::StrCat(path, ": write"));
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

std::string ParentOf(absl::string_view path) {
  const std::string parent = std::filesystem::path(std::string(path)).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

FileDescriptor::FileDescriptor(FileDescriptor&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)) {}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<MappedFile> MappedFile::Open(absl::string_view path) {
  size_t size_bytes = 0;
  ASSIGN_OR_RETURN(FileDescriptor fd, OpenRegular(path, &size_bytes));
  if (size_bytes == 0) return MappedFile(nullptr, 0);
  void* data = mmap(nullptr, size_bytes, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) return Errno(absl::StrCat(path, ": mmap"));
  return MappedFile(static_cast<const uint8_t*>(data), size_bytes);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_bytes_);
}

absl::StatusOr<std::string> ReadFile(absl::string_view path, size_t max_bytes) {
  size_t size_bytes = 0;
  ASSIGN_OR_RETURN(FileDescriptor fd, OpenRegular(path, &size_bytes));
  if (size_bytes > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": ", size_bytes, " bytes, at most ", max_bytes, " are read"));
  }
  std::string bytes(size_bytes, '\0');
  size_t filled = 0;
  while (filled < bytes.size()) {
    const ssize_t got = read(fd.get(), bytes.data() + filled, bytes.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Errno(absl::StrCat(path, ": read"));
    if (got == 0) break;  // The file shrank since fstat.
    filled += static_cast<size_t>(got);
  }
  bytes.resize(filled);
  return bytes;
}

absl::StatusOr<DurableFile> DurableFile::Create(absl::string_view path) {
  std::string temporary = absl::StrCat(path, ".tmp.XXXXXX");
  FileDescriptor fd(mkostemp(temporary.data(), O_CLOEXEC));
  if (fd.get() < 0) return Errno(temporary);
  return DurableFile(std::move(fd), std::string(path), std::move(temporary));
}

DurableFile::~DurableFile() {
  if (fd_.get() >= 0 && !temporary_.empty()) unlink(temporary_.c_str());
}

absl::Status DurableFile::Append(absl::string_view bytes) {
  return WriteAll(fd_.get(), bytes, temporary_);
}

absl::Status DurableFile::Commit() {
  if (fsync(fd_.get()) != 0) return Errno(absl::StrCat(temporary_, ": fsync"));
  if (rename(temporary_.c_str(), path_.c_str()) != 0) {
    return Errno(absl::StrCat("rename to ", path_));
  }
  temporary_.clear();
  return SyncDirectory(ParentOf(path_));
}

absl::Status WriteFileDurably(absl::string_view path, absl::string_view bytes) {
  ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(path));
  RETURN_IF_ERROR(file.Append(bytes));
  return file.Commit();
}

absl::Status SyncDirectory(absl::string_view path) {
  FileDescriptor fd(open(std::string(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return Errno(path);
  if (fsync(fd.get()) != 0) return Errno(absl::StrCat(path, ": fsync"));
  return absl::OkStatus();
}

absl::Status SyncFile(absl::string_view path) {
  FileDescriptor fd(open(std::string(path).c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return Errno(path);
  if (fsync(fd.get()) != 0) return Errno(absl::StrCat(path, ": fsync"));
  return absl::OkStatus();
}

absl::Status CreateDirectories(absl::string_view path) {
  if (path.empty()) return absl::InvalidArgumentError("CreateDirectories: empty path");
  std::string made;
  if (path[0] == '/') made = "/";
  for (absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    if (!made.empty() && made.back() != '/') made += '/';
    absl::StrAppend(&made, part);
    if (mkdir(made.c_str(), 0700) == 0) {
      RETURN_IF_ERROR(SyncDirectory(ParentOf(made)));
    } else if (errno != EEXIST) {
      return Errno(absl::StrCat(made, ": mkdir"));
    }
  }
  struct stat info;
  if (stat(made.c_str(), &info) != 0) return Errno(made);
  if (!S_ISDIR(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(made, ": not a directory"));
  }
  return absl::OkStatus();
}

absl::Status RemoveTree(absl::string_view path) {
  std::error_code error;
  std::filesystem::remove_all(std::string(path), error);
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat(path, ": remove"));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ListDirectory(absl::string_view path) {
  std::error_code error;
  std::filesystem::directory_iterator it(std::string(path), error);
  if (error) return absl::ErrnoToStatus(error.value(), path);
  std::vector<std::string> names;
  for (; it != std::filesystem::directory_iterator(); it.increment(error)) {
    if (error) return absl::ErrnoToStatus(error.value(), path);
    names.push_back(it->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<std::string> ResolveBeneath(absl::string_view root, absl::string_view path) {
  const std::string shown = absl::CEscape(path.substr(0, 200));
  if (path.empty()) return absl::InvalidArgumentError("path: empty, wanted a path below the root");
  if (path.size() >= PATH_MAX || path.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("path \"", shown, "\": too long or has a NUL"));
  }
  if (path[0] == '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("path \"", shown, "\": absolute, wanted one relative to the service's root"));
  }
  for (absl::string_view part : absl::StrSplit(path, '/')) {
    if (part == "..") {
      return absl::InvalidArgumentError(absl::StrCat("path \"", shown, "\": '..' is not allowed"));
    }
  }
  FileDescriptor directory(open(std::string(root).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() < 0) return Errno(absl::StrCat("root ", root));
  struct open_how how = {};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  FileDescriptor fd(static_cast<int>(
      syscall(SYS_openat2, directory.get(), std::string(path).c_str(), &how, sizeof(how))));
  if (fd.get() < 0) {
    if (errno == EXDEV) {
      return absl::PermissionDeniedError(
          absl::StrCat("path \"", shown, "\": leads outside the service's root"));
    }
    return Errno(absl::StrCat("path \"", shown, "\""));
  }
  // The real path of what was opened, so that links inside the root are followed exactly once.
  std::string real(PATH_MAX, '\0');
  const ssize_t length =
      readlink(absl::StrCat("/proc/self/fd/", fd.get()).c_str(), real.data(), real.size());
  if (length <= 0 || static_cast<size_t>(length) == real.size()) {
    return Errno(absl::StrCat("path \"", shown, "\": readlink"));
  }
  real.resize(static_cast<size_t>(length));
  return real;
}

}  // namespace quern
