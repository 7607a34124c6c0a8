#include "core/base/scratch_file.h"

#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "core/base/status_macros.h"

namespace quern {
namespace {

absl::Status Errno(absl::string_view directory, absl::string_view what, int error) {
  const std::string message = absl::StrCat(directory, ": ", what, " a scratch file");
  // A limit on the size of files is a full disk to whoever writes one.
  if (error == EFBIG) {
    return absl::ResourceExhaustedError(
        absl::StrCat(message, ": ", absl::ErrnoToStatus(error, "").message()));
  }
  return absl::ErrnoToStatus(error, message);
}

}  // namespace

absl::StatusOr<ScratchFile> ScratchFile::Create(absl::string_view directory, int64_t size_bytes) {
  RETURN_IF_ERROR(CreateDirectories(directory));
  std::string name = absl::StrCat(directory, "/scratch.XXXXXX");
  FileDescriptor fd(mkostemp(name.data(), O_CLOEXEC));
  if (fd.get() < 0) return Errno(directory, "cannot make", errno);
  if (unlink(name.c_str()) != 0) return Errno(directory, "cannot unlink", errno);
  if (size_bytes > 0) {
    const int error = posix_fallocate(fd.get(), 0, size_bytes);
    if (error != 0) {
      return Errno(directory, absl::StrCat("cannot take ", size_bytes, " bytes of disk for"),
                   error);
    }
  }
  return ScratchFile(std::move(fd), std::string(directory));
}

absl::Status ScratchFile::Read(int64_t offset, absl::Span<char> bytes) const {
  while (!bytes.empty()) {
    const ssize_t count = pread(fd_.get(), bytes.data(), bytes.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Errno(directory_, "cannot read", errno);
    if (count == 0) {
      return absl::DataLossError(
          absl::StrCat(directory_, ": a scratch file ends at byte ", offset));
    }
    offset += count;
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::Status ScratchFile::Write(int64_t offset, absl::Span<const char> bytes) {
  const int64_t begin = offset;
  const auto size = static_cast<int64_t>(bytes.size());
  while (!bytes.empty()) {
    const ssize_t count = pwrite(fd_.get(), bytes.data(), bytes.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Errno(directory_, "cannot write", errno);
    offset += count;
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  // Only a hint: a disk's error shows when the bytes are read.
  sync_file_range(fd_.get(), begin, size, SYNC_FILE_RANGE_WRITE);
  return absl::OkStatus();
}

void ScratchFile::Prefetch(int64_t offset, int64_t size_bytes) const {
  posix_fadvise(fd_.get(), offset, size_bytes, POSIX_FADV_WILLNEED);
}

}  // namespace quern
