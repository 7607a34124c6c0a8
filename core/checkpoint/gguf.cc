#include "core/checkpoint/gguf.h"

#include <absl/numeric/int128.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/base/utf8.h"

namespace quern {
namespace {

constexpr uint64_t kMaxValues = 65'536;
constexpr uint64_t kMaxTensors = 100'000;
constexpr uint64_t kMaxNameBytes = 512;
constexpr uint64_t kMaxStringBytes = uint64_t{16} << 20;
constexpr uint64_t kMaxArrayElements = uint64_t{16} << 20;
constexpr uint32_t kMaxDims = 4;
constexpr uint64_t kMaxDim = uint64_t{1} << 40;
constexpr uint32_t kMaxValueType = 12;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 65'536;

struct TypeName {
  uint32_t number;
  absl::string_view name;
};
constexpr TypeName kTypeNames[] = {
    {0, "F32"},     {1, "F16"},    {2, "Q4_0"},     {3, "Q4_1"},    {6, "Q5_0"},     {7, "Q5_1"},
    {8, "Q8_0"},    {9, "Q8_1"},   {10, "Q2_K"},    {11, "Q3_K"},   {12, "Q4_K"},    {13, "Q5_K"},
    {14, "Q6_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"},
    {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"}, {24, "I8"},      {25, "I16"},
    {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},  {30, "BF16"},    {34, "TQ1_0"},
    {35, "TQ2_0"},  {39, "MXFP4"}, {40, "NVFP4"},
};
constexpr absl::string_view kReadTypes = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0";

std::optional<GgmlType> ReadableType(uint32_t number) {
  const auto type = static_cast<GgmlType>(number);
  switch (type) {
    case GgmlType::kF32:
    case GgmlType::kF16:
    case GgmlType::kQ4_0:
    case GgmlType::kQ4_1:
    case GgmlType::kQ5_0:
    case GgmlType::kQ8_0:
    case GgmlType::kBF16:
      return type;
  }
  return std::nullopt;
}

// The format is little-endian, and so are the CPUs this runs on.
template <typename T>
T Load(const void* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

float LoadHalf(const uint8_t* bytes) { return HalfToFloat(Load<uint16_t>(bytes)); }

void DequantizeBlock(GgmlType type, const uint8_t* block, float* out) {
  const float scale = LoadHalf(block);
  if (type == GgmlType::kQ8_0) {
    for (int i = 0; i < 32; ++i) out[i] = scale * static_cast<int8_t>(block[2 + i]);
    return;
  }
  if (type == GgmlType::kQ5_0) {
    // The fifth bits of all 32 values, then the others as below.
    const auto high = Load<uint32_t>(block + 2);
    for (int i = 0; i < 16; ++i) {
      const int low = (block[6 + i] & 15) | static_cast<int>(high >> i & 1) << 4;
      const int second = (block[6 + i] >> 4) | static_cast<int>(high >> (i + 16) & 1) << 4;
      out[i] = scale * static_cast<float>(low - 16);
      out[i + 16] = scale * static_cast<float>(second - 16);
    }
    return;
  }
  // 32 values of 4 bits: low nibbles are the first half, high nibbles the second.
  const bool has_minimum = type == GgmlType::kQ4_1;
  const uint8_t* codes = block + (has_minimum ? 4 : 2);
  const float minimum = has_minimum ? LoadHalf(block + 2) : 0;
  const int zero_point = has_minimum ? 0 : 8;
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * static_cast<float>((codes[i] & 15) - zero_point) + minimum;
    out[i + 16] = scale * static_cast<float>((codes[i] >> 4) - zero_point) + minimum;
  }
}

}  // namespace

GgmlBlock BlockOf(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return {1, 4};
    case GgmlType::kF16:
    case GgmlType::kBF16:
      return {1, 2};
    case GgmlType::kQ4_0:
      return {32, 18};
    case GgmlType::kQ4_1:
      return {32, 20};
    case GgmlType::kQ5_0:
      return {32, 22};
    case GgmlType::kQ8_0:
      return {32, 34};
  }
  return {1, 4};
}

std::string GgmlTypeName(uint32_t type) {
  for (const TypeName& known : kTypeNames) {
    if (known.number == type) return std::string(known.name);
  }
  return absl::StrCat("number ", type);
}

void DequantizeGgml(GgmlType type, const uint8_t* blocks, int64_t num_elements, float* out) {
  const GgmlBlock block = BlockOf(type);
  for (int64_t i = 0; i < num_elements; i += block.num_elements) {
    switch (type) {
      case GgmlType::kF32:
        out[i] = Load<float>(blocks);
        break;
      case GgmlType::kF16:
        out[i] = LoadHalf(blocks);
        break;
      case GgmlType::kBF16:
        out[i] = Bfloat16ToFloat(Load<uint16_t>(blocks));
        break;
      case GgmlType::kQ4_0:
      case GgmlType::kQ4_1:
      case GgmlType::kQ5_0:
      case GgmlType::kQ8_0:
        DequantizeBlock(type, blocks, out + i);
        break;
    }
    blocks += block.size_bytes;
  }
}

int64_t GgufTensor::num_elements() const {
  int64_t product = 1;
  for (int64_t dim : shape) product *= dim;
  return product;
}

// Reads the file from front to back; never past its end.
class GgufParser {
 public:
  GgufParser(GgufFile* file, absl::string_view path)
      : file_(file), bytes_(file->bytes()), path_(path) {}

