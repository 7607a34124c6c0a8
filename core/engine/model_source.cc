#include "core/engine/model_source.h"

#include <absl/strings/str_cat.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "core/base/half.h"
#include "core/base/status_macros.h"

namespace quern {
namespace {

absl::Status CheckFinite(absl::string_view name, const std::vector<float>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      return absl::DataLossError(
          absl::StrCat("tensor ", name, ": element ", i, " is ", values[i],
                       ", wanted a finite number; the model's files are damaged"));
    }
  }
  return absl::OkStatus();
}

absl::Status Missing(absl::string_view name) {
  return absl::NotFoundError(absl::StrCat("the model has no tensor ", name));
}

class PackedSource final : public ModelSource {
 public:
  explicit PackedSource(std::shared_ptr<const PackedModel> model) : model_(std::move(model)) {}

  const ModelConfig& config() const override { return model_->config; }
  const std::string& tokenizer_json() const override { return model_->tokenizer_json; }
  const std::string& chat_template() const override { return model_->chat_template; }

  absl::StatusOr<MatrixView> Matrix(absl::string_view name) const override {
    const std::string key(name);
    if (const auto it = model_->matrices.find(key); it != model_->matrices.end()) {
      return MatrixView(it->second.view());
    }
    if (const auto it = model_->half_matrices.find(key); it != model_->half_matrices.end()) {
      return MatrixView(DenseMatrix{.type = DenseMatrix::Type::kF16,
                                    .rows = it->second.rows,
                                    .cols = it->second.cols,
                                    .data = it->second.data});
    }
    return Missing(name);
  }

  absl::StatusOr<std::vector<float>> Vector(absl::string_view name) const override {
    const auto it = model_->vectors.find(std::string(name));
    if (it == model_->vectors.end()) return Missing(name);
    RETURN_IF_ERROR(CheckFinite(name, it->second));
    return it->second;
  }

  std::string MatrixIdentity(absl::string_view name) const override {
    const std::string key(name);
    const auto identity = [&](const std::string& origin) {
      return origin.empty() ? "" : absl::StrCat(origin, "/", name);
    };
    if (const auto it = model_->matrices.find(key); it != model_->matrices.end()) {
      return identity(it->second.origin);
    }
    const auto it = model_->half_matrices.find(key);
    return it == model_->half_matrices.end() ? "" : identity(it->second.origin);
  }

 private:
  const std::shared_ptr<const PackedModel> model_;
};

class CheckpointSource final : public ModelSource {
 public:
  explicit CheckpointSource(std::shared_ptr<const Checkpoint> checkpoint)
      : checkpoint_(std::move(checkpoint)) {}

  const ModelConfig& config() const override { return checkpoint_->config(); }
  const std::string& tokenizer_json() const override { return checkpoint_->tokenizer_json(); }
  const std::string& chat_template() const override { return checkpoint_->chat_template(); }

  absl::StatusOr<MatrixView> Matrix(absl::string_view name) const override {
    ASSIGN_OR_RETURN(const TensorView tensor, checkpoint_->Tensor(name));
    return ViewOfTensor(name, tensor);
  }

  absl::StatusOr<MatrixView> MatrixShape(absl::string_view name) const override {
    ASSIGN_OR_RETURN(const TensorView tensor, checkpoint_->TensorShape(name));
    return ViewOfTensor(name, tensor);
  }

  absl::StatusOr<std::vector<float>> Vector(absl::string_view name) const override {
    ASSIGN_OR_RETURN(const TensorView tensor, checkpoint_->Tensor(name));
    ASSIGN_OR_RETURN(const DenseMatrix::Type type, DenseType(name, tensor.dtype));
    std::vector<float> values(tensor.num_elements());
    if (type == DenseMatrix::Type::kF32) {
      std::memcpy(values.data(), tensor.data, values.size() * sizeof(float));
    } else {
      const char* bytes = static_cast<const char*>(tensor.data);
      for (size_t i = 0; i < values.size(); ++i) {
        uint16_t bits;
        std::memcpy(&bits, bytes + i * sizeof(bits), sizeof(bits));
        values[i] = type == DenseMatrix::Type::kF16 ? HalfToFloat(bits) : Bfloat16ToFloat(bits);
      }
    }
    RETURN_IF_ERROR(CheckFinite(name, values));
    return values;
  }

 private:
  static absl::StatusOr<MatrixView> ViewOfTensor(absl::string_view name, const TensorView& tensor) {
    if (tensor.shape.size() != 2) {
      return absl::InternalError(
          absl::StrCat("tensor ", name, " has ", tensor.shape.size(), " dimensions, wanted 2"));
    }
    ASSIGN_OR_RETURN(const DenseMatrix::Type type, DenseType(name, tensor.dtype));
    return MatrixView(DenseMatrix{.type = type,
                                  .rows = static_cast<int>(tensor.shape[0]),
                                  .cols = static_cast<int>(tensor.shape[1]),
                                  .data = tensor.data});
  }

  static absl::StatusOr<DenseMatrix::Type> DenseType(absl::string_view name, DType dtype) {
    switch (dtype) {
      case DType::kF32:
        return DenseMatrix::Type::kF32;
      case DType::kF16:
        return DenseMatrix::Type::kF16;
      case DType::kBF16:
        return DenseMatrix::Type::kBF16;
      default:
        return absl::InternalError(absl::StrCat("tensor ", name, " has type ", DTypeName(dtype),
                                                ", wanted F32, F16 or BF16"));
    }
  }

  const std::shared_ptr<const Checkpoint> checkpoint_;
};

}  // namespace

absl::string_view KvCacheTypeName(KvCacheType type) {
  switch (type) {
    case KvCacheType::kFloat16:
      return "float16";
    case KvCacheType::kInt8:
      return "int8";
    case KvCacheType::kInt4:
      return "int4";
  }
  return "";
}

absl::StatusOr<KvCacheType> ParseKvCacheType(absl::string_view name) {
  for (const KvCacheType type : {KvCacheType::kFloat16, KvCacheType::kInt8, KvCacheType::kInt4}) {
    if (KvCacheTypeName(type) == name) return type;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", name, "' is no type of the KV cache, wanted float16, int8 or int4"));
}

std::unique_ptr<ModelSource> MakeModelSource(std::shared_ptr<const PackedModel> model) {
  return std::make_unique<PackedSource>(std::move(model));
}

std::unique_ptr<ModelSource> MakeModelSource(std::shared_ptr<const Checkpoint> checkpoint) {
  return std::make_unique<CheckpointSource>(std::move(checkpoint));
}

}  // namespace quern
