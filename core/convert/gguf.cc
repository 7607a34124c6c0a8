#include "core/convert/gguf.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/artifact/pack.h"
#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/checkpoint/gguf.h"
#include "core/checkpoint/gguf_config.h"
#include "core/checkpoint/gguf_vocabulary.h"
#include "core/checkpoint/gguf_writer.h"
#include "core/model/tensor_names.h"

namespace quern {
namespace {

constexpr int64_t kAlignment = 32;
constexpr int kBlockElements = 32;  // of every quantized type

// Codes less their zero points, [rows * cols].
std::vector<int16_t> Levels(const PackedTensor& tensor) {
  const std::vector<uint8_t> codes = UnpackCodes(tensor);
  const std::vector<uint8_t> zero_points = UnpackZeroPoints(tensor);
  std::vector<int16_t> levels(codes.size());
  for (int row = 0; row < tensor.rows; ++row) {
    for (int col = 0; col < tensor.cols; ++col) {
      const int64_t i = int64_t{row} * tensor.cols + col;
      const int64_t group = int64_t{row} * tensor.num_groups() + col / tensor.group_size;
      levels[i] = static_cast<int16_t>(codes[i] - zero_points[group]);
    }
  }
  return levels;
}

// The smallest type that holds level * scale exactly.
GgmlType TypeFor(const PackedTensor& tensor) {
  if (tensor.cols % kBlockElements != 0 ||
      (tensor.group_size % kBlockElements != 0 && tensor.group_size < tensor.cols)) {
    return GgmlType::kF32;
  }
  const std::vector<int16_t> levels = Levels(tensor);
  const auto [low, high] = std::minmax_element(levels.begin(), levels.end());
  if (*low >= -8 && *high <= 7) return GgmlType::kQ4_0;
  if (*low >= -16 && *high <= 15) return GgmlType::kQ5_0;
  if (*low >= -128 && *high <= 127) return GgmlType::kQ8_0;
  return GgmlType::kF32;
}

void AppendBytes(std::string& out, const void* bytes, size_t size) {
  out.append(static_cast<const char*>(bytes), size);
}

// One block of `kBlockElements` levels under one scale, a half float.
void AppendBlock(GgmlType type, const int16_t* levels, uint16_t scale, std::string& out) {
  constexpr int kHalf = kBlockElements / 2;
  AppendBytes(out, &scale, sizeof(scale));
  if (type == GgmlType::kQ8_0) {
    for (int i = 0; i < kBlockElements; ++i) out += static_cast<char>(levels[i]);
    return;
  }
  const int offset = type == GgmlType::kQ4_0 ? 8 : 16;
  if (type == GgmlType::kQ5_0) {
    uint32_t fifth_bits = 0;
    for (int i = 0; i < kBlockElements; ++i) {
      fifth_bits |= static_cast<uint32_t>((levels[i] + offset) >> 4) << i;
    }
    AppendBytes(out, &fifth_bits, sizeof(fifth_bits));
  }
  for (int i = 0; i < kHalf; ++i) {
    const int low = (levels[i] + offset) & 15;
    const int high = (levels[i + kHalf] + offset) & 15;
    out += static_cast<char>(low | high << 4);
  }
}

struct OutTensor {
  TensorSpec spec;
  GgmlType type = GgmlType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;  // 1 for vectors
  bool interleaved = false;
  int64_t size_bytes() const {
    const GgmlBlock block = BlockOf(type);
    return rows * cols / block.num_elements * block.size_bytes;
  }
};

class GgufExport {
 public:
  explicit GgufExport(const PackedModel& model) : model_(model) {}

  absl::Status Write(absl::string_view path);

 private:
  void ListTensors();
  absl::StatusOr<std::string> Header() const;
  // The tensor's data, its rows in GGUF's order.
  std::string Data(const OutTensor& tensor) const;
  std::string PackedData(const OutTensor& tensor, const PackedTensor& packed) const;

