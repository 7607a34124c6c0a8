#ifndef QUERN_CORE_BASE_SCRATCH_FILE_H_
#define QUERN_CORE_BASE_SCRATCH_FILE_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstdint>
#include <string>

#include "core/base/file.h"

namespace quern {

// A file for what does not fit into memory: it has no name, so it is gone with its owner however
// that ends. Movable; thread-compatible.
class ScratchFile {
 public:
  // In `directory`, of `size_bytes` whose place on the disk is taken at once: a full disk is found
  // here, not in the middle of the work. RESOURCE_EXHAUSTED with the number of bytes.
  static absl::StatusOr<ScratchFile> Create(absl::string_view directory, int64_t size_bytes);

  // All of `bytes` from `offset` on, which must lie inside. DATA_LOSS or what the system says.
  absl::Status Read(int64_t offset, absl::Span<char> bytes) const;
  // The system is asked to bring it to the disk soon, so that memory fills with nothing to wait for
  // later.
  absl::Status Write(int64_t offset, absl::Span<const char> bytes);
  // Has the system read ahead what will be asked for next. Does not wait.
  void Prefetch(int64_t offset, int64_t size_bytes) const;

 private:
  ScratchFile(FileDescriptor fd, std::string directory)
      : fd_(std::move(fd)), directory_(std::move(directory)) {}

  FileDescriptor fd_;
  std::string directory_;  // for messages
};

}  // namespace quern

#endif  // QUERN_CORE_BASE_SCRATCH_FILE_H_
