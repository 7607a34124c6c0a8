#ifndef QUERN_SERVICES_ARTIFACT_CACHE_ARTIFACT_CACHE_H_
#define QUERN_SERVICES_ARTIFACT_CACHE_ARTIFACT_CACHE_H_

// Artifacts of quern-jobs on this machine's disk, by digest:
//
//   artifacts/<digest>/   complete: every file verified, durable, renamed here as a whole
//   partial/<digest>/     being pulled; what is there is used again after a restart
//   locks/<digest>        held (flock) by who pulls, so that one digest is pulled once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <grpcpp/channel.h>
#include <quern/artifact/v1/artifact_service.grpc.pb.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "core/base/sha256.h"

namespace quern {

// Thread-safe, and safe beside other processes on the same directory.
class ArtifactCache {
 public:
  // Makes the directories. `jobs` leads to quern-jobs' ArtifactService; null when this server has
  // none: then only what is in the cache can be had.
  static absl::StatusOr<std::unique_ptr<ArtifactCache>> Open(absl::string_view directory,
                                                             std::shared_ptr<grpc::Channel> jobs);

  // The directory of a complete artifact, or nothing.
  std::optional<std::string> Find(const Digest& digest) const;

  // The directory of a complete artifact; pulls what is missing. Blocks; `stop` ends it with
  // CANCELLED. NOT_FOUND, DATA_LOSS when what comes differs from the manifest or the manifest from
  // the digest, RESOURCE_EXHAUSTED when the disk has no room, UNAVAILABLE when quern-jobs cannot be
  // reached.
  absl::StatusOr<std::string> Fetch(const Digest& digest, std::stop_token stop);

  // Forgets an artifact whose files turned out to be damaged. Mappings of them stay valid.
  absl::Status Discard(const Digest& digest);

 private:
  ArtifactCache(absl::string_view directory, std::shared_ptr<grpc::Channel> jobs);
  absl::StatusOr<std::string> Pull(const Digest& digest, const std::string& complete,
                                   const std::stop_token& stop);
  absl::StatusOr<std::string> PullManifest(const Digest& digest, const std::stop_token& stop);
  absl::Status PullFile(const Digest& digest, absl::string_view path, int64_t size_bytes,
                        absl::string_view sha256, const std::string& directory,
                        const std::stop_token& stop);

  const std::string directory_;
  const std::unique_ptr<artifact::v1::ArtifactService::Stub> stub_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_ARTIFACT_CACHE_ARTIFACT_CACHE_H_
