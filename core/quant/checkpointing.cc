#include "core/quant/checkpointing.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/safetensors/safetensors.h"

namespace quern {
namespace {

using Metadata = std::map<std::string, std::string>;
using Views = std::map<std::string, TensorView>;

constexpr char kFingerprintKey[] = "fingerprint";
constexpr char kDigestKey[] = "digest";
constexpr char kParentKey[] = "parent";

// Over everything a file says, its own digest left out.
std::string FileDigest(const Views& tensors, const Metadata& metadata) {
  Sha256 sha;
  const auto add = [&sha](absl::string_view text) {
    sha.Update(absl::StrCat(text.size(), ":"));
    sha.Update(text);
  };
  for (const auto& [key, value] : metadata) {
    if (key == kDigestKey) continue;
    add(key);
    add(value);
  }
  for (const auto& [name, view] : tensors) {
    add(name);
    add(DTypeName(view.dtype));
    for (int64_t dim : view.shape) add(absl::StrCat(dim));
    add(absl::string_view(static_cast<const char*>(view.data), view.size_bytes));
  }
  return sha.FinishHex();
}

absl::StatusOr<std::string> WriteFile(const std::string& path, const Views& tensors,
                                      Metadata metadata) {
  std::string digest = FileDigest(tensors, metadata);
  metadata[kDigestKey] = digest;
  RETURN_IF_ERROR(WriteSafetensors(path, tensors, metadata));
  return digest;
}

// A file whose digest is right. NOT_FOUND when there is none, DATA_LOSS when it is damaged.
absl::StatusOr<SafetensorsFile> OpenIntact(const std::string& path) {
  ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
  const auto digest = file.metadata().find(kDigestKey);
  if (digest == file.metadata().end() ||
      digest->second != FileDigest(file.tensors(), file.metadata())) {
    return absl::DataLossError(absl::StrCat(path, ": the digest does not fit the content"));
  }
  return file;
}

std::string Value(const SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  return found == file.metadata().end() ? "" : found->second;
}

template <typename T>
TensorView ViewOf(DType dtype, const T* data, int64_t count) {
  return {dtype, {count}, data, count * sizeof(T)};
}

template <typename T>
std::vector<T> CopyOf(const TensorView& view) {
  std::vector<T> values(view.size_bytes / sizeof(T));
  std::memcpy(values.data(), view.data, values.size() * sizeof(T));
  return values;
}

// The shape of a packed matrix as one metadata string; its parts are tensors of their own.
std::string ShapeText(const PackedTensor& tensor) {
  return absl::StrCat(tensor.rows, " ", tensor.cols, " ", tensor.bits, " ", tensor.group_size, " ",
                      tensor.symmetric ? 1 : 0);
}

struct OwnedTensor {
  std::vector<uint32_t> codes;
  std::vector<uint16_t> scales;
  std::vector<uint32_t> zero_points;
};

// The matrix `name`, copied out of the file: nothing is left mapped, and everything is aligned.
std::optional<PackedTensor> ReadMatrix(const SafetensorsFile& file, const std::string& name,
                                       const std::string& shape) {
  PackedTensor tensor;
  int symmetric = 0;
  if (std::sscanf(shape.c_str(), "%d %d %d %d %d", &tensor.rows, &tensor.cols, &tensor.bits,
                  &tensor.group_size, &symmetric) != 5) {
    return std::nullopt;
  }
  tensor.symmetric = symmetric != 0;
  auto owned = std::make_shared<OwnedTensor>();
  const auto& tensors = file.tensors();
  const auto codes = tensors.find(name + ".codes");
  const auto scales = tensors.find(name + ".scales");
  const auto zero_points = tensors.find(name + ".zero_points");
  if (codes == tensors.end() || scales == tensors.end() ||
      (zero_points == tensors.end()) != tensor.symmetric) {
    return std::nullopt;
  }
  owned->codes = CopyOf<uint32_t>(codes->second);
  owned->scales = CopyOf<uint16_t>(scales->second);
  tensor.codes = owned->codes.data();
  tensor.scales = owned->scales.data();
  if (!tensor.symmetric) {
    owned->zero_points = CopyOf<uint32_t>(zero_points->second);
    tensor.zero_points = owned->zero_points.data();
  }
  tensor.storage = std::move(owned);
  return tensor;
}

std::optional<TrainedBlock> ReadBlock(const SafetensorsFile& file) {
  TrainedBlock block;
  if (!absl::SimpleAtod(Value(file, "loss"), &block.loss)) return std::nullopt;
  for (const auto& [key, value] : file.metadata()) {
    absl::string_view name = key;
    if (!absl::ConsumePrefix(&name, "shape ")) continue;
    std::optional<PackedTensor> tensor = ReadMatrix(file, std::string(name), value);
    if (!tensor.has_value()) return std::nullopt;
    block.matrices[std::string(name)] = *std::move(tensor);
  }
  for (const auto& [name, view] : file.tensors()) {
    if (view.dtype == DType::kF32) block.vectors[name] = CopyOf<float>(view);
  }
  return block;
}

}  // namespace

absl::StatusOr<TrainingDirectory> TrainingDirectory::Open(absl::string_view path,
                                                          absl::string_view fingerprint) {
  RETURN_IF_ERROR(CreateDirectories(path));
  return TrainingDirectory(path, fingerprint);
}

std::string TrainingDirectory::BlockPath(int layer) const {
  return absl::StrFormat("%s/block_%04d.safetensors", path_, layer);
}

std::string TrainingDirectory::E2ePath(int generation) const {
  return absl::StrFormat("%s/e2e_%d.safetensors", path_, generation);
}

std::vector<TrainedBlock> TrainingDirectory::LoadBlocks(int num_layers) {
  std::vector<TrainedBlock> blocks;
  chain_ = fingerprint_;
  for (int layer = 0; layer < num_layers; ++layer) {
    const absl::StatusOr<SafetensorsFile> file = OpenIntact(BlockPath(layer));
    std::optional<TrainedBlock> block;
    std::string reason(file.status().message());
    if (file.ok() && Value(*file, kFingerprintKey) != fingerprint_) {
      reason =
          "it is another run's: task, checkpoint, calibration, version, device or number of "
          "threads differ";
    } else if (file.ok() && Value(*file, kParentKey) != chain_) {
      reason = "it does not follow the block before";
    } else if (file.ok()) {
      block = ReadBlock(*file);
      reason = "it lacks something";
    }
    if (!block.has_value()) {
      if (!absl::IsNotFound(file.status())) {
        LOG(WARNING) << "saved block not used, trained again block=" << layer << " reason=\""
                     << reason << "\"";
      }
      break;
    }
    chain_ = Value(*file, kDigestKey);
    blocks.push_back(*std::move(block));
  }
  return blocks;
}

absl::Status TrainingDirectory::SaveBlock(int layer, const TrainedBlock& block) {
  Views views;
  Metadata metadata = {{kFingerprintKey, fingerprint_},
                       {kParentKey, chain_},
                       {"loss", absl::StrFormat("%.17g", block.loss)}};
  for (const auto& [name, tensor] : block.matrices) {
    metadata["shape " + name] = ShapeText(tensor);
    views[name + ".codes"] = ViewOf(DType::kU32, tensor.codes, tensor.code_words());
    views[name + ".scales"] = ViewOf(DType::kF16, tensor.scales, tensor.rows * tensor.num_groups());
    if (!tensor.symmetric) {
      views[name + ".zero_points"] =
          ViewOf(DType::kU32, tensor.zero_points, tensor.zero_point_words());
    }
  }
  for (const auto& [name, values] : block.vectors) {
    views[name] = ViewOf(DType::kF32, values.data(), static_cast<int64_t>(values.size()));
  }
  ASSIGN_OR_RETURN(chain_, WriteFile(BlockPath(layer), views, metadata));
  return absl::OkStatus();
}

std::optional<E2eState> TrainingDirectory::LoadE2e() {
  std::optional<E2eState> newest;
  for (int generation = 0; generation < 2; ++generation) {
    const absl::StatusOr<SafetensorsFile> file = OpenIntact(E2ePath(generation));
    E2eState state;
    if (!file.ok() || Value(*file, kParentKey) != chain_ ||
        !absl::SimpleAtoi(Value(*file, "num_steps_done"), &state.num_steps_done) ||
        !absl::SimpleAtod(Value(*file, "rate_factor"), &state.rate_factor) ||
        !absl::SimpleAtod(Value(*file, "first_loss"), &state.first_loss)) {
      continue;
    }
    if (newest.has_value() && newest->num_steps_done >= state.num_steps_done) continue;
    for (const auto& [name, view] : file->tensors()) state.tensors.push_back(CopyOf<float>(view));
    newest = std::move(state);
    next_generation_ = 1 - generation;
  }
  return newest;
}

absl::Status TrainingDirectory::SaveE2e(const E2eState& state) {
  Views views;
  for (size_t i = 0; i < state.tensors.size(); ++i) {
    views[absl::StrFormat("%06d", i)] =
        ViewOf(DType::kF32, state.tensors[i].data(), static_cast<int64_t>(state.tensors[i].size()));
  }
  const Metadata metadata = {{kFingerprintKey, fingerprint_},
                             {kParentKey, chain_},
                             {"num_steps_done", absl::StrCat(state.num_steps_done)},
                             {"rate_factor", absl::StrFormat("%.17g", state.rate_factor)},
                             {"first_loss", absl::StrFormat("%.17g", state.first_loss)}};
  RETURN_IF_ERROR(WriteFile(E2ePath(next_generation_), views, metadata).status());
  next_generation_ = 1 - next_generation_;
  return absl::OkStatus();
}

}  // namespace quern
