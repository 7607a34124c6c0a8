#include "services/jobs/artifact_catalog.h"

#include <absl/strings/str_cat.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "services/jobs/job_messages.h"
#include "services/jobs/request_fields.h"

namespace quern {
namespace {

constexpr size_t kMaxManifestBytes = 4 << 20;

int64_t FileSize(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 ? static_cast<int64_t>(info.st_size) : -1;
}

}  // namespace

absl::StatusOr<Manifest> ArtifactCatalog::ReadManifest(const Digest& id) {
  ASSIGN_OR_RETURN(const std::string path, blobs_.BlobPath(id));
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kMaxManifestBytes));
  return ParseManifest(bytes, absl::StrCat("manifest ", id.hex()));
}

absl::StatusOr<Digest> ArtifactCatalog::CheckStaged(const std::vector<ArtifactFileInfo>& files) {
  const auto found = std::find_if(files.begin(), files.end(), [](const ArtifactFileInfo& file) {
    return file.path == kManifestName;
  });
  if (found == files.end()) {
    return absl::InvalidArgumentError(absl::StrCat("header.files: no ", kManifestName));
  }
  ASSIGN_OR_RETURN(Digest id, Digest::Parse(found->sha256));
  absl::StatusOr<Manifest> manifest = ReadManifest(id);
  if (!manifest.ok()) {
    metrics_.store_verify_failures_total.Increment();
    return absl::InvalidArgumentError(
        absl::StrCat("staged manifest: ", manifest.status().message()));
  }
  std::vector<ArtifactFileInfo> staged = files;
  staged.erase(staged.begin() + (found - files.begin()));
  const auto by_path = [](const ArtifactFileInfo& a, const ArtifactFileInfo& b) {
    return a.path < b.path;
  };
  std::sort(staged.begin(), staged.end(), by_path);
  std::sort(manifest->files.begin(), manifest->files.end(), by_path);
  if (staged != manifest->files) {
    metrics_.store_verify_failures_total.Increment();
    return absl::InvalidArgumentError(
        absl::StrCat("header.files: ", staged.size(), " files beside the manifest, which names ",
                     manifest->files.size(), "; paths, sizes and digests must be the same"));
  }
  return id;
}

absl::StatusOr<artifact::v1::Artifact> ArtifactCatalog::Describe(const Digest& id,
                                                                 const std::string& job) {
  const auto not_staged = [&](absl::string_view what) {
    return absl::FailedPreconditionError(
        absl::StrCat("artifact ", id.hex(), " is not staged: ", what, "; stage it (again) first"));
  };
  absl::StatusOr<Manifest> manifest = ReadManifest(id);
  if (!manifest.ok()) return not_staged(manifest.status().message());
  RETURN_IF_ERROR(CheckBase(*manifest));
  artifact::v1::Artifact artifact;
  artifact.set_name(ArtifactName(id.hex()));
  std::vector<ArtifactFileInfo> files = manifest->files;
  ASSIGN_OR_RETURN(const std::string manifest_path, blobs_.BlobPath(id));
  files.push_back({std::string(kManifestName), FileSize(manifest_path), id.hex()});
  std::sort(files.begin(), files.end(),
            [](const ArtifactFileInfo& a, const ArtifactFileInfo& b) { return a.path < b.path; });
  int64_t size_bytes = 0;
  for (const ArtifactFileInfo& info : files) {
    ASSIGN_OR_RETURN(const Digest digest, Digest::Parse(info.sha256));
    absl::StatusOr<std::string> path = blobs_.BlobPath(digest);
    if (!path.ok() || FileSize(*path) != info.size_bytes) return not_staged(info.path);
    artifact::v1::ArtifactFile& file = *artifact.add_files();
    file.set_path(info.path);
    file.set_size_bytes(info.size_bytes);
    file.set_sha256(info.sha256);
    size_bytes += info.size_bytes;
  }
  artifact.set_size_bytes(size_bytes);
  artifact.mutable_format()->set_bits(manifest->format.bits);
  artifact.mutable_format()->set_group_size(manifest->format.group_size);
  artifact.mutable_format()->set_symmetric(manifest->format.symmetric);
  artifact.mutable_format()->set_embedding_bits(manifest->format.embedding_bits);
  artifact.mutable_matrix_bits()->insert(manifest->format.matrix_bits.begin(),
                                         manifest->format.matrix_bits.end());
  artifact.set_mean_bits(MeanBits(manifest->format, manifest->config));
  artifact.mutable_lineage()->set_job(JobName(job));
  artifact.mutable_lineage()->set_checkpoint_digest(manifest->lineage.checkpoint_digest);
  artifact.mutable_lineage()->set_calibration_digest(manifest->lineage.calibration_digest);
  artifact.mutable_lineage()->set_quern_version(manifest->lineage.quern_version);
  if (!manifest->base.empty()) artifact.mutable_lineage()->set_base(ArtifactName(manifest->base));
  return artifact;
}

