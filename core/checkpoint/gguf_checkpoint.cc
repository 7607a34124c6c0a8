#include "core/checkpoint/gguf_checkpoint.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/mutex.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/base/utf8.h"
#include "core/checkpoint/gguf.h"
#include "core/checkpoint/gguf_config.h"
#include "core/checkpoint/gguf_vocabulary.h"
#include "core/model/tensor_names.h"

namespace quern {
namespace {

class GgufCheckpoint final : public Checkpoint {
 public:
  explicit GgufCheckpoint(GgufFile file) : file_(std::move(file)) {}

  absl::Status Init(int max_position_embeddings);

  absl::StatusOr<TensorView> Tensor(absl::string_view name) const override;
  absl::StatusOr<TensorView> TensorShape(absl::string_view name) const override;
  absl::StatusOr<std::string> DigestHex() const override { return Sha256Hex(file_.bytes()); }
  int64_t weight_bytes() const override { return weight_bytes_; }

 private:
  struct Entry {
    const GgufTensor* source = nullptr;
    bool interleaved = false;  // rows need reordering
    Mutex mutex;
    // The converted values, once somebody asked.
    std::unique_ptr<uint8_t[]> converted ABSL_GUARDED_BY(mutex);
  };

  absl::Status FindTensors();
  absl::Status ReadTemplate();
  void Convert(const Entry& entry, uint8_t* out) const;

  const GgufFile file_;
  int64_t weight_bytes_ = 0;
  mutable std::map<std::string, Entry, std::less<>> entries_;
};

bool IsBlockQuantized(GgmlType type) { return BlockOf(type).num_elements > 1; }

DType ServedType(GgmlType type) {
  if (type == GgmlType::kF16) return DType::kF16;
  if (type == GgmlType::kBF16) return DType::kBF16;
  return DType::kF32;
}

absl::Status GgufCheckpoint::FindTensors() {
  const bool interleaved = HasInterleavedRotaryRows(config_);
  std::set<absl::string_view> unused;
  for (const auto& [name, tensor] : file_.tensors()) unused.insert(name);
  for (const TensorSpec& spec : ModelTensors(config_)) {
    const std::string name = GgufTensorName(spec.name);
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end()) {
      return absl::DataLossError(
          absl::StrCat(file_.path(), ": tensor ", name, " (", spec.name, ") is missing"));
    }
    const GgufTensor& tensor = found->second;
    if (tensor.shape != spec.shape) {
      return absl::DataLossError(absl::StrCat(
          file_.path(), ": tensor ", name, ": found shape [", absl::StrJoin(tensor.shape, ", "),
          "], wanted [", absl::StrJoin(spec.shape, ", "), "] (", spec.name, ")"));
    }
    // The format's own tools never do that, and Convert works on whole rows.
    if (tensor.shape.size() == 1 && IsBlockQuantized(tensor.type)) {
      return absl::InvalidArgumentError(absl::StrCat(
          file_.path(), ": tensor ", name, ": a vector of type ",
          GgmlTypeName(static_cast<uint32_t>(tensor.type)), ", supported: F32, F16, BF16"));
    }
    unused.erase(name);
    weight_bytes_ += static_cast<int64_t>(tensor.size_bytes);
    Entry& entry = entries_[spec.name];
    entry.source = &tensor;
    entry.interleaved = interleaved && (absl::StrContains(spec.name, ".q_proj.") ||
                                        absl::StrContains(spec.name, ".k_proj."));
  }
  unused.erase(kGgufRopeFactorsName);
  if (!unused.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": tensor ", Quoted(*unused.begin()), " (of ", unused.size(),
                     ") is no part of a ", config_.model_type, " model with this configuration"));
  }
  return absl::OkStatus();
}

