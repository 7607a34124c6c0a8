#ifndef QUERN_CORE_ARTIFACT_ARTIFACT_FILES_H_
#define QUERN_CORE_ARTIFACT_ARTIFACT_FILES_H_

// What whole artifacts and scale deltas are written and read with. For core/artifact alone.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/safetensors/safetensors.h"

namespace quern {

std::string JoinPath(absl::string_view directory, absl::string_view name);

// INVALID_ARGUMENT.
absl::Status CheckLineage(const Lineage& lineage);

// Makes the directory; FAILED_PRECONDITION when it holds something.
absl::Status MakeEmptyDirectory(absl::string_view directory);

// Size and digest of a file in `directory`.
absl::StatusOr<ArtifactFileInfo> DescribeFile(absl::string_view directory, absl::string_view name);

// Writes the manifest, whose files are all there, and makes the directory durable. Returns the
// artifact's id.
absl::StatusOr<std::string> WriteManifest(const Manifest& manifest, absl::string_view directory);

template <typename T>
TensorView ViewOf(DType dtype, std::vector<int64_t> shape, const T* data) {
  TensorView view{.dtype = dtype, .shape = std::move(shape), .data = data};
  view.size_bytes = static_cast<size_t>(view.num_elements()) * sizeof(T);
  return view;
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

  bool Has(const std::string& name) const { return file_->tensors().count(name) > 0; }

  // `because`: why a tensor that was not taken should not be there.
  absl::Status CheckNothingLeft(absl::string_view because) const {
    if (left_.empty()) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(where_, ": tensor ", *left_.begin(), " ", because));
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

}  // namespace quern

#endif  // QUERN_CORE_ARTIFACT_ARTIFACT_FILES_H_
