#include "services/quantizer/token_file.h"

#include <absl/strings/str_cat.h>

#include <cstring>

#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/safetensors/safetensors.h"

namespace quern {
namespace {

constexpr char kTensorName[] = "ids";
constexpr char kKeyName[] = "key";
constexpr char kDigestName[] = "sha256";

}  // namespace

absl::Status SaveTokens(absl::string_view path, absl::string_view key,
                        const TokenSequences& sequences) {
  std::vector<int32_t> ids;
  for (const std::vector<int32_t>& sequence : sequences) {
    ids.insert(ids.end(), sequence.begin(), sequence.end());
  }
  const auto count = static_cast<int64_t>(sequences.size());
  const TensorView view{
      .dtype = DType::kI32,
      .shape = {count, count == 0 ? 0 : static_cast<int64_t>(sequences[0].size())},
      .data = ids.data(),
      .size_bytes = ids.size() * sizeof(int32_t)};
  return WriteSafetensors(path, {{kTensorName, view}},
                          {{kKeyName, std::string(key)}, {kDigestName, DigestOf(sequences)}});
}

absl::StatusOr<TokenSequences> LoadTokens(absl::string_view path, absl::string_view key,
                                          int num_sequences, int length) {
  ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  const auto found_key = file.metadata().find(kKeyName);
  const auto digest = file.metadata().find(kDigestName);
  const auto tensor = file.tensors().find(kTensorName);
  if (found_key == file.metadata().end() || digest == file.metadata().end() ||
      tensor == file.tensors().end()) {
    return absl::DataLossError(absl::StrCat(path, ": is no file of token ids"));
  }
  const TensorView& view = tensor->second;
  const std::vector<int64_t> shape = {num_sequences, length};
  if (found_key->second != key || view.dtype != DType::kI32 || view.shape != shape) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": was made for another task"));
  }
  TokenSequences sequences(num_sequences, std::vector<int32_t>(length));
  for (int i = 0; i < num_sequences; ++i) {
    std::memcpy(sequences[i].data(),
                static_cast<const char*>(view.data) + int64_t{i} * length * sizeof(int32_t),
                length * sizeof(int32_t));
  }
  if (DigestOf(sequences) != digest->second) {
    return absl::DataLossError(absl::StrCat(path, ": the ids do not fit their digest"));
  }
  return sequences;
}

std::string DigestOf(const TokenSequences& sequences) {
  Sha256 sha;
  sha.Update(
      absl::StrCat(sequences.size(), " ", sequences.empty() ? 0 : sequences[0].size(), "\n"));
  for (const std::vector<int32_t>& sequence : sequences) {
    sha.Update(absl::string_view(reinterpret_cast<const char*>(sequence.data()),
                                 sequence.size() * sizeof(int32_t)));
  }
  return sha.FinishHex();
}

}  // namespace quern
