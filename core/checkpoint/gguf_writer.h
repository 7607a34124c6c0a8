#ifndef QUERN_CORE_CHECKPOINT_GGUF_WRITER_H_
#define QUERN_CORE_CHECKPOINT_GGUF_WRITER_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <vector>

namespace quern {

// Builds the bytes of a GGUF file, or of what stands before its tensors' data: what is put in is
// written, unchecked. Numbers of types are those of the format (gguf.h of llama.cpp).
class GgufWriter {
 public:
  explicit GgufWriter(uint32_t version = 3) : version_(version) {}

  void String(absl::string_view key, absl::string_view value);
  void Uint32(absl::string_view key, uint32_t value);
  void Float32(absl::string_view key, float value);
  void Bool(absl::string_view key, bool value);
  void Strings(absl::string_view key, const std::vector<std::string>& values);
  void Int32s(absl::string_view key, const std::vector<int32_t>& values);
  void Float32s(absl::string_view key, const std::vector<float>& values);
  // Any value: its type number and its bytes as they stand in the file.
  void Raw(absl::string_view key, uint32_t type, absl::string_view bytes);

  // `shape` in GGUF's order: fastest dimension first. Data is placed at the next multiple of 32.
  void Tensor(absl::string_view name, const std::vector<uint64_t>& shape, uint32_t type,
              absl::string_view data);
  // The same with an offset of the caller's choice and no data of its own.
  void TensorAt(absl::string_view name, const std::vector<uint64_t>& shape, uint32_t type,
                uint64_t offset);

  // Replaces the true counts in the header.
  void set_num_tensors(uint64_t count) { num_tensors_ = count; }
  void set_num_values(uint64_t count) { num_values_ = count; }

  std::string Finish() const;

 private:
  uint32_t version_;
  uint64_t num_tensors_ = 0;
  uint64_t num_values_ = 0;
  std::string values_;
  std::string infos_;
  std::string data_;
};

// Little-endian bytes of a number, for Raw.
template <typename T>
std::string LittleEndian(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

}  // namespace quern

#endif  // QUERN_CORE_CHECKPOINT_GGUF_WRITER_H_