  absl::Status Parse() {
    ASSIGN_OR_RETURN(const Counts counts, ParseHeader());
    for (uint64_t i = 0; i < counts.num_values; ++i) RETURN_IF_ERROR(ParseValue());
    ASSIGN_OR_RETURN(const uint64_t alignment, Alignment());
    std::vector<Info> infos;
    for (uint64_t i = 0; i < counts.num_tensors; ++i) {
      ASSIGN_OR_RETURN(infos.emplace_back(), ParseTensorInfo(alignment));
    }
    return PlaceTensors(std::move(infos), alignment);
  }

 private:
  using ValueType = GgufFile::ValueType;
  struct Counts {
    uint64_t num_tensors;
    uint64_t num_values;
  };
  struct Info {
    std::string name;
    GgufTensor tensor;
    uint64_t offset = 0;
  };

  size_t remaining() const { return bytes_.size() - position_; }
  absl::Status Damaged(absl::string_view what) const {
    return absl::DataLossError(absl::StrCat(path_, ": byte ", position_, ": ", what));
  }
  absl::StatusOr<absl::string_view> Take(uint64_t size, absl::string_view what) {
    if (size > remaining()) {
      return Damaged(
          absl::StrCat("truncated: ", what, " takes ", size, " bytes, ", remaining(), " are left"));
    }
    const absl::string_view taken = bytes_.substr(position_, size);
    position_ += size;
    return taken;
  }
  template <typename T>
  absl::StatusOr<T> Number(absl::string_view what) {
    ASSIGN_OR_RETURN(const absl::string_view taken, Take(sizeof(T), what));
    return Load<T>(taken.data());
  }
  absl::StatusOr<absl::string_view> TakeString(uint64_t max_bytes, absl::string_view what) {
    ASSIGN_OR_RETURN(const uint64_t size, Number<uint64_t>(what));
    if (size > max_bytes) {
      return Damaged(absl::StrCat(what, " of ", size, " bytes, at most ", max_bytes, " are read"));
    }
    return Take(size, what);
  }
  absl::StatusOr<ValueType> TakeType(absl::string_view what) {
    ASSIGN_OR_RETURN(const uint32_t type, Number<uint32_t>(what));
    if (type > kMaxValueType) return Damaged(absl::StrCat(what, " ", type, " is not known"));
    return static_cast<ValueType>(type);
  }

  absl::StatusOr<Counts> ParseHeader();
  absl::Status ParseValue();
  absl::Status ParseArray(absl::string_view key, GgufFile::Value* value);
  absl::StatusOr<uint64_t> Alignment() const;
  absl::StatusOr<Info> ParseTensorInfo(uint64_t alignment);
  absl::Status ParseShape(absl::string_view what, GgufTensor* tensor);
  absl::Status PlaceTensors(std::vector<Info> infos, uint64_t alignment);

  GgufFile* file_;
  absl::string_view bytes_;
  absl::string_view path_;
  size_t position_ = 0;
};

absl::StatusOr<GgufParser::Counts> GgufParser::ParseHeader() {
  if (bytes_.substr(0, 4) != "GGUF") return Damaged("not a GGUF file: wanted the bytes \"GGUF\"");
  position_ = 4;
  ASSIGN_OR_RETURN(const uint32_t version, Number<uint32_t>("version"));
  if (version != 2 && version != 3) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": GGUF version ", version,
                     (version & 0xffff) == 0 && version != 0 ? " (a big-endian file)" : "",
                     ", supported: 2 and 3, little-endian"));
  }
  Counts counts;
  ASSIGN_OR_RETURN(counts.num_tensors, Number<uint64_t>("number of tensors"));
  ASSIGN_OR_RETURN(counts.num_values, Number<uint64_t>("number of metadata values"));
  if (counts.num_tensors > kMaxTensors || counts.num_values > kMaxValues) {
    return Damaged(absl::StrCat(counts.num_tensors, " tensors and ", counts.num_values,
                                " metadata values, at most ", kMaxTensors, " and ", kMaxValues,
                                " are read"));
  }
  return counts;
}

