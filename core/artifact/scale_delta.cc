#include "core/artifact/scale_delta.h"

#include <absl/strings/str_cat.h>

#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/artifact/artifact_files.h"
#include "core/artifact/tensor_check.h"
#include "core/base/status_macros.h"
#include "core/safetensors/safetensors.h"

namespace quern {
namespace {

template <typename T>
bool SameBytes(const T* a, const T* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(T)) == 0;
}

absl::Status Differs(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(
      what,
      " differs from the base's; a scale delta may change scales, zero points, norm weights "
      "and biases: write a whole artifact instead"));
}

// Adds what of a matrix is not the base's. Both passed CheckModelTensors with one format.
absl::Status AddChanges(const std::string& name, const PackedTensor& base,
                        const PackedTensor& tuned, std::map<std::string, TensorView>& changes) {
  if (!SameBytes(base.codes, tuned.codes, base.code_words())) {
    return Differs(absl::StrCat("tensor ", name, ".codes"));
  }
  if (!SameBytes(base.scales, tuned.scales, base.rows * base.num_groups())) {
    changes[name + ".scales"] = ViewOf(DType::kF16, {tuned.rows, tuned.num_groups()}, tuned.scales);
  }
  if (!base.symmetric && !SameBytes(base.zero_points, tuned.zero_points, base.zero_point_words())) {
    changes[name + ".zero_points"] =
        ViewOf(DType::kU32, {tuned.zero_point_words()}, tuned.zero_points);
  }
  return absl::OkStatus();
}

// What `tuned` has other than `base`, as views into `tuned`.
absl::StatusOr<std::map<std::string, TensorView>> ChangesOf(const PackedModel& base,
                                                            const PackedModel& tuned) {
  if (tuned.config != base.config) return Differs("the config");
  if (tuned.format != base.format) return Differs("the format");
  if (tuned.tokenizer_json != base.tokenizer_json) return Differs("the tokenizer");
  if (tuned.chat_template != base.chat_template) return Differs("the chat template");
  std::map<std::string, TensorView> changes;
  for (const auto& [name, tensor] : base.matrices) {
    RETURN_IF_ERROR(AddChanges(name, tensor, tuned.matrices.at(name), changes));
  }
  for (const auto& [name, tensor] : base.half_matrices) {
    const int64_t count = int64_t{tensor.rows} * tensor.cols;
    if (!SameBytes(tensor.data, tuned.half_matrices.at(name).data, count)) {
      return Differs(absl::StrCat("tensor ", name));
    }
  }
  for (const auto& [name, vector] : base.vectors) {
    const std::vector<float>& changed = tuned.vectors.at(name);
    const auto size = static_cast<int64_t>(vector.size());
    if (!SameBytes(vector.data(), changed.data(), size)) {
      changes[name] = ViewOf(DType::kF32, {size}, changed.data());
    }
  }
  if (changes.empty()) {
    return absl::InvalidArgumentError("the model is equal to its base: there is no delta to write");
  }
  return changes;
}

// Replaces what the delta holds of a matrix.
absl::Status TakeChanges(const std::string& name, const std::string& id, TensorReader& reader,
                         PackedTensor& tensor) {
  const std::string scales = name + ".scales";
  const std::string zero_points = name + ".zero_points";
  const bool has_scales = reader.Has(scales);
  const bool has_zero_points = !tensor.symmetric && reader.Has(zero_points);
  if (has_scales) {
    ASSIGN_OR_RETURN(tensor.scales, reader.Take<uint16_t>(scales, DType::kF16,
                                                          {tensor.rows, tensor.num_groups()}));
  }
  if (has_zero_points) {
    ASSIGN_OR_RETURN(tensor.zero_points,
                     reader.Take<uint32_t>(zero_points, DType::kU32, {tensor.zero_point_words()}));
  }
  if (has_scales || has_zero_points) {
    tensor.storage =
        std::make_shared<std::pair<std::shared_ptr<const void>, std::shared_ptr<const void>>>(
            tensor.storage, reader.storage());
    tensor.origin = id;
  }
  return absl::OkStatus();
}

absl::Status ReadChanges(const std::string& path, const std::string& id, PackedModel& model) {
  ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
  if (file.tensors().empty()) {
    return absl::DataLossError(absl::StrCat(path, ": holds no tensor, wanted at least one"));
  }
  TensorReader reader(std::make_shared<SafetensorsFile>(std::move(file)), path);
  for (auto& [name, tensor] : model.matrices) {
    RETURN_IF_ERROR(TakeChanges(name, id, reader, tensor));
  }
  for (auto& [name, vector] : model.vectors) {
    if (!reader.Has(name)) continue;
    const auto size = static_cast<int64_t>(vector.size());
    ASSIGN_OR_RETURN(const float* data, reader.Take<float>(name, DType::kF32, {size}));
    vector.assign(data, data + size);
  }
  RETURN_IF_ERROR(reader.CheckNothingLeft("is none of the base's that a scale delta may replace"));
  if (absl::Status status = CheckModelTensors(model); !status.ok()) {
    return absl::DataLossError(absl::StrCat(path, ": ", status.message()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> WriteScaleDelta(const LoadedArtifact& base, const PackedModel& tuned,
                                            const Lineage& lineage, absl::string_view directory) {
  RETURN_IF_ERROR(CheckLineage(lineage));
  if (!base.manifest.base.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("artifact ", base.id,
                     " is a scale delta itself, wanted a whole model as the "
                     "base: write a delta of artifact ",
                     base.manifest.base));
  }
  RETURN_IF_ERROR(CheckModelTensors(tuned));
  ASSIGN_OR_RETURN(const auto changes, ChangesOf(base.model, tuned));
  RETURN_IF_ERROR(MakeEmptyDirectory(directory));
  RETURN_IF_ERROR(WriteSafetensors(JoinPath(directory, kScaleDeltaName), changes, {}));
  Manifest manifest{
      .base = base.id, .config = tuned.config, .format = tuned.format, .lineage = lineage};
  ASSIGN_OR_RETURN(ArtifactFileInfo file, DescribeFile(directory, kScaleDeltaName));
  manifest.files.push_back(std::move(file));
  return WriteManifest(manifest, directory);
}

absl::StatusOr<LoadedArtifact> LoadScaleDelta(absl::string_view directory,
                                              const LoadedArtifact& base,
                                              absl::string_view expected_id) {
  ASSIGN_OR_RETURN(VerifiedArtifact verified, VerifyArtifact(directory, expected_id));
  const Manifest& manifest = verified.manifest;
  if (manifest.base.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, ": is a whole model, wanted a scale delta"));
  }
  if (manifest.base != base.id) {
    return absl::FailedPreconditionError(absl::StrCat(directory, ": is a scale delta of artifact ",
                                                      manifest.base, ", not of ", base.id));
  }
  if (!base.manifest.base.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, ": its base ", base.id,
                     " is a scale delta itself; a delta of a delta is not read"));
  }
  if (manifest.config != base.manifest.config || manifest.format != base.manifest.format) {
    return absl::DataLossError(absl::StrCat(JoinPath(directory, kManifestName),
                                            ": config and format are not those of the base ",
                                            base.id));
  }
  LoadedArtifact artifact{
      .id = std::move(verified.id), .manifest = std::move(verified.manifest), .model = base.model};
  RETURN_IF_ERROR(ReadChanges(JoinPath(directory, kScaleDeltaName), artifact.id, artifact.model));
  return artifact;
}

}  // namespace quern
