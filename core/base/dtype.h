#ifndef QUERN_CORE_BASE_DTYPE_H_
#define QUERN_CORE_BASE_DTYPE_H_

#include <absl/strings/string_view.h>

#include <cstddef>
#include <optional>

namespace quern {

// Element types of tensors, named as safetensors names them.
enum class DType { kF32, kF16, kBF16, kU32, kI32, kU8, kI8, kI64, kF64, kBool, kU16, kI16, kU64 };

// Bytes of one element.
size_t SizeOf(DType dtype);

// The safetensors name, e.g. "BF16".
absl::string_view DTypeName(DType dtype);

// Inverse of DTypeName; nothing for a name that is not known.
std::optional<DType> DTypeFromName(absl::string_view name);

}  // namespace quern

#endif  // QUERN_CORE_BASE_DTYPE_H_
