#ifndef QUERN_CORE_ARTIFACT_ARTIFACT_H_
#define QUERN_CORE_ARTIFACT_ARTIFACT_H_

// The artifact directory: manifest.json, model.safetensors and, where the model has them,
// tokenizer.json and chat_template.jinja. Spec: README.md here. Scale deltas: scale_delta.h.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/artifact/packed_model.h"

namespace quern {

// Of a whole model, and of a scale delta.
inline constexpr int kArtifactFormatVersion = 1;
inline constexpr int kScaleDeltaFormatVersion = 2;
inline constexpr absl::string_view kManifestName = "manifest.json";
inline constexpr absl::string_view kWeightsName = "model.safetensors";
inline constexpr absl::string_view kScaleDeltaName = "delta.safetensors";
inline constexpr absl::string_view kTokenizerName = "tokenizer.json";
inline constexpr absl::string_view kChatTemplateName = "chat_template.jinja";

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
  // Of a scale delta: the id of the artifact that it changes. Empty: a whole model.
  std::string base;
  ModelConfig config;
  QuantFormat format;
  Lineage lineage;
  std::vector<ArtifactFileInfo> files;  // ordered by path; the manifest itself is not in it
};

// The canonical bytes of a manifest, whose SHA-256 is the artifact's id.
std::string ManifestBytes(const Manifest& manifest);

// The inverse, checked: format version, known keys, safe relative paths, digests, and that the
// bytes are the canonical ones (so that one artifact has one id). `where` names the source in
// messages. INVALID_ARGUMENT for a newer version (the message says so), DATA_LOSS otherwise.
absl::StatusOr<Manifest> ParseManifest(absl::string_view bytes, absl::string_view where);

// Writes `model` into the new directory `directory` (which must not exist or be empty), all files
// durable, the manifest last. Returns the artifact's id: the SHA-256 of the manifest, hex.
// Deterministic: equal model and lineage, equal id. FAILED_PRECONDITION when the directory holds
// something, INVALID_ARGUMENT naming the tensor or field when the model or lineage is not complete
// and consistent, RESOURCE_EXHAUSTED when the disk is full; what was written so far stays then.
absl::StatusOr<std::string> WriteArtifact(const PackedModel& model, const Lineage& lineage,
                                          absl::string_view directory);

// The manifest of an artifact directory, parsed; nothing else is read. Errors as ParseManifest,
// NOT_FOUND.
absl::StatusOr<Manifest> ReadManifest(absl::string_view directory);

// The tensors of the manifest's model with their shapes alone: all data is null, vectors are zeros.
// Enough to find out what memory the model will take.
PackedModel ShapeOf(const Manifest& manifest);

struct VerifiedArtifact {
  std::string id;
  Manifest manifest;
};

// Verifies that the directory holds the manifest and its files, each of the right size and SHA-256,
// and no more: of a whole model or a scale delta. `expected_id` (hex) may be empty. DATA_LOSS
// naming the file and what is wrong.
absl::StatusOr<VerifiedArtifact> VerifyArtifact(absl::string_view directory,
                                                absl::string_view expected_id = "");

struct LoadedArtifact {
  std::string id;
  Manifest manifest;
  PackedModel model;
};

// Verifies as VerifyArtifact does, checks every tensor against the manifest's config and format,
// and maps the weights. DATA_LOSS naming the file and what is wrong, FAILED_PRECONDITION for a
// scale delta; nothing is returned half.
absl::StatusOr<LoadedArtifact> LoadArtifact(absl::string_view directory,
                                            absl::string_view expected_id = "");

}  // namespace quern

#endif  // QUERN_CORE_ARTIFACT_ARTIFACT_H_
