#include "core/base/dtype.h"

namespace quern {
namespace {

struct Row {
  DType dtype;
  const char* name;
  size_t size_bytes;
};

constexpr Row kRows[] = {
    {DType::kF32, "F32", 4},   {DType::kF16, "F16", 2}, {DType::kBF16, "BF16", 2},
    {DType::kU32, "U32", 4},   {DType::kI32, "I32", 4}, {DType::kU8, "U8", 1},
    {DType::kI8, "I8", 1},     {DType::kI64, "I64", 8}, {DType::kF64, "F64", 8},
    {DType::kBool, "BOOL", 1}, {DType::kU16, "U16", 2}, {DType::kI16, "I16", 2},
    {DType::kU64, "U64", 8},
};

const Row& Find(DType dtype) {
  for (const Row& row : kRows) {
    if (row.dtype == dtype) return row;
  }
  return kRows[0];
}

}  // namespace

size_t SizeOf(DType dtype) { return Find(dtype).size_bytes; }

absl::string_view DTypeName(DType dtype) { return Find(dtype).name; }

std::optional<DType> DTypeFromName(absl::string_view name) {
  for (const Row& row : kRows) {
    if (name == row.name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace quern
