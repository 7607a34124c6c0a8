#ifndef QUERN_CORE_STORE_LOCAL_ARTIFACT_STORE_H_
#define QUERN_CORE_STORE_LOCAL_ARTIFACT_STORE_H_

#include <absl/base/thread_annotations.h>

#include <memory>
#include <string>

#include "core/base/mutex.h"
#include "core/store/artifact_store.h"

namespace quern {

struct LocalArtifactStoreOptions {
  std::string directory;
  // Free space that uploads leave on the disk, so that the job store can still commit.
  int64_t reserve_bytes = int64_t{1} << 30;
};

// A directory of blobs, blobs/sha256/ab/<hex>. A blob is written to a temporary name beside its
// final one, so the rename never crosses a file system. One process at a time: the job store's
// lock on the data directory covers it.
class LocalArtifactStore final : public ArtifactStore {
 public:
  // Makes the directory when it is not there and removes what a crash left half-written.
  static absl::StatusOr<std::unique_ptr<LocalArtifactStore>> Open(
      const LocalArtifactStoreOptions& options);

  absl::StatusOr<std::unique_ptr<BlobWriter>> StartBlob(const Digest& digest,
                                                        int64_t size_bytes) override;
  bool HasBlob(const Digest& digest) const override;
  absl::StatusOr<std::string> BlobPath(const Digest& digest) const override;
  absl::Status DeleteBlob(const Digest& digest) override;
  absl::StatusOr<std::vector<Digest>> ListBlobs() const override;
  // Counted as blobs come and go, so asking costs nothing.
  absl::StatusOr<Usage> GetUsage() const override;

  // What lies in the store; held by the store and by its writers.
  struct Tally {
    Mutex mutex;  // held while a name comes or goes
    Usage usage ABSL_GUARDED_BY(mutex);
  };

 private:
  explicit LocalArtifactStore(const LocalArtifactStoreOptions& options);
  std::string DirectoryOf(const Digest& digest) const;
  std::string PathOf(const Digest& digest) const;

  const LocalArtifactStoreOptions options_;
  const std::string root_;  // <directory>/blobs/sha256
  const std::shared_ptr<Tally> tally_ = std::make_shared<Tally>();
};

}  // namespace quern

#endif  // QUERN_CORE_STORE_LOCAL_ARTIFACT_STORE_H_
