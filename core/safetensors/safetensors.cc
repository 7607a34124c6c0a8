#include "core/safetensors/safetensors.h"

#include <absl/numeric/int128.h>
#include <absl/strings/str_cat.h>
#include <absl/types/span.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <optional>
#include <utility>

#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "core/base/utf8.h"

namespace quern {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = uint64_t{16} << 20;
constexpr size_t kMaxTensors = 100'000;
constexpr size_t kMaxNameBytes = 512;
constexpr size_t kMaxDims = 8;
constexpr uint64_t kMaxDim = uint64_t{1} << 40;
// {"name": {"shape": [...]}} and the same of __metadata__.
constexpr int kMaxDepth = 4;
constexpr size_t kDataAlignment = 64;
constexpr absl::string_view kMetadataKey = "__metadata__";

absl::Status Damaged(absl::string_view path, absl::string_view what) {
  return absl::DataLossError(absl::StrCat(path, ": ", what));
}

uint64_t ReadLittleEndian64(const uint8_t* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

// Why `name` may not be a tensor's, or empty. Control characters would go into logs.
std::string NameFault(absl::string_view name) {
  if (name.empty()) return "tensor name is empty";
  if (!IsUtf8(name)) return absl::StrCat("tensor name ", Quoted(name), " is not UTF-8");
  if (name.size() > kMaxNameBytes) {
    return absl::StrCat("tensor name ", Quoted(name), " has ", name.size(), " bytes, at most ",
                        kMaxNameBytes, " are read");
  }
  for (char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      return absl::StrCat("tensor name ", Quoted(name), " has control characters");
    }
  }
  return "";
}

// The product of `shape` and the element size, or nothing when it does not fit 63 bits.
std::optional<uint64_t> CheckedBytes(absl::Span<const int64_t> shape, DType dtype) {
  absl::uint128 bytes = SizeOf(dtype);
  for (int64_t dim : shape) {
    bytes *= static_cast<uint64_t>(dim);
    if (bytes > absl::uint128(INT64_MAX)) return std::nullopt;
  }
  return static_cast<uint64_t>(bytes);
}

struct Entry {
  std::string name;
  TensorView view;  // data not set yet
  uint64_t begin = 0;
  uint64_t end = 0;
};

absl::StatusOr<std::vector<int64_t>> ReadShape(const JsonObject& tensor) {
  ASSIGN_OR_RETURN(const Json* dims, tensor.Array("shape"));
  if (dims->size() > kMaxDims) {
    return absl::DataLossError(absl::StrCat(tensor.where(), ": shape has ", dims->size(),
                                            " dimensions, at most ", kMaxDims, " are read"));
  }
  std::vector<int64_t> shape;
  for (const Json& dim : *dims) {
    if (!dim.is_number_unsigned() || dim.get<uint64_t>() < 1 || dim.get<uint64_t>() > kMaxDim) {
      return absl::DataLossError(absl::StrCat(tensor.where(), ": shape: found ",
                                              dim.dump().substr(0, 80),
                                              ", wanted integers in [1, 2^40]"));
    }
    shape.push_back(dim.get<int64_t>());
  }
  return shape;
}

absl::StatusOr<Entry> ReadEntry(const std::string& name, const Json& value,
                                absl::string_view path) {
  ASSIGN_OR_RETURN(const JsonObject tensor,
                   JsonObject::Of(value, absl::StrCat(path, ": tensor ", Quoted(name))));
  for (const auto& [key, unused] : value.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return Damaged(tensor.where(), absl::StrCat("key ", Quoted(key), " is not known"));
    }
  }
  Entry entry;
  entry.name = name;
  ASSIGN_OR_RETURN(const std::string dtype_name, tensor.String("dtype"));
  const std::optional<DType> dtype = DTypeFromName(dtype_name);
  if (!dtype.has_value()) {
    return Damaged(tensor.where(), absl::StrCat("dtype ", Quoted(dtype_name), " is not known"));
  }
  entry.view.dtype = *dtype;
  ASSIGN_OR_RETURN(entry.view.shape, ReadShape(tensor));
  ASSIGN_OR_RETURN(const Json* offsets, tensor.Array("data_offsets"));
  if (offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return Damaged(tensor.where(), "data_offsets are not two non-negative integers");
  }
  entry.begin = (*offsets)[0].get<uint64_t>();
  entry.end = (*offsets)[1].get<uint64_t>();
  const std::optional<uint64_t> wanted = CheckedBytes(entry.view.shape, *dtype);
  if (!wanted.has_value()) return Damaged(tensor.where(), "shape has more than 2^63 bytes");
  if (entry.begin > entry.end || entry.end - entry.begin != *wanted) {
    return Damaged(tensor.where(),
                   absl::StrCat("data_offsets [", entry.begin, ", ", entry.end,
                                "] do not have the ", *wanted, " bytes of dtype and shape"));
  }
  entry.view.size_bytes = *wanted;
  return entry;
}

