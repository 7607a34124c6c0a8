#ifndef QUERN_CORE_SAFETENSORS_SAFETENSORS_H_
#define QUERN_CORE_SAFETENSORS_SAFETENSORS_H_

// The hardened reader and the writer of safetensors files (8-byte little-endian header length,
// JSON header, data), used for checkpoints, artifacts and resume files alike.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <functional>
#include <map>
#include <string>
#include <utility>

#include "core/base/file.h"
#include "core/base/tensor_view.h"

namespace quern {

// A mapped file whose header has been checked: at most 16 MiB, 100,000 tensors, names of at most
// 512 bytes without control characters, at most 8 dimensions of 1 to 2^40, known dtypes, checked
// products, offsets contiguous, without overlap, covering the data exactly. Movable; thread-safe to
// read.
class SafetensorsFile {
 public:
  // DATA_LOSS naming the file and what is wrong.
  static absl::StatusOr<SafetensorsFile> Open(absl::string_view path);

  // By name, sorted. Views stay valid as long as this object.
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  // The `__metadata__` strings.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // The whole file, e.g. for its digest.
  absl::string_view bytes() const { return file_.bytes(); }

 private:
  explicit SafetensorsFile(MappedFile file) : file_(std::move(file)) {}
  MappedFile file_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Writes tensors in the order of the map, each aligned to 64 bytes by the header's padding for
// the first and by size for the rest (no gaps: the format forbids them). Deterministic: equal
// input, equal bytes. Tensors are written from where they lie. Written to a temporary name,
// fsynced, renamed; the directory is fsynced. An error leaves the old content. INVALID_ARGUMENT
// when the reader above would refuse the file.
absl::Status WriteSafetensors(absl::string_view path,
                              const std::map<std::string, TensorView>& tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace quern

#endif  // QUERN_CORE_SAFETENSORS_SAFETENSORS_H_
