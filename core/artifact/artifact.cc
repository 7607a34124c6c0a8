#include "core/artifact/artifact.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>
#include <utility>

#include "core/artifact/tensor_check.h"
#include "core/base/file.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/safetensors/safetensors.h"

// Tensors are mapped and used as they lie in the file.
static_assert(std::endian::native == std::endian::little);

namespace quern {
namespace {

constexpr size_t kMaxManifestBytes = 1 << 20;
constexpr int64_t kMaxTokenizerBytes = 64 << 20;
constexpr int64_t kMaxChatTemplateBytes = 1 << 20;

std::string Join(absl::string_view directory, absl::string_view name) {
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

template <typename T>
TensorView ViewOf(DType dtype, std::vector<int64_t> shape, const T* data) {
  TensorView view{.dtype = dtype, .shape = std::move(shape), .data = data};
  view.size_bytes = static_cast<size_t>(view.num_elements()) * sizeof(T);
  return view;
}

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

absl::StatusOr<ArtifactFileInfo> Describe(absl::string_view directory, absl::string_view name) {
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(Join(directory, name)));
  return ArtifactFileInfo{.path = std::string(name),
                          .size_bytes = static_cast<int64_t>(file.size_bytes()),
                          .sha256 = Sha256Hex(file.bytes())};
}

absl::Status CheckSize(absl::string_view what, size_t size, int64_t max) {
  if (static_cast<int64_t>(size) <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " has ", size, " bytes, an artifact takes at most ", max));
}

absl::Status CheckEmpty(absl::string_view directory) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
  if (names.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      directory, ": holds ", names[0], ", wanted an empty directory to write an artifact to"));
}