absl::Status ArtifactCatalog::CheckBase(const Manifest& manifest) {
  if (manifest.base.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Digest digest, Digest::Parse(manifest.base));
  const absl::StatusOr<artifact::v1::Artifact> base = Get(digest);
  if (absl::IsNotFound(base.status())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the base of the scale delta, ", ArtifactName(manifest.base), ", is not published"));
  }
  RETURN_IF_ERROR(base.status());
  if (base->lineage().base().empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the base of the scale delta, ", base->name(), ", is a scale delta itself"));
}

absl::StatusOr<JobRecord> ArtifactCatalog::Publish(const std::string& token, const Digest& artifact,
                                                   const std::string& evaluation) {
  MutexLock lock(&mutex_);
  absl::StatusOr<JobRecord> job = board_.store().CheckLease(token);
  std::string record;
  if (job.ok()) {
    ASSIGN_OR_RETURN(const artifact::v1::Artifact described, Describe(artifact, job->id));
    record = SerializeCanonically(described);
  }
  // Without a lease this is the repetition of a call that was answered, or it is refused.
  return board_.Complete(token, JobState::kSucceeded, artifact.hex(), record, evaluation, "");
}

absl::StatusOr<artifact::v1::Artifact> ArtifactCatalog::FromRecord(
    const JobStore::ArtifactRecord& record) {
  artifact::v1::Artifact artifact;
  if (!artifact.ParseFromString(record.record)) {
    return absl::DataLossError(
        absl::StrCat("artifact ", record.id, ": its stored record cannot be read"));
  }
  *artifact.mutable_create_time() = ToTimestamp(record.create_time);
  return artifact;
}

absl::StatusOr<artifact::v1::Artifact> ArtifactCatalog::Get(const Digest& id) {
  ASSIGN_OR_RETURN(const JobStore::ArtifactRecord record, board_.store().GetArtifact(id.hex()));
  return FromRecord(record);
}

absl::StatusOr<Manifest> ArtifactCatalog::GetManifest(const Digest& id) {
  RETURN_IF_ERROR(Get(id).status());
  return ReadManifest(id);
}

absl::Status ArtifactCatalog::ForEachArtifact(
    absl::FunctionRef<absl::Status(const artifact::v1::Artifact& artifact)> visit) {
  std::string page_token;
  do {
    ASSIGN_OR_RETURN(const JobStore::ArtifactPage page,
                     board_.store().ListArtifacts(1000, page_token));
    for (const JobStore::ArtifactRecord& record : page.artifacts) {
      ASSIGN_OR_RETURN(const artifact::v1::Artifact artifact, FromRecord(record));
      RETURN_IF_ERROR(visit(artifact));
    }
    page_token = page.next_page_token;
  } while (!page_token.empty());
  return absl::OkStatus();
}

absl::StatusOr<std::set<std::string>> ArtifactCatalog::ReferencedBlobs() {
  std::set<std::string> referenced;
  RETURN_IF_ERROR(ForEachArtifact([&](const artifact::v1::Artifact& artifact) {
    for (const artifact::v1::ArtifactFile& file : artifact.files()) {
      referenced.insert(file.sha256());
    }
    return absl::OkStatus();
  }));
  return referenced;
}

absl::Status ArtifactCatalog::Delete(const Digest& id) {
  MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const artifact::v1::Artifact artifact, Get(id));
  RETURN_IF_ERROR(ForEachArtifact([&](const artifact::v1::Artifact& other) -> absl::Status {
    if (other.lineage().base() != artifact.name()) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        artifact.name(), " is the base of the scale delta ", other.name(), ": delete that first"));
  }));
  RETURN_IF_ERROR(board_.store().DeleteArtifact(id.hex()));
  LOG(INFO) << "artifact deleted artifact=" << id.hex();
  ASSIGN_OR_RETURN(const std::set<std::string> referenced, ReferencedBlobs());
  for (const artifact::v1::ArtifactFile& file : artifact.files()) {
    if (referenced.contains(file.sha256())) continue;
    ASSIGN_OR_RETURN(const Digest digest, Digest::Parse(file.sha256()));
    RETURN_IF_ERROR(blobs_.DeleteBlob(digest));
  }
  return absl::OkStatus();
}

absl::Status ArtifactCatalog::CollectGarbage() {
  MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const std::set<std::string> referenced, ReferencedBlobs());
  ASSIGN_OR_RETURN(const std::vector<Digest> blobs, blobs_.ListBlobs());
  int64_t freed_bytes = 0;
  for (const Digest& digest : blobs) {
    if (referenced.contains(digest.hex())) continue;
    ASSIGN_OR_RETURN(const std::string path, blobs_.BlobPath(digest));
    freed_bytes += std::max<int64_t>(0, FileSize(path));
    RETURN_IF_ERROR(blobs_.DeleteBlob(digest));
  }
  metrics_.store_gc_runs_total.Increment();
  metrics_.store_gc_bytes_freed_total.Increment(static_cast<double>(freed_bytes));
  if (freed_bytes > 0) LOG(INFO) << "unpublished blobs removed bytes=" << freed_bytes;
  return absl::OkStatus();
}

}  // namespace quern