  const PackedModel& model_;
  std::vector<OutTensor> tensors_;
  std::vector<float> rope_factors_;
};

void GgufExport::ListTensors() {
  for (TensorSpec& spec : ModelTensors(model_.config)) {
    OutTensor tensor{.rows = spec.shape[0], .cols = spec.shape.size() > 1 ? spec.shape[1] : 1};
    if (const auto packed = model_.matrices.find(spec.name); packed != model_.matrices.end()) {
      tensor.type = TypeFor(packed->second);
    } else if (model_.half_matrices.contains(spec.name)) {
      tensor.type = GgmlType::kF16;
    }
    tensor.interleaved =
        HasInterleavedRotaryRows(model_.config) &&
        (absl::StrContains(spec.name, ".q_proj.") || absl::StrContains(spec.name, ".k_proj."));
    tensor.spec = std::move(spec);
    tensors_.push_back(std::move(tensor));
  }
  rope_factors_ = GgufRopeFactors(model_.config);
}

int64_t Aligned(int64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

absl::StatusOr<std::string> GgufExport::Header() const {
  GgufWriter writer;
  AddModelConfigToGguf(model_.config, writer);
  writer.Uint32("general.quantization_version", 2);  // of the block types' layouts
  if (!model_.tokenizer_json.empty()) {
    RETURN_IF_ERROR(AddVocabularyToGguf(model_.tokenizer_json, model_.config, writer));
  }
  if (!model_.chat_template.empty()) {
    writer.String("tokenizer.chat_template", model_.chat_template);
  }
  int64_t offset = 0;
  for (const OutTensor& tensor : tensors_) {
    const std::vector<uint64_t> shape(tensor.spec.shape.rbegin(), tensor.spec.shape.rend());
    writer.TensorAt(GgufTensorName(tensor.spec.name), shape, static_cast<uint32_t>(tensor.type),
                    static_cast<uint64_t>(offset));
    offset += Aligned(tensor.size_bytes());
  }
  if (!rope_factors_.empty()) {
    writer.TensorAt(kGgufRopeFactorsName, {rope_factors_.size()},
                    static_cast<uint32_t>(GgmlType::kF32), static_cast<uint64_t>(offset));
  }
  return writer.Finish();
}

std::string GgufExport::PackedData(const OutTensor& tensor, const PackedTensor& packed) const {
  std::string out;
  out.reserve(Aligned(tensor.size_bytes()));
  const auto source_row = [&](int64_t row) {
    return tensor.interleaved ? InterleavedRow(row, model_.config.head_dim) : row;
  };
  if (tensor.type == GgmlType::kF32) {
    const std::vector<float> values = Dequantize(packed);
    for (int64_t row = 0; row < tensor.rows; ++row) {
      AppendBytes(out, values.data() + source_row(row) * tensor.cols, tensor.cols * sizeof(float));
    }
    return out;
  }
  const std::vector<int16_t> levels = Levels(packed);
  for (int64_t row = 0; row < tensor.rows; ++row) {
    const int64_t source = source_row(row);
    for (int64_t col = 0; col < tensor.cols; col += kBlockElements) {
      const int64_t group = source * packed.num_groups() + col / packed.group_size;
      AppendBlock(tensor.type, levels.data() + source * tensor.cols + col, packed.scales[group],
                  out);
    }
  }
  return out;
}

std::string GgufExport::Data(const OutTensor& tensor) const {
  const std::string& name = tensor.spec.name;
  if (const auto packed = model_.matrices.find(name); packed != model_.matrices.end()) {
    return PackedData(tensor, packed->second);
  }
  std::string out;
  if (tensor.type == GgmlType::kF16) {
    AppendBytes(out, model_.half_matrices.at(name).data, tensor.size_bytes());
    return out;
  }
  const std::vector<float>& values = model_.vectors.at(name);
  for (int64_t row = 0; row < tensor.rows; ++row) {
    const int64_t source = tensor.interleaved ? InterleavedRow(row, model_.config.head_dim) : row;
    AppendBytes(out, &values[source], sizeof(float));
  }
  return out;
}

absl::Status GgufExport::Write(absl::string_view path) {
  ListTensors();
  ASSIGN_OR_RETURN(const std::string header, Header());
  ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(path));
  const auto append = [&](std::string bytes) {
    bytes.resize(Aligned(static_cast<int64_t>(bytes.size())));
    return file.Append(bytes);
  };
  RETURN_IF_ERROR(append(header));
  for (const OutTensor& tensor : tensors_) RETURN_IF_ERROR(append(Data(tensor)));
  if (!rope_factors_.empty()) {
    std::string bytes;
    AppendBytes(bytes, rope_factors_.data(), rope_factors_.size() * sizeof(float));
    RETURN_IF_ERROR(append(std::move(bytes)));
  }
  return file.Commit();
}

// What a reader of the file would take the model for.
absl::Status CheckSaysTheSame(const PackedModel& model, absl::string_view path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> written, OpenCheckpoint(path));
  ModelConfig expected = model.config;
  if (expected.model_type == "mistral") expected.model_type = "llama";
  ModelConfig found = written->config();
  // Numbers of the file are floats.
  const auto widen = [](double wanted, double& number) {
    if (static_cast<float>(wanted) == static_cast<float>(number)) number = wanted;
  };
  widen(expected.rms_norm_eps, found.rms_norm_eps);
  widen(expected.rope_theta, found.rope_theta);
  widen(expected.rope_scaling.factor, found.rope_scaling.factor);
  if (found.rope_scaling.type == RopeScaling::Type::kLlama3) {
    found.rope_scaling = expected.rope_scaling;  // recovered from factors, which it compared
  }
  if (found != expected) {
    return absl::FailedPreconditionError(absl::StrCat(
        "as GGUF, the model's configuration would be ", DumpCanonicalJson(ModelConfigToJson(found)),
        ", wanted ", DumpCanonicalJson(ModelConfigToJson(expected))));
  }
  if (!model.tokenizer_json.empty() &&
      !SameVocabulary(model.tokenizer_json, written->tokenizer_json())) {
    return absl::FailedPreconditionError(
        "tokenizer.json: merges or tokens are in an order that GGUF cannot express");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ExportGguf(const PackedModel& model, absl::string_view path) {
  RETURN_IF_ERROR(GgufExport(model).Write(path));
  absl::Status status = CheckSaysTheSame(model, path);
  if (!status.ok()) unlink(std::string(path).c_str());
  return status;
}

}  // namespace quern