absl::StatusOr<std::map<std::string, std::string>> ReadMetadata(const Json& value,
                                                                absl::string_view path) {
  if (!value.is_object()) return Damaged(path, "__metadata__ is not an object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) {
      return Damaged(path, absl::StrCat("__metadata__ ", Quoted(key), " is not a string"));
    }
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

// The header's JSON text, of a file that is long enough for it.
absl::StatusOr<absl::string_view> HeaderText(absl::string_view file, absl::string_view path) {
  if (file.size() < kLengthBytes) {
    return Damaged(path, absl::StrCat("not a safetensors file: ", file.size(),
                                      " bytes, the header's length alone takes 8"));
  }
  const uint64_t length = ReadLittleEndian64(reinterpret_cast<const uint8_t*>(file.data()));
  if (length > kMaxHeaderBytes) {
    return Damaged(path, absl::StrCat("not a safetensors file: header length ", length,
                                      ", at most ", kMaxHeaderBytes, " is read"));
  }
  if (length > file.size() - kLengthBytes) {
    return Damaged(path, absl::StrCat("truncated: header length ", length, ", the file has ",
                                      file.size() - kLengthBytes, " bytes after it"));
  }
  const absl::string_view text = file.substr(kLengthBytes, static_cast<size_t>(length));
  if (text.empty() || text[0] != '{') {
    return Damaged(path, "not a safetensors file: the header does not start with '{'");
  }
  return text;
}

// Contiguous from 0, without overlap, to exactly the end of the data.
absl::Status CheckCoverage(std::vector<Entry>& entries, uint64_t data_bytes,
                           absl::string_view path) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
  uint64_t end = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != end) {
      return Damaged(path, absl::StrCat("tensor ", Quoted(entry.name), " begins at ", entry.begin,
                                        entry.begin < end ? ", overlapping" : ", leaving a gap to",
                                        " what ends at ", end));
    }
    end = entry.end;
  }
  if (end != data_bytes) {
    return Damaged(path, absl::StrCat("tensors take ", end, " bytes, the file has ", data_bytes,
                                      end > data_bytes ? " (truncated)" : " (bytes of no tensor)"));
  }
  return absl::OkStatus();
}

std::string HeaderOf(const std::map<std::string, TensorView>& tensors,
                     const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  uint64_t offset = 0;
  for (const auto& [name, view] : tensors) {
    header[name] = {{"dtype", std::string(DTypeName(view.dtype))},
                    {"shape", view.shape},
                    {"data_offsets", {offset, offset + view.size_bytes}}};
    offset += view.size_bytes;
  }
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;
  std::string text = DumpCanonicalJson(header);
  const size_t used = (kLengthBytes + text.size()) % kDataAlignment;
  if (used != 0) text.append(kDataAlignment - used, ' ');
  std::string bytes;
  for (int i = 0; i < 8; ++i) {
    bytes.push_back(static_cast<char>(static_cast<uint64_t>(text.size()) >> (8 * i) & 0xff));
  }
  return bytes + text;
}

absl::Status CheckWritable(absl::string_view path, const std::map<std::string, TensorView>& tensors,
                           const std::map<std::string, std::string>& metadata) {
  if (tensors.size() > kMaxTensors) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", tensors.size(), " tensors, at most ", kMaxTensors));
  }
  absl::uint128 total = 0;
  for (const auto& [name, view] : tensors) {
    const std::string fault = name == kMetadataKey ? "reserved tensor name" : NameFault(name);
    if (!fault.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", fault));
    const bool in_range = view.shape.size() <= kMaxDims &&
                          std::all_of(view.shape.begin(), view.shape.end(), [](int64_t dim) {
                            return dim >= 1 && static_cast<uint64_t>(dim) <= kMaxDim;
                          });
    if (!in_range || CheckedBytes(view.shape, view.dtype) != view.size_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", Quoted(name), ": shape and ", view.size_bytes,
                       " bytes do not fit each other or the format's limits"));
    }
    total += view.size_bytes;
  }
  if (total > absl::uint128(INT64_MAX)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": more than 2^63 bytes of data"));
  }
  for (const auto& [key, text] : metadata) {
    if (!IsUtf8(key) || !IsUtf8(text)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": metadata ", Quoted(key), " is not UTF-8"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(absl::string_view path) {
  ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  SafetensorsFile file(std::move(mapped));
  ASSIGN_OR_RETURN(const absl::string_view text, HeaderText(file.bytes(), path));
  absl::StatusOr<Json> header =
      ParseJson(text, absl::StrCat(path, ": header"), {.max_depth = kMaxDepth});
  if (!header.ok()) return absl::DataLossError(header.status().message());
  if (!header->is_object()) return Damaged(path, "header is not an object");
  if (header->size() > kMaxTensors) {
    return Damaged(path,
                   absl::StrCat(header->size(), " tensors, at most ", kMaxTensors, " are read"));
  }
  std::vector<Entry> entries;
  for (const auto& [name, value] : header->items()) {
    if (name == kMetadataKey) {
      ASSIGN_OR_RETURN(file.metadata_, ReadMetadata(value, path));
      continue;
    }
    if (const std::string fault = NameFault(name); !fault.empty()) return Damaged(path, fault);
    absl::StatusOr<Entry> entry = ReadEntry(name, value, path);
    if (!entry.ok()) return absl::DataLossError(entry.status().message());
    entries.push_back(*std::move(entry));
  }
  const absl::string_view data = file.bytes().substr(kLengthBytes + text.size());
  RETURN_IF_ERROR(CheckCoverage(entries, data.size(), path));
  for (Entry& entry : entries) {
    entry.view.data = data.data() + entry.begin;
    file.tensors_.emplace(std::move(entry.name), std::move(entry.view));
  }
  return file;
}

absl::Status WriteSafetensors(absl::string_view path,
                              const std::map<std::string, TensorView>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  RETURN_IF_ERROR(CheckWritable(path, tensors, metadata));
  const std::string header = HeaderOf(tensors, metadata);
  if (header.size() - kLengthBytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": header of ", header.size(), " bytes, at most ", kMaxHeaderBytes));
  }
  ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(path));
  RETURN_IF_ERROR(file.Append(header));
  for (const auto& [name, view] : tensors) {
    RETURN_IF_ERROR(
        file.Append(absl::string_view(static_cast<const char*>(view.data), view.size_bytes)));
  }
  return file.Commit();
}

}  // namespace quern
