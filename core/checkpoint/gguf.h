#ifndef QUERN_CORE_CHECKPOINT_GGUF_H_
#define QUERN_CORE_CHECKPOINT_GGUF_H_

// The hardened reader of GGUF files, versions 2 and 3, little-endian (format: ggml's docs/gguf.md).
// Knows nothing of models: keys, values and tensors as they stand in the file.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/file.h"

namespace quern {

// The tensor types that are read; numbers are the file's.
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ8_0 = 8,
  kBF16 = 30
};

// Elements and bytes of one block of `type`; {1, element size} for plain types.
struct GgmlBlock {
  int64_t num_elements;
  int64_t size_bytes;
};
GgmlBlock BlockOf(GgmlType type);

// The name in the format's documents, e.g. "Q4_1". Also for types that are not read ("Q6_K").
std::string GgmlTypeName(uint32_t type);

// Writes `num_elements` (whole blocks) from `blocks` as floats. Formulas: ggml-quants.c,
// dequantize_row_*: Q8_0 d * q; Q4_0 d * (q - 8); Q5_0 d * (q - 16); Q4_1 d * q + m, with d and m
// in F16.
void DequantizeGgml(GgmlType type, const uint8_t* blocks, int64_t num_elements, float* out);

// How converters write that a special token does not exist.
inline constexpr uint32_t kNoGgufToken = UINT32_MAX;

struct GgufTensor {
  GgmlType type = GgmlType::kF32;
  std::vector<int64_t> shape;  // slowest dimension first, as Hugging Face writes it
  const uint8_t* data = nullptr;
  size_t size_bytes = 0;
  int64_t num_elements() const;
};

// A mapped file whose structure has been checked: counts, strings and arrays within the file and
// within bounds, no key or tensor twice, tensors aligned, inside the file, without overlap.
// Movable; thread-safe to read. Everything returned is valid as long as this object.
class GgufFile {
 public:
  // DATA_LOSS naming file and place; INVALID_ARGUMENT for a version or tensor type that is not
  // supported, by name.
  static absl::StatusOr<GgufFile> Open(absl::string_view path);

  const std::string& path() const { return path_; }
  absl::string_view bytes() const { return file_.bytes(); }
  const std::map<std::string, GgufTensor, std::less<>>& tensors() const { return tensors_; }

  bool Has(absl::string_view key) const { return Find(key) != nullptr; }
  // Each fails with INVALID_ARGUMENT naming file, key, what was found and what was wanted when the
  // key is missing, of another type or out of range; those with a fallback only in the latter two
  // cases.
  absl::StatusOr<std::string> String(absl::string_view key) const;
  absl::StatusOr<std::string> StringOr(absl::string_view key, absl::string_view fallback) const;
  absl::StatusOr<int64_t> Int(absl::string_view key, int64_t min, int64_t max) const;
  absl::StatusOr<int64_t> IntOr(absl::string_view key, int64_t min, int64_t max,
                                int64_t fallback) const;
  // Finite, in [min, max].
  absl::StatusOr<double> Number(absl::string_view key, double min, double max) const;
  absl::StatusOr<double> NumberOr(absl::string_view key, double min, double max,
                                  double fallback) const;
  absl::StatusOr<bool> BoolOr(absl::string_view key, bool fallback) const;
  // Arrays, read anew at each call. Bytes of strings are as in the file: perhaps not UTF-8.
  absl::StatusOr<std::vector<absl::string_view>> Strings(absl::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> Ints(absl::string_view key) const;
  absl::StatusOr<std::vector<float>> Floats(absl::string_view key) const;

  // INVALID_ARGUMENT "path: key: found X, wanted `wanted`".
  absl::Status Wrong(absl::string_view key, absl::string_view wanted) const;

 private:
  friend class GgufParser;

  // Types of metadata values, as in the file.
  enum class ValueType : uint32_t {
    kUint8,
    kInt8,
    kUint16,
    kInt16,
    kUint32,
    kInt32,
    kFloat32,
    kBool,
    kString,
    kArray,
    kUint64,
    kInt64,
    kFloat64
  };
  struct Value {
    ValueType type = ValueType::kUint8;
    ValueType element_type = ValueType::kUint8;  // of an array
    uint64_t count = 1;                          // elements of an array
    absl::string_view bytes;                     // strings with their length, arrays without head
  };
  // Bytes of a number or bool; 0 for strings and arrays.
  static size_t SizeOfValue(ValueType type);
  static std::optional<int64_t> IntOf(ValueType type, const char* bytes);

  explicit GgufFile(MappedFile file) : file_(std::move(file)) {}
  const Value* Find(absl::string_view key) const;
  // The array of `key`, or an error. `wanted` goes into the message.
  absl::StatusOr<const Value*> Array(absl::string_view key, absl::string_view wanted) const;
  std::string Describe(const Value* value) const;

  MappedFile file_;
  std::string path_;
  std::map<std::string, Value, std::less<>> values_;
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

}  // namespace quern

#endif  // QUERN_CORE_CHECKPOINT_GGUF_H_