// The directory holds the manifest and its files, each of the right size and digest, and no more.
absl::Status VerifyFiles(absl::string_view directory, const Manifest& manifest) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));
  std::set<std::string> wanted = {std::string(kManifestName)};
  for (const ArtifactFileInfo& file : manifest.files) wanted.insert(file.path);
  for (const std::string& name : names) {
    if (wanted.erase(name) == 0) {
      return absl::DataLossError(
          absl::StrCat(Join(directory, name), ": not named by the manifest; remove it"));
    }
  }
  if (!wanted.empty()) {
    return absl::DataLossError(
        absl::StrCat(directory, ": ", absl::StrJoin(wanted, ", "), " is missing"));
  }
  for (const ArtifactFileInfo& info : manifest.files) {
    const std::string path = Join(directory, info.path);
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

// Takes the tensors of a file one by one, so that what is left over is known.
class TensorReader {
 public:
  TensorReader(std::shared_ptr<const SafetensorsFile> file, std::string where)
      : file_(std::move(file)), where_(std::move(where)) {
    for (const auto& [name, view] : file_->tensors()) left_.insert(name);
  }

  // The data of tensor `name`, which must have this type and shape, aligned to T: in the mapping,
  // or copied where an earlier tensor of odd length left it unaligned. DATA_LOSS otherwise.
  template <typename T>
  absl::StatusOr<const T*> Take(const std::string& name, DType dtype,
                                const std::vector<int64_t>& shape) {
    const auto it = file_->tensors().find(name);
    if (it == file_->tensors().end()) {
      return absl::DataLossError(absl::StrCat(where_, ": tensor ", name, " is missing"));
    }
    const TensorView& view = it->second;
    if (view.dtype != dtype || view.shape != shape) {
      return absl::DataLossError(
          absl::StrCat(where_, ": tensor ", name, " is ", DTypeName(view.dtype), " [",
                       absl::StrJoin(view.shape, ", "), "], wanted ", DTypeName(dtype), " [",
                       absl::StrJoin(shape, ", "), "] by the manifest's config and format"));
    }
    left_.erase(name);
    if (reinterpret_cast<uintptr_t>(view.data) % alignof(T) == 0) {
      return static_cast<const T*>(view.data);
    }
    auto copy = std::make_shared<std::vector<T>>(view.size_bytes / sizeof(T));
    std::memcpy(copy->data(), view.data, view.size_bytes);
    copies_->push_back(copy);
    return static_cast<const T*>(copy->data());
  }

  absl::Status CheckNothingLeft() const {
    if (left_.empty()) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(where_, ": tensor ", *left_.begin(),
                                            " is not part of the model in the manifest"));
  }

  // Keeps every pointer that Take has returned and will return alive.
  std::shared_ptr<const void> storage() const {
    return std::make_shared<std::pair<decltype(file_), decltype(copies_)>>(file_, copies_);
  }

 private:
  using Copies = std::vector<std::shared_ptr<const void>>;
  const std::shared_ptr<const SafetensorsFile> file_;
  const std::string where_;
  std::set<std::string> left_;
  const std::shared_ptr<Copies> copies_ = std::make_shared<Copies>();
};

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
    const auto format = FormatOf(model.format, spec.kind, static_cast<int>(spec.shape[1]));
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
  RETURN_IF_ERROR(reader.CheckNothingLeft());
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
  RETURN_IF_ERROR(CreateDirectories(directory));
  RETURN_IF_ERROR(CheckEmpty(directory));

  Manifest manifest{.config = model.config, .format = model.format, .lineage = lineage};
  const auto add = [&](absl::string_view name, absl::string_view bytes) -> absl::Status {
    if (bytes.empty()) return absl::OkStatus();
    RETURN_IF_ERROR(WriteFileDurably(Join(directory, name), bytes));
    ASSIGN_OR_RETURN(ArtifactFileInfo info, Describe(directory, name));
    manifest.files.push_back(std::move(info));
    return absl::OkStatus();
  };
  // In the order of their paths.
  RETURN_IF_ERROR(add(kChatTemplateName, model.chat_template));
  RETURN_IF_ERROR(WriteSafetensors(Join(directory, kWeightsName), TensorsOf(model), {}));
  ASSIGN_OR_RETURN(ArtifactFileInfo weights, Describe(directory, kWeightsName));
  manifest.files.push_back(std::move(weights));
  RETURN_IF_ERROR(add(kTokenizerName, model.tokenizer_json));

  const std::string bytes = ManifestBytes(manifest);
  RETURN_IF_ERROR(WriteFileDurably(Join(directory, kManifestName), bytes));
  const std::string parent =
      std::filesystem::absolute(std::string(directory)).lexically_normal().parent_path().string();
  RETURN_IF_ERROR(SyncDirectory(parent));
  return Sha256Hex(bytes);
}

absl::StatusOr<LoadedArtifact> LoadArtifact(absl::string_view directory,
                                            absl::string_view expected_id) {
  const std::string manifest_path = Join(directory, kManifestName);
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(manifest_path, kMaxManifestBytes));
  LoadedArtifact artifact;
  artifact.id = Sha256Hex(bytes);
  if (!expected_id.empty() && artifact.id != expected_id) {
    return absl::DataLossError(absl::StrCat(manifest_path, ": SHA-256 is ", artifact.id,
                                            ", wanted ", expected_id,
                                            ": damaged, or another artifact"));
  }
  ASSIGN_OR_RETURN(artifact.manifest, ParseManifest(bytes, manifest_path));
  RETURN_IF_ERROR(VerifyFiles(directory, artifact.manifest));

  PackedModel& model = artifact.model;
  model.config = artifact.manifest.config;
  model.format = artifact.manifest.format;
  for (const ArtifactFileInfo& file : artifact.manifest.files) {
    const std::string path = Join(directory, file.path);
    if (file.path == kTokenizerName) {
      ASSIGN_OR_RETURN(model.tokenizer_json, ReadFile(path, kMaxTokenizerBytes));
    } else if (file.path == kChatTemplateName) {
      ASSIGN_OR_RETURN(model.chat_template, ReadFile(path, kMaxChatTemplateBytes));
    } else {
      RETURN_IF_ERROR(ReadTensors(path, model));
    }
  }
  return artifact;
}

}  // namespace quern
