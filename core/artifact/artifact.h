#ifndef QUERN_CORE_ARTIFACT_ARTIFACT_H_
#define QUERN_CORE_ARTIFACT_ARTIFACT_H_

// The artifact directory: manifest.json, model.safetensors, tokenizer.json. Spec: README.md here.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/artifact/packed_model.h"

namespace quern {

inline constexpr int kArtifactFormatVersion = 1;
inline constexpr absl::string_view kManifestName = "manifest.json";

// Where an artifact came from. Nothing here depends on the machine or the time.
struct Lineage {
  std::string checkpoint_digest;   // SHA-256 over the checkpoint's files, hex
  std::string task_digest;         // SHA-256 over the canonical resolved task, hex
  std::string calibration_digest;  // SHA-256 over the calibration token ids, hex; empty for RTN
  std::string quern_version;
  bool operator==(const Lineage&) const = default;
};

struct ArtifactFileInfo {
  std::string path;
  int64_t size_bytes = 0;
  std::string sha256;
  bool operator==(const ArtifactFileInfo&) const = default;
};

struct Manifest {
  ModelConfig config;
  QuantFormat format;
  Lineage lineage;
  std::vector<ArtifactFileInfo> files;  // ordered by path; the manifest itself is not in it
};

// Parses and checks a manifest's bytes: format version, known keys, safe relative paths, digests.
// INVALID_ARGUMENT for a newer version (the message says so), DATA_LOSS otherwise.
absl::StatusOr<Manifest> ParseManifest(absl::string_view bytes, absl::string_view where);

// Writes `model` into the new directory `directory` (which must not exist or be empty), all files
// durable, the manifest last. Returns the artifact's id: the SHA-256 of the manifest, hex.
// Deterministic: equal model and lineage, equal id.
absl::StatusOr<std::string> WriteArtifact(const PackedModel& model, const Lineage& lineage,
                                          absl::string_view directory);

struct LoadedArtifact {
  std::string id;
  Manifest manifest;
  PackedModel model;
};

// Verifies size and SHA-256 of every file against the manifest, checks every tensor against the
// manifest's config and format, and maps the weights. `expected_id` (hex) may be empty.
// DATA_LOSS naming the file and what is wrong; nothing is returned half.
absl::StatusOr<LoadedArtifact> LoadArtifact(absl::string_view directory,
                                            absl::string_view expected_id = "");

}  // namespace quern

#endif  // QUERN_CORE_ARTIFACT_ARTIFACT_H_