absl::Status GgufCheckpoint::ReadTemplate() {
  constexpr absl::string_view kKey = "tokenizer.chat_template";
  ASSIGN_OR_RETURN(chat_template_, file_.StringOr(kKey, ""));
  if (chat_template_.size() > kMaxChatTemplateBytes || !IsUtf8(chat_template_)) {
    return file_.Wrong(kKey, absl::StrCat("UTF-8 of at most ", kMaxChatTemplateBytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status GgufCheckpoint::Init(int max_position_embeddings) {
  ASSIGN_OR_RETURN(config_, ModelConfigFromGguf(file_, max_position_embeddings));
  RETURN_IF_ERROR(FindTensors());
  ASSIGN_OR_RETURN(tokenizer_json_, TokenizerJsonFromGguf(file_));
  if (!tokenizer_json_.empty()) {
    ASSIGN_OR_RETURN(const auto tokens, file_.Strings("tokenizer.ggml.tokens"));
    if (tokens.size() > static_cast<size_t>(config_.vocab_size)) {
      return file_.Wrong("tokenizer.ggml.tokens",
                         absl::StrCat("at most one for each of the ", config_.vocab_size,
                                      " rows of the embedding"));
    }
  }
  return ReadTemplate();
}

// Plain types are copied as they are, block-quantized ones become floats; rows of interleaved
// tensors go where Hugging Face has them: GGUF's row (head, pair, half) is its (head, half, pair).
void GgufCheckpoint::Convert(const Entry& entry, uint8_t* out) const {
  const GgufTensor& tensor = *entry.source;
  const bool dequantize = IsBlockQuantized(tensor.type);
  const int64_t rows = tensor.shape[0];
  const int64_t columns = tensor.num_elements() / rows;
  const size_t source_row_bytes = tensor.size_bytes / static_cast<size_t>(rows);
  const size_t row_bytes = static_cast<size_t>(columns) * SizeOf(ServedType(tensor.type));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t target = entry.interleaved ? InterleavedRow(row, config_.head_dim) : row;
    const uint8_t* from = tensor.data + static_cast<size_t>(row) * source_row_bytes;
    uint8_t* to = out + static_cast<size_t>(target) * row_bytes;
    if (dequantize) {
      DequantizeGgml(tensor.type, from, columns, reinterpret_cast<float*>(to));
    } else {
      std::memcpy(to, from, row_bytes);
    }
  }
}

absl::StatusOr<TensorView> GgufCheckpoint::TensorShape(absl::string_view name) const {
  const auto found = entries_.find(std::string(name));
  if (found == entries_.end()) {
    return absl::NotFoundError(absl::StrCat(file_.path(), ": the model has no tensor ", name));
  }
  const GgufTensor& tensor = *found->second.source;
  TensorView view;
  view.dtype = ServedType(tensor.type);
  view.shape = tensor.shape;
  view.size_bytes = static_cast<size_t>(tensor.num_elements()) * SizeOf(view.dtype);
  return view;
}

absl::StatusOr<TensorView> GgufCheckpoint::Tensor(absl::string_view name) const {
  ASSIGN_OR_RETURN(TensorView view, TensorShape(name));
  Entry& entry = entries_.find(std::string(name))->second;
  const GgufTensor& tensor = *entry.source;
  if (!entry.interleaved && !IsBlockQuantized(tensor.type)) {
    view.data = tensor.data;
    return view;
  }
  MutexLock lock(&entry.mutex);
  if (entry.converted == nullptr) {
    entry.converted.reset(new (std::nothrow) uint8_t[view.size_bytes]);
    if (entry.converted == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat(file_.path(), ": no memory for the ",
                                                       view.size_bytes, " bytes of tensor ", name));
    }
    Convert(entry, entry.converted.get());
  }
  view.data = entry.converted.get();
  return view;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(
    absl::string_view path, const OpenCheckpointOptions& options) {
  ASSIGN_OR_RETURN(GgufFile file, GgufFile::Open(path));
  auto checkpoint = std::make_unique<GgufCheckpoint>(std::move(file));
  RETURN_IF_ERROR(checkpoint->Init(options.max_position_embeddings));
  return checkpoint;
}

absl::StatusOr<ModelConfig> ReadGgufConfig(absl::string_view path) {
  ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(path));
  return ModelConfigFromGguf(file, /*max_position_embeddings=*/0);
}

}  // namespace quern
