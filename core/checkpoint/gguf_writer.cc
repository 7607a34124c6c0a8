#include "core/checkpoint/gguf_writer.h"

#include <absl/strings/str_cat.h>

namespace quern {
namespace {

enum ValueType : uint32_t {
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9
};

std::string Prefixed(absl::string_view text) {
  return LittleEndian<uint64_t>(text.size()) + std::string(text);
}

template <typename T>
std::string ArrayOf(uint32_t type, const std::vector<T>& values) {
  std::string bytes = LittleEndian(type) + LittleEndian<uint64_t>(values.size());
  for (const T& value : values) bytes += LittleEndian(value);
  return bytes;
}

}  // namespace

void GgufWriter::Raw(absl::string_view key, uint32_t type, absl::string_view bytes) {
  absl::StrAppend(&values_, Prefixed(key), LittleEndian(type), bytes);
  ++num_values_;
}

void GgufWriter::String(absl::string_view key, absl::string_view value) {
  Raw(key, kString, Prefixed(value));
}
void GgufWriter::Uint32(absl::string_view key, uint32_t value) {
  Raw(key, kUint32, LittleEndian(value));
}
void GgufWriter::Float32(absl::string_view key, float value) {
  Raw(key, kFloat32, LittleEndian(value));
}
void GgufWriter::Bool(absl::string_view key, bool value) {
  Raw(key, kBool, LittleEndian<uint8_t>(value));
}
void GgufWriter::Int32s(absl::string_view key, const std::vector<int32_t>& values) {
  Raw(key, kArray, ArrayOf(kInt32, values));
}
void GgufWriter::Float32s(absl::string_view key, const std::vector<float>& values) {
  Raw(key, kArray, ArrayOf(kFloat32, values));
}
void GgufWriter::Strings(absl::string_view key, const std::vector<std::string>& values) {
  std::string bytes = LittleEndian<uint32_t>(kString) + LittleEndian<uint64_t>(values.size());
  for (const std::string& value : values) bytes += Prefixed(value);
  Raw(key, kArray, bytes);
}

void GgufWriter::Tensor(absl::string_view name, const std::vector<uint64_t>& shape, uint32_t type,
                        absl::string_view data) {
  data_.resize((data_.size() + 31) / 32 * 32, '\0');
  TensorAt(name, shape, type, data_.size());
  absl::StrAppend(&data_, data);
}

void GgufWriter::TensorAt(absl::string_view name, const std::vector<uint64_t>& shape, uint32_t type,
                          uint64_t offset) {
  absl::StrAppend(&infos_, Prefixed(name), LittleEndian(static_cast<uint32_t>(shape.size())));
  for (uint64_t dim : shape) infos_ += LittleEndian(dim);
  absl::StrAppend(&infos_, LittleEndian(type), LittleEndian(offset));
  ++num_tensors_;
}

std::string GgufWriter::Finish() const {
  std::string bytes = absl::StrCat("GGUF", LittleEndian(version_), LittleEndian(num_tensors_),
                                   LittleEndian(num_values_), values_, infos_);
  if (!data_.empty()) bytes.resize((bytes.size() + 31) / 32 * 32, '\0');
  return bytes + data_;
}

}  // namespace quern
