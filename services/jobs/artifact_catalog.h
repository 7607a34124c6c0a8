#ifndef QUERN_SERVICES_JOBS_ARTIFACT_CATALOG_H_
#define QUERN_SERVICES_JOBS_ARTIFACT_CATALOG_H_

#include <absl/base/thread_annotations.h>
#include <absl/functional/function_ref.h>
#include <absl/status/statusor.h>
#include <quern/artifact/v1/artifact_service.pb.h>

#include <set>
#include <string>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/base/mutex.h"
#include "core/base/sha256.h"
#include "core/store/artifact_store.h"
#include "services/jobs/job_board.h"
#include "services/jobs/metrics.h"

namespace quern {

// Published artifacts (rows of the job store) and their blobs. Thread-safe; every function may wait
// for the disk.
class ArtifactCatalog {
 public:
  // All must outlive the catalog.
  ArtifactCatalog(ArtifactStore& blobs, JobBoard& board, JobsMetrics& metrics)
      : blobs_(blobs), board_(board), metrics_(metrics) {}

  ArtifactStore& blobs() { return blobs_; }

  // Checks blobs that were just staged: the manifest is well formed and names exactly `files`
  // beside itself. Returns the artifact's id. INVALID_ARGUMENT.
  absl::StatusOr<Digest> CheckStaged(const std::vector<ArtifactFileInfo>& files);

  // Ends the job of `token` with `artifact`, whose blobs must all be staged and whose base, if it
  // is a scale delta, must be published (FAILED_PRECONDITION), and publishes it, in one
  // transaction. Otherwise as JobStore::Complete.
  absl::StatusOr<JobRecord> Publish(const std::string& token, const Digest& artifact,
                                    const std::string& evaluation) ABSL_LOCKS_EXCLUDED(mutex_);

  // NOT_FOUND.
  absl::StatusOr<artifact::v1::Artifact> Get(const Digest& id);
  static absl::StatusOr<artifact::v1::Artifact> FromRecord(const JobStore::ArtifactRecord& record);

  // Of a published artifact. NOT_FOUND.
  absl::StatusOr<Manifest> GetManifest(const Digest& id);

  // Removes the row, then the blobs that no other artifact has. NOT_FOUND; FAILED_PRECONDITION
  // while it is the base of a scale delta.
  absl::Status Delete(const Digest& id) ABSL_LOCKS_EXCLUDED(mutex_);

  // Removes blobs that no published artifact names. For start-up: a worker whose staged blobs go is
  // told by Publish and stages them again.
  absl::Status CollectGarbage() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::StatusOr<Manifest> ReadManifest(const Digest& id);
  absl::StatusOr<artifact::v1::Artifact> Describe(const Digest& id, const std::string& job);
  // OK when `manifest` names no base, or a whole model that is published. FAILED_PRECONDITION.
  absl::Status CheckBase(const Manifest& manifest);
  // Published artifacts, until `visit` returns an error.
  absl::Status ForEachArtifact(
      absl::FunctionRef<absl::Status(const artifact::v1::Artifact& artifact)> visit);
  absl::StatusOr<std::set<std::string>> ReferencedBlobs();

  ArtifactStore& blobs_;
  JobBoard& board_;
  JobsMetrics& metrics_;
  // Held while blobs are checked and published, and while they are removed.
  Mutex mutex_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_ARTIFACT_CATALOG_H_
