#include "core/artifact/artifact.h"

#include <absl/strings/str_cat.h>

#include <bit>
#include <utility>

#include "core/artifact/artifact_files.h"
#include "core/artifact/tensor_check.h"
#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "core/safetensors/safetensors.h"

// Tensors are mapped and used as they lie in the file.
static_assert(std::endian::native == std::endian::little);

namespace quern {
namespace {

constexpr int64_t kMaxTokenizerBytes = 64 << 20;
constexpr int64_t kMaxChatTemplateBytes = 1 << 20;

// The tensors of model.safetensors, as views into `model`.
std::map<std::string, TensorView> TensorsOf(const PackedModel& model) {
  std::map<std::string, TensorView> tensors;
  for (const auto& [name, tensor] : model.matrices) {
    tensors[name + ".codes"] =
        ViewOf(DType::kU32, {tensor.rows, tensor.view().words_per_row()}, tensor.codes);
    tensors[name + ".scales"] =
        ViewOf(DType::kF16, {tensor.rows, tensor.num_groups()}, tensor.scales);
    if (!tensor.symmetric) {
      tensors[name + ".zero_points"] =
          ViewOf(DType::kU32, {tensor.zero_point_words()}, tensor.zero_points);
    }
  }
  for (const auto& [name, tensor] : model.half_matrices) {
    tensors[name] = ViewOf(DType::kF16, {tensor.rows, tensor.cols}, tensor.data);
  }
  for (const auto& [name, vector] : model.vectors) {
    tensors[name] = ViewOf(DType::kF32, {static_cast<int64_t>(vector.size())}, vector.data());
  }
  return tensors;
}

absl::Status CheckSize(absl::string_view what, size_t size, int64_t max) {
  if (static_cast<int64_t>(size) <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " has ", size, " bytes, an artifact takes at most ", max));
}

absl::StatusOr<PackedTensor> TakePacked(const TensorSpec& spec, const MatrixFormat& format,
                                        TensorReader& reader) {
  PackedTensor tensor{.rows = static_cast<int>(spec.shape[0]),
                      .cols = static_cast<int>(spec.shape[1]),
                      .bits = format.bits,
                      .group_size = format.group_size,
                      .symmetric = format.symmetric};
  ASSIGN_OR_RETURN(tensor.codes,
                   reader.Take<uint32_t>(spec.name + ".codes", DType::kU32,
                                         {tensor.rows, tensor.view().words_per_row()}));
  ASSIGN_OR_RETURN(tensor.scales, reader.Take<uint16_t>(spec.name + ".scales", DType::kF16,
                                                        {tensor.rows, tensor.num_groups()}));
  if (!tensor.symmetric) {
    ASSIGN_OR_RETURN(tensor.zero_points,
                     reader.Take<uint32_t>(spec.name + ".zero_points", DType::kU32,
                                           {tensor.zero_point_words()}));
  }
  tensor.storage = reader.storage();
  return tensor;
}

absl::Status ReadTensors(const std::string& path, PackedModel& model) {
  ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
  TensorReader reader(std::make_shared<SafetensorsFile>(std::move(file)), path);
  for (const TensorSpec& spec : ModelTensors(model.config)) {
    if (spec.kind == TensorSpec::Kind::kVector) {
      ASSIGN_OR_RETURN(const float* data, reader.Take<float>(spec.name, DType::kF32, spec.shape));
      model.vectors[spec.name] = std::vector<float>(data, data + spec.shape[0]);
      continue;
    }
    const auto format = FormatOf(model.format, spec);
    if (format.has_value()) {
      ASSIGN_OR_RETURN(model.matrices[spec.name], TakePacked(spec, *format, reader));
    } else {
      ASSIGN_OR_RETURN(const uint16_t* data,
                       reader.Take<uint16_t>(spec.name, DType::kF16, spec.shape));
      model.half_matrices[spec.name] = HalfTensor{.rows = static_cast<int>(spec.shape[0]),
                                                  .cols = static_cast<int>(spec.shape[1]),
                                                  .data = data,
                                                  .storage = reader.storage()};
    }
  }
  RETURN_IF_ERROR(reader.CheckNothingLeft("is not part of the model in the manifest"));
  if (absl::Status status = CheckModelTensors(model); !status.ok()) {
    return absl::DataLossError(absl::StrCat(path, ": ", status.message()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> WriteArtifact(const PackedModel& model, const Lineage& lineage,
                                          absl::string_view directory) {
  RETURN_IF_ERROR(CheckLineage(lineage));
  RETURN_IF_ERROR(CheckModelTensors(model));
  RETURN_IF_ERROR(CheckSize("the tokenizer", model.tokenizer_json.size(), kMaxTokenizerBytes));
  RETURN_IF_ERROR(
      CheckSize("the chat template", model.chat_template.size(), kMaxChatTemplateBytes));
  RETURN_IF_ERROR(MakeEmptyDirectory(directory));

  Manifest manifest{.config = model.config, .format = model.format, .lineage = lineage};
  const auto add = [&](absl::string_view name, absl::string_view bytes) -> absl::Status {
    if (bytes.empty()) return absl::OkStatus();
    RETURN_IF_ERROR(WriteFileDurably(JoinPath(directory, name), bytes));
    ASSIGN_OR_RETURN(ArtifactFileInfo info, DescribeFile(directory, name));
    manifest.files.push_back(std::move(info));
    return absl::OkStatus();
  };
  // In the order of their paths.
  RETURN_IF_ERROR(add(kChatTemplateName, model.chat_template));
  RETURN_IF_ERROR(WriteSafetensors(JoinPath(directory, kWeightsName), TensorsOf(model), {}));
  ASSIGN_OR_RETURN(ArtifactFileInfo weights, DescribeFile(directory, kWeightsName));
  manifest.files.push_back(std::move(weights));
  RETURN_IF_ERROR(add(kTokenizerName, model.tokenizer_json));

  return WriteManifest(manifest, directory);
}

PackedModel ShapeOf(const Manifest& manifest) {
  PackedModel model{.config = manifest.config, .format = manifest.format};
  for (const TensorSpec& spec : ModelTensors(manifest.config)) {
    if (spec.kind == TensorSpec::Kind::kVector) {
      model.vectors[spec.name].resize(spec.shape[0]);
      continue;
    }
    const int rows = static_cast<int>(spec.shape[0]);
    const int cols = static_cast<int>(spec.shape[1]);
    if (const auto format = FormatOf(manifest.format, spec); format.has_value()) {
      model.matrices[spec.name] = PackedTensor{.rows = rows,
                                               .cols = cols,
                                               .bits = format->bits,
                                               .group_size = format->group_size,
                                               .symmetric = format->symmetric};
    } else {
      model.half_matrices[spec.name] = HalfTensor{.rows = rows, .cols = cols};
    }
  }
  return model;
}

absl::StatusOr<LoadedArtifact> LoadArtifact(absl::string_view directory,
                                            absl::string_view expected_id) {
  ASSIGN_OR_RETURN(VerifiedArtifact verified, VerifyArtifact(directory, expected_id));
  LoadedArtifact artifact{.id = std::move(verified.id), .manifest = std::move(verified.manifest)};
  if (!artifact.manifest.base.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, ": is a scale delta of artifact ", artifact.manifest.base,
                     ", wanted a whole model: load it on top of that one"));
  }

  PackedModel& model = artifact.model;
  model.config = artifact.manifest.config;
  model.format = artifact.manifest.format;
  for (const ArtifactFileInfo& file : artifact.manifest.files) {
    const std::string path = JoinPath(directory, file.path);
    if (file.path == kTokenizerName) {
      ASSIGN_OR_RETURN(model.tokenizer_json, ReadFile(path, kMaxTokenizerBytes));
    } else if (file.path == kChatTemplateName) {
      ASSIGN_OR_RETURN(model.chat_template, ReadFile(path, kMaxChatTemplateBytes));
    } else {
      RETURN_IF_ERROR(ReadTensors(path, model));
    }
  }
  for (auto& [name, tensor] : model.matrices) tensor.origin = artifact.id;
  for (auto& [name, tensor] : model.half_matrices) tensor.origin = artifact.id;
  return artifact;
}

}  // namespace quern
