#ifndef QUERN_CORE_STORE_ARTIFACT_STORE_H_
#define QUERN_CORE_STORE_ARTIFACT_STORE_H_

// Content-addressed files: blobs named by their SHA-256. An artifact is a set of blobs that its
// manifest names; whether it is published is a row of the job store.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/base/sha256.h"

namespace quern {

// Receives one blob. Dropping it without Commit removes what was written.
class BlobWriter {
 public:
  virtual ~BlobWriter() = default;
  virtual absl::Status Append(absl::string_view bytes) = 0;
  // Makes the blob durable under its digest (write, fsync, rename, fsync of the directory).
  // INVALID_ARGUMENT when size or digest differ from what was announced.
  virtual absl::Status Commit() = 0;
};

// Thread-safe.
class ArtifactStore {
 public:
  virtual ~ArtifactStore() = default;
  // RESOURCE_EXHAUSTED when the disk would fall below its reserve.
  virtual absl::StatusOr<std::unique_ptr<BlobWriter>> StartBlob(const Digest& digest,
                                                                int64_t size_bytes) = 0;
  virtual bool HasBlob(const Digest& digest) const = 0;
  // Absolute path of a complete blob; NOT_FOUND.
  virtual absl::StatusOr<std::string> BlobPath(const Digest& digest) const = 0;
  // OK when it is not there.
  virtual absl::Status DeleteBlob(const Digest& digest) = 0;
  virtual absl::StatusOr<std::vector<Digest>> ListBlobs() const = 0;
  // Bytes of all blobs and how many there are.
  struct Usage {
    int64_t bytes = 0;
    int64_t blobs = 0;
  };
  virtual absl::StatusOr<Usage> GetUsage() const = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_STORE_ARTIFACT_STORE_H_
