#include "core/artifact/artifact_files.h"

#include <filesystem>

#include "core/base/file.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"

namespace quern {
namespace {

constexpr size_t kMaxManifestBytes = 1 << 20;

// The directory holds the manifest and its files, each of the right size and digest, and no more.
absl::Status VerifyFiles(absl::string_view directory, const Manifest& manifest) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
  std::set<std::string> wanted = {std::string(kManifestName)};
  for (const ArtifactFileInfo& file : manifest.files) wanted.insert(file.path);
  for (const std::string& name : names) {
    if (wanted.erase(name) == 0) {
      return absl::DataLossError(
          absl::StrCat(JoinPath(directory, name), ": not named by the manifest; remove it"));
    }
  }
  if (!wanted.empty()) {
    return absl::DataLossError(
        absl::StrCat(directory, ": ", absl::StrJoin(wanted, ", "), " is missing"));
  }
  for (const ArtifactFileInfo& info : manifest.files) {
    const std::string path = JoinPath(directory, info.path);
    const auto file = MappedFile::Open(path);
    if (!file.ok()) return absl::DataLossError(file.status().message());
    if (static_cast<int64_t>(file->size_bytes()) != info.size_bytes) {
      return absl::DataLossError(absl::StrCat(path, ": has ", file->size_bytes(),
                                              " bytes, the manifest says ", info.size_bytes));
    }
    if (const std::string digest = Sha256Hex(file->bytes()); digest != info.sha256) {
      return absl::DataLossError(absl::StrCat(path, ": SHA-256 is ", digest, ", the manifest says ",
                                              info.sha256, ": the file is damaged"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string JoinPath(absl::string_view directory, absl::string_view name) {
  return absl::StrCat(directory, "/", name);
}

absl::Status CheckLineage(const Lineage& lineage) {
  const auto check = [](absl::string_view field, absl::string_view hex) -> absl::Status {
    const auto digest = Digest::Parse(hex);
    if (digest.ok()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("lineage.", field, ": ", digest.status().message()));
  };
  RETURN_IF_ERROR(check("checkpoint_digest", lineage.checkpoint_digest));
  RETURN_IF_ERROR(check("task_digest", lineage.task_digest));
  if (!lineage.calibration_digest.empty()) {
    RETURN_IF_ERROR(check("calibration_digest", lineage.calibration_digest));
  }
  if (lineage.quern_version.empty()) {
    return absl::InvalidArgumentError("lineage.quern_version is empty");
  }
  return absl::OkStatus();
}

absl::Status MakeEmptyDirectory(absl::string_view directory) {
  RETURN_IF_ERROR(CreateDirectories(directory));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
  if (names.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      directory, ": holds ", names[0], ", wanted an empty directory to write an artifact to"));
}

absl::StatusOr<ArtifactFileInfo> DescribeFile(absl::string_view directory, absl::string_view name) {
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(JoinPath(directory, name)));
  return ArtifactFileInfo{.path = std::string(name),
                          .size_bytes = static_cast<int64_t>(file.size_bytes()),
                          .sha256 = Sha256Hex(file.bytes())};
}

absl::StatusOr<std::string> WriteManifest(const Manifest& manifest, absl::string_view directory) {
  const std::string bytes = ManifestBytes(manifest);
  RETURN_IF_ERROR(WriteFileDurably(JoinPath(directory, kManifestName), bytes));
  const std::string parent =
      std::filesystem::absolute(std::string(directory)).lexically_normal().parent_path().string();
  RETURN_IF_ERROR(SyncDirectory(parent));
  return Sha256Hex(bytes);
}

absl::StatusOr<VerifiedArtifact> VerifyArtifact(absl::string_view directory,
                                                absl::string_view expected_id) {
  const std::string manifest_path = JoinPath(directory, kManifestName);
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(manifest_path, kMaxManifestBytes));
  VerifiedArtifact artifact{.id = Sha256Hex(bytes)};
  if (!expected_id.empty() && artifact.id != expected_id) {
    return absl::DataLossError(absl::StrCat(manifest_path, ": SHA-256 is ", artifact.id,
                                            ", wanted ", expected_id,
                                            ": damaged, or another artifact"));
  }
  ASSIGN_OR_RETURN(artifact.manifest, ParseManifest(bytes, manifest_path));
  RETURN_IF_ERROR(VerifyFiles(directory, artifact.manifest));
  return artifact;
}

absl::StatusOr<Manifest> ReadManifest(absl::string_view directory) {
  const std::string path = JoinPath(directory, kManifestName);
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kMaxManifestBytes));
  return ParseManifest(bytes, path);
}

}  // namespace quern