absl::Status GgufParser::ParseValue() {
  ASSIGN_OR_RETURN(const absl::string_view key, TakeString(kMaxNameBytes, "metadata key"));
  const std::string what = absl::StrCat("metadata ", Quoted(key));
  GgufFile::Value value;
  ASSIGN_OR_RETURN(value.type, TakeType(absl::StrCat(what, ": type")));
  if (value.type == ValueType::kArray) {
    RETURN_IF_ERROR(ParseArray(what, &value));
  } else if (value.type == ValueType::kString) {
    ASSIGN_OR_RETURN(value.bytes, TakeString(kMaxStringBytes, what));
  } else {
    ASSIGN_OR_RETURN(value.bytes, Take(GgufFile::SizeOfValue(value.type), what));
  }
  if (!file_->values_.emplace(std::string(key), value).second) {
    return Damaged(absl::StrCat(what, " occurs twice"));
  }
  return absl::OkStatus();
}

absl::Status GgufParser::ParseArray(absl::string_view what, GgufFile::Value* value) {
  ASSIGN_OR_RETURN(value->element_type, TakeType(absl::StrCat(what, ": element type")));
  ASSIGN_OR_RETURN(value->count, Number<uint64_t>(what));
  if (value->count > kMaxArrayElements) {
    return Damaged(absl::StrCat(what, " has ", value->count, " elements, at most ",
                                kMaxArrayElements, " are read"));
  }
  if (value->element_type == ValueType::kArray) {
    return Damaged(absl::StrCat(what, " is an array of arrays, which are not read"));
  }
  if (value->element_type != ValueType::kString) {
    ASSIGN_OR_RETURN(value->bytes,
                     Take(value->count * GgufFile::SizeOfValue(value->element_type), what));
    return absl::OkStatus();
  }
  const size_t begin = position_;
  for (uint64_t i = 0; i < value->count; ++i) {
    RETURN_IF_ERROR(TakeString(kMaxStringBytes, what).status());
  }
  value->bytes = bytes_.substr(begin, position_ - begin);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> GgufParser::Alignment() const {
  ASSIGN_OR_RETURN(const int64_t alignment,
                   file_->IntOr("general.alignment", 1, kMaxAlignment, kDefaultAlignment));
  if ((alignment & (alignment - 1)) != 0) {
    return absl::DataLossError(
        absl::StrCat(path_, ": general.alignment: found ", alignment, ", wanted a power of two"));
  }
  return static_cast<uint64_t>(alignment);
}

absl::Status GgufParser::ParseShape(absl::string_view what, GgufTensor* tensor) {
  ASSIGN_OR_RETURN(const uint32_t num_dims, Number<uint32_t>(what));
  if (num_dims < 1 || num_dims > kMaxDims) {
    return Damaged(absl::StrCat(what, " has ", num_dims, " dimensions, wanted 1 to ", kMaxDims));
  }
  for (uint32_t i = 0; i < num_dims; ++i) {
    ASSIGN_OR_RETURN(const uint64_t dim, Number<uint64_t>(what));
    if (dim < 1 || dim > kMaxDim) {
      return Damaged(absl::StrCat(what, " has a dimension of ", dim, ", wanted 1 to 2^40"));
    }
    tensor->shape.push_back(static_cast<int64_t>(dim));
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufParser::Info> GgufParser::ParseTensorInfo(uint64_t alignment) {
  Info info;
  ASSIGN_OR_RETURN(const absl::string_view name, TakeString(kMaxNameBytes, "tensor name"));
  info.name = std::string(name);
  const std::string what = absl::StrCat("tensor ", Quoted(name));
  GgufTensor& tensor = info.tensor;
  RETURN_IF_ERROR(ParseShape(what, &tensor));
  ASSIGN_OR_RETURN(const uint32_t type, Number<uint32_t>(what));
  const std::optional<GgmlType> readable = ReadableType(type);
  if (!readable.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", what, ": type ", GgmlTypeName(type),
                                                   ", supported: ", kReadTypes));
  }
  tensor.type = *readable;
  const GgmlBlock block = BlockOf(tensor.type);
  if (tensor.shape[0] % block.num_elements != 0) {
    return Damaged(absl::StrCat(what, ": rows of ", tensor.shape[0], " elements are not whole ",
                                GgmlTypeName(type), " blocks of ", block.num_elements));
  }
  absl::uint128 size = static_cast<uint64_t>(block.size_bytes);
  size *= static_cast<uint64_t>(tensor.shape[0] / block.num_elements);
  for (size_t i = 1; i < tensor.shape.size() && size <= bytes_.size(); ++i) {
    size *= static_cast<uint64_t>(tensor.shape[i]);
  }
  if (size > bytes_.size()) {
    return Damaged(absl::StrCat(what, " is larger than the file of ", bytes_.size(), " bytes"));
  }
  tensor.size_bytes = static_cast<size_t>(size);
  std::reverse(tensor.shape.begin(), tensor.shape.end());
  ASSIGN_OR_RETURN(info.offset, Number<uint64_t>(what));
  if (info.offset % alignment != 0) {
    return Damaged(
        absl::StrCat(what, ": offset ", info.offset, " is not a multiple of ", alignment));
  }
  return info;
}

absl::Status GgufParser::PlaceTensors(std::vector<Info> infos, uint64_t alignment) {
  if (infos.empty()) return absl::OkStatus();
  const uint64_t begin = (position_ + alignment - 1) / alignment * alignment;
  const uint64_t data_bytes = begin <= bytes_.size() ? bytes_.size() - begin : 0;
  std::sort(infos.begin(), infos.end(),
            [](const Info& a, const Info& b) { return a.offset < b.offset; });
  uint64_t end = 0;
  for (Info& info : infos) {
    const std::string what = absl::StrCat("tensor ", Quoted(info.name));
    if (info.offset > data_bytes || info.tensor.size_bytes > data_bytes - info.offset) {
      return Damaged(absl::StrCat("truncated: ", what, " takes ", info.tensor.size_bytes,
                                  " bytes at offset ", info.offset, " of the data, which has ",
                                  data_bytes));
    }
    if (info.offset < end) return Damaged(absl::StrCat(what, " overlaps the one before it"));
    end = info.offset + info.tensor.size_bytes;
    info.tensor.data = reinterpret_cast<const uint8_t*>(bytes_.data()) + begin + info.offset;
    if (!file_->tensors_.emplace(std::move(info.name), std::move(info.tensor)).second) {
      return Damaged(absl::StrCat(what, " occurs twice"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufFile> GgufFile::Open(absl::string_view path) {
  ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  GgufFile file(std::move(mapped));
  file.path_ = std::string(path);
  RETURN_IF_ERROR(GgufParser(&file, path).Parse());
  return file;
}

size_t GgufFile::SizeOfValue(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
    case ValueType::kInt8:
    case ValueType::kBool:
      return 1;
    case ValueType::kUint16:
    case ValueType::kInt16:
      return 2;
    case ValueType::kUint32:
    case ValueType::kInt32:
    case ValueType::kFloat32:
      return 4;
    case ValueType::kUint64:
    case ValueType::kInt64:
    case ValueType::kFloat64:
      return 8;
    case ValueType::kString:
    case ValueType::kArray:
      return 0;
  }
  return 0;
}

std::optional<int64_t> GgufFile::IntOf(ValueType type, const char* bytes) {
  switch (type) {
    case ValueType::kUint8:
      return Load<uint8_t>(bytes);
    case ValueType::kInt8:
      return Load<int8_t>(bytes);
    case ValueType::kUint16:
      return Load<uint16_t>(bytes);
    case ValueType::kInt16:
      return Load<int16_t>(bytes);
    case ValueType::kUint32:
      return Load<uint32_t>(bytes);
    case ValueType::kInt32:
      return Load<int32_t>(bytes);
    case ValueType::kInt64:
      return Load<int64_t>(bytes);
    case ValueType::kUint64: {
      const uint64_t value = Load<uint64_t>(bytes);
      if (value > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

const GgufFile::Value* GgufFile::Find(absl::string_view key) const {
  const auto it = values_.find(std::string(key));
  return it == values_.end() ? nullptr : &it->second;
}

std::string GgufFile::Describe(const Value* value) const {
  if (value == nullptr) return "nothing";
  if (value->type == ValueType::kArray) return absl::StrCat("an array of ", value->count);
  if (value->type == ValueType::kString) return Quoted(value->bytes);
  if (value->type == ValueType::kBool) return value->bytes[0] == 0 ? "false" : "true";
  if (value->type == ValueType::kFloat32) return absl::StrCat(Load<float>(value->bytes.data()));
  if (value->type == ValueType::kFloat64) return absl::StrCat(Load<double>(value->bytes.data()));
  const std::optional<int64_t> number = IntOf(value->type, value->bytes.data());
  return number.has_value() ? absl::StrCat(*number) : "an integer above 2^63";
}

absl::Status GgufFile::Wrong(absl::string_view key, absl::string_view wanted) const {
  return absl::InvalidArgumentError(
      absl::StrCat(path_, ": ", key, ": found ", Describe(Find(key)), ", wanted ", wanted));
}

absl::StatusOr<std::string> GgufFile::String(absl::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr || value->type != ValueType::kString) return Wrong(key, "a string");
  return std::string(value->bytes);
}

absl::StatusOr<std::string> GgufFile::StringOr(absl::string_view key,
                                               absl::string_view fallback) const {
  if (!Has(key)) return std::string(fallback);
  return String(key);
}

absl::StatusOr<int64_t> GgufFile::Int(absl::string_view key, int64_t min, int64_t max) const {
  const std::string wanted = absl::StrFormat("an integer in [%d, %d]", min, max);
  const Value* value = Find(key);
  if (value == nullptr || SizeOfValue(value->type) == 0) return Wrong(key, wanted);
  const std::optional<int64_t> number = IntOf(value->type, value->bytes.data());
  if (!number.has_value() || *number < min || *number > max) return Wrong(key, wanted);
  return *number;
}

absl::StatusOr<int64_t> GgufFile::IntOr(absl::string_view key, int64_t min, int64_t max,
                                        int64_t fallback) const {
  if (!Has(key)) return fallback;
  return Int(key, min, max);
}

absl::StatusOr<double> GgufFile::Number(absl::string_view key, double min, double max) const {
  const std::string wanted = absl::StrFormat("a number in [%g, %g]", min, max);
  const Value* value = Find(key);
  if (value == nullptr) return Wrong(key, wanted);
  double number = NAN;
  if (value->type == ValueType::kFloat32) number = Load<float>(value->bytes.data());
  if (value->type == ValueType::kFloat64) number = Load<double>(value->bytes.data());
  if (!(number >= min && number <= max)) return Wrong(key, wanted);
  return number;
}

absl::StatusOr<double> GgufFile::NumberOr(absl::string_view key, double min, double max,
                                          double fallback) const {
  if (!Has(key)) return fallback;
  return Number(key, min, max);
}

absl::StatusOr<bool> GgufFile::BoolOr(absl::string_view key, bool fallback) const {
  const Value* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->type != ValueType::kBool || (value->bytes[0] != 0 && value->bytes[0] != 1)) {
    return Wrong(key, "true or false");
  }
  return value->bytes[0] == 1;
}

absl::StatusOr<const GgufFile::Value*> GgufFile::Array(absl::string_view key,
                                                       absl::string_view wanted) const {
  const Value* value = Find(key);
  if (value == nullptr || value->type != ValueType::kArray) return Wrong(key, wanted);
  return value;
}

absl::StatusOr<std::vector<absl::string_view>> GgufFile::Strings(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, Array(key, "an array of strings"));
  if (value->element_type != ValueType::kString) return Wrong(key, "an array of strings");
  std::vector<absl::string_view> strings;
  strings.reserve(value->count);
  absl::string_view rest = value->bytes;
  for (uint64_t i = 0; i < value->count; ++i) {
    // ParseArray has walked the same lengths.
    const auto size = static_cast<size_t>(Load<uint64_t>(rest.data()));
    strings.push_back(rest.substr(sizeof(uint64_t), size));
    rest.remove_prefix(sizeof(uint64_t) + size);
  }
  return strings;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::Ints(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, Array(key, "an array of integers"));
  const size_t size = SizeOfValue(value->element_type);
  std::vector<int64_t> numbers;
  numbers.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    std::optional<int64_t> number;
    if (size != 0) number = IntOf(value->element_type, value->bytes.data() + i * size);
    if (!number.has_value()) return Wrong(key, "an array of integers");
    numbers.push_back(*number);
  }
  return numbers;
}

absl::StatusOr<std::vector<float>> GgufFile::Floats(absl::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, Array(key, "an array of 32-bit floats"));
  if (value->element_type != ValueType::kFloat32) return Wrong(key, "an array of 32-bit floats");
  std::vector<float> numbers(value->count);
  if (!numbers.empty()) {
    std::memcpy(numbers.data(), value->bytes.data(), numbers.size() * sizeof(float));
  }
  return numbers;
}

}  // namespace quern
