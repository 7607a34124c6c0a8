#include "core/engine/prepack.h"

#include <absl/strings/str_cat.h>

#include <cstring>
#include <string>
#include <utility>
#include <variant>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/model/rope.h"
#include "core/model/tensor_names.h"

namespace quern {
namespace {

// Index of the first of `count` values whose exponent is all ones, or -1. `Word` holds one value.
template <typename Word>
int64_t FindNotFinite(const void* data, int64_t count, Word exponent_mask) {
  const char* bytes = static_cast<const char*>(data);
  for (int64_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, bytes + i * sizeof(Word), sizeof(Word));
    if ((word & exponent_mask) == exponent_mask) return i;
  }
  return -1;
}

int64_t FindNotFinite(const DenseMatrix& w) {
  const int64_t count = int64_t{w.rows} * w.cols;
  switch (w.type) {
    case DenseMatrix::Type::kF32:
      return FindNotFinite<uint32_t>(w.data, count, 0x7f800000);
    case DenseMatrix::Type::kF16:
      return FindNotFinite<uint16_t>(w.data, count, 0x7c00);
    case DenseMatrix::Type::kBF16:
      return FindNotFinite<uint16_t>(w.data, count, 0x7f80);
  }
  return -1;
}

int64_t FindNotFinite(const PackedMatrix& w) {
  return FindNotFinite<uint16_t>(w.scales, int64_t{w.rows} * w.num_groups(), 0x7c00);
}

std::vector<float> Dequantize(const PackedMatrix& w) {
  std::vector<float> values;
  values.reserve(static_cast<size_t>(int64_t{w.rows} * w.cols));
  for (int row = 0; row < w.rows; ++row) {
    const uint32_t* codes = w.codes + row * w.words_per_row();
    for (int col = 0; col < w.cols; ++col) {
      const int64_t group = int64_t{row} * w.num_groups() + col / w.group_size;
      const int zero_point = w.symmetric
                                 ? 1 << (w.bits - 1)
                                 : static_cast<int>(UnpackCode(w.zero_points, w.bits, group));
      const int code = static_cast<int>(UnpackCode(codes, w.bits, col));
      values.push_back(static_cast<float>(code - zero_point) * HalfToFloat(w.scales[group]));
    }
  }
  return values;
}

size_t PrepackedBytes(const kernels::KernelTable& kernels, const PackedMatrix& w) {
  return kernels.prepacked_bytes(w);
}
size_t PrepackedBytes(const kernels::KernelTable& kernels, const DenseMatrix& w) {
  return kernels.prepacked_dense_bytes(w);
}

void Prepack(const kernels::KernelTable& kernels, const PackedMatrix& w, uint8_t* out) {
  kernels.prepack(w, 0, w.rows, out);
}
void Prepack(const kernels::KernelTable& kernels, const DenseMatrix& w, uint8_t* out) {
  kernels.prepack_dense(w, 0, w.rows, out);
}

kernels::PrepackedMatrix Describe(const PackedMatrix& w) {
  return {.rows = w.rows,
          .cols = w.cols,
          .bits = w.bits,
          .group_size = w.group_size,
          .symmetric = w.symmetric};
}
kernels::PrepackedMatrix Describe(const DenseMatrix& w) {
  return {.rows = w.rows, .cols = w.cols, .dense_type = w.type};
}

class Prepacker {
 public:
  // `pool`: null to plan, without data.
  Prepacker(const ModelSource& source, Precision precision, const kernels::KernelTable& kernels,
            MatrixPool* pool)
      : source_(source), precision_(precision), kernels_(kernels), pool_(pool) {}

  // Of the matrices read next. at_an_end: they belong to the first or the last block, or are the
  // head.
  void SetActivations(bool at_an_end) {
    const bool int16 =
        precision_ == Precision::kInt16 || (precision_ == Precision::kMixed && at_an_end);
    activations_ =
        int16 ? kernels::ActivationPrecision::kInt16 : kernels::ActivationPrecision::kInt8;
  }

  absl::Status ReadMatrix(const std::string& name, int rows, int cols, CpuLinear& out) {
    ASSIGN_OR_RETURN(const MatrixView view,
                     planning() ? source_.MatrixShape(name) : source_.Matrix(name));
    if (const auto* packed = std::get_if<PackedMatrix>(&view);
        packed != nullptr && precision_ == Precision::kFloat) {
      const std::vector<float> values = planning() ? std::vector<float>() : Dequantize(*packed);
      const DenseMatrix dense{.type = DenseMatrix::Type::kF32,
                              .rows = packed->rows,
                              .cols = packed->cols,
                              .data = values.data()};
      return Read(name, dense, rows, cols, out);
    }
    return std::visit([&](const auto& w) { return Read(name, w, rows, cols, out); }, view);
  }

  absl::Status ReadVector(const std::string& name, int size, std::vector<float>& out) {
    if (planning()) {
      size_bytes_ += static_cast<int64_t>(size * sizeof(float));
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(out, source_.Vector(name));
    if (static_cast<int>(out.size()) != size) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", name, " has ", out.size(), " elements, the config wants ", size));
    }
    size_bytes_ += static_cast<int64_t>(size * sizeof(float));
    return absl::OkStatus();
  }

  absl::Status ReadLinear(int layer, absl::string_view module, int rows, int cols, bool has_bias,
                          CpuLinear& out) {
    RETURN_IF_ERROR(
        ReadMatrix(BlockTensorName(layer, absl::StrCat(module, ".weight")), rows, cols, out));
    if (!has_bias) return absl::OkStatus();
    return ReadVector(BlockTensorName(layer, absl::StrCat(module, ".bias")), rows, out.bias);
  }

  absl::StatusOr<CpuBlock> ReadBlock(int layer) {
    const ModelConfig& c = source_.config();
    const int hidden = c.hidden_size;
    const int mlp = c.intermediate_size;
    CpuBlock b;
    RETURN_IF_ERROR(
        ReadVector(BlockTensorName(layer, "input_layernorm.weight"), hidden, b.attention_norm));
    RETURN_IF_ERROR(
        ReadVector(BlockTensorName(layer, "post_attention_layernorm.weight"), hidden, b.mlp_norm));
    if (c.qk_norm) {
      RETURN_IF_ERROR(
          ReadVector(BlockTensorName(layer, "self_attn.q_norm.weight"), c.head_dim, b.q_norm));
      RETURN_IF_ERROR(
          ReadVector(BlockTensorName(layer, "self_attn.k_norm.weight"), c.head_dim, b.k_norm));
    }
    RETURN_IF_ERROR(ReadLinear(layer, "self_attn.q_proj", c.q_size(), hidden, c.qkv_bias, b.q));
    RETURN_IF_ERROR(ReadLinear(layer, "self_attn.k_proj", c.kv_size(), hidden, c.qkv_bias, b.k));
    RETURN_IF_ERROR(ReadLinear(layer, "self_attn.v_proj", c.kv_size(), hidden, c.qkv_bias, b.v));
    RETURN_IF_ERROR(ReadLinear(layer, "self_attn.o_proj", hidden, c.q_size(), c.o_bias, b.o));
    RETURN_IF_ERROR(ReadLinear(layer, "mlp.gate_proj", mlp, hidden, c.mlp_bias, b.gate));
    RETURN_IF_ERROR(ReadLinear(layer, "mlp.up_proj", mlp, hidden, c.mlp_bias, b.up));
    RETURN_IF_ERROR(ReadLinear(layer, "mlp.down_proj", hidden, mlp, c.mlp_bias, b.down));
    return b;
  }

  int64_t size_bytes() const { return size_bytes_; }
  int64_t shared_bytes() const { return shared_bytes_; }

 private:
  bool planning() const { return pool_ == nullptr; }

  template <typename Matrix>
  absl::Status Read(const std::string& name, const Matrix& w, int rows, int cols, CpuLinear& out) {
    if (w.rows != rows || w.cols != cols) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " is [", w.rows, ", ", w.cols,
                                                     "], the config wants [", rows, ", ", cols,
                                                     "]"));
    }
    out.matrix = Describe(w);
    if (out.matrix.bits != 0) {
      out.input = {.group_size = out.matrix.group_size, .precision = activations_};
    }
    size_bytes_ += static_cast<int64_t>(PrepackedBytes(kernels_, w));
    if (planning()) return absl::OkStatus();
    ASSIGN_OR_RETURN(out.storage, Obtain(name, w));
    out.matrix.data = out.storage->data();
    return absl::OkStatus();
  }

  // The prepacked form: that of another model, or made here.
  template <typename Matrix>
  absl::StatusOr<std::shared_ptr<const AlignedBuffer>> Obtain(const std::string& name,
                                                              const Matrix& w) {
    // The order of a packed matrix depends on nothing else of a backend; as floats it is another.
    std::string key = source_.MatrixIdentity(name);
    if (!key.empty() && precision_ == Precision::kFloat) key += "/float";
    const size_t bytes = PrepackedBytes(kernels_, w);
    if (auto found = pool_->Find(key); found != nullptr) {
      shared_bytes_ += static_cast<int64_t>(bytes);
      return found;
    }
    if (const int64_t index = FindNotFinite(w); index >= 0) {
      return absl::DataLossError(absl::StrCat("tensor ", name, ": value or scale ", index,
                                              " is not finite; the model's files are damaged"));
    }
    ASSIGN_OR_RETURN(AlignedBuffer storage, AlignedBuffer::Allocate(bytes, name));
    Prepack(kernels_, w, storage.data());
    return pool_->Add(key, std::make_shared<const AlignedBuffer>(std::move(storage)));
  }

  const ModelSource& source_;
  const Precision precision_;
  const kernels::KernelTable& kernels_;
  MatrixPool* const pool_;
  kernels::ActivationPrecision activations_ = kernels::ActivationPrecision::kInt8;
  int64_t size_bytes_ = 0;
  int64_t shared_bytes_ = 0;
};

absl::StatusOr<CpuWeights> ReadWeights(const ModelSource& source, Precision precision,
                                       const kernels::KernelTable& kernels, MatrixPool* pool) {
  RETURN_IF_ERROR(source.config().Validate());
  CpuWeights weights;
  weights.config = source.config();
  const ModelConfig& config = weights.config;
  Prepacker prepacker(source, precision, kernels, pool);
  prepacker.SetActivations(/*at_an_end=*/true);  // the head, when it is the embedding
  RETURN_IF_ERROR(prepacker.ReadMatrix(std::string(kEmbeddingName), config.vocab_size,
                                       config.hidden_size, weights.embedding));
  const int last_layer = config.num_hidden_layers - 1;
  for (int layer = 0; layer <= last_layer; ++layer) {
    prepacker.SetActivations(/*at_an_end=*/layer == 0 || layer == last_layer);
    ASSIGN_OR_RETURN(CpuBlock block, prepacker.ReadBlock(layer));
    weights.blocks.push_back(std::move(block));
  }
  RETURN_IF_ERROR(
      prepacker.ReadVector(std::string(kFinalNormName), config.hidden_size, weights.final_norm));
  if (!config.tie_word_embeddings) {
    RETURN_IF_ERROR(prepacker.ReadMatrix(std::string(kHeadName), config.vocab_size,
                                         config.hidden_size, weights.untied_head));
  }
  weights.rope_frequencies = RopeFrequencies(config);
  weights.size_bytes = prepacker.size_bytes();
  weights.shared_bytes = prepacker.shared_bytes();
  return weights;
}

}  // namespace

absl::StatusOr<CpuWeights> PrepackWeights(const ModelSource& source, Precision precision,
                                          const kernels::KernelTable& kernels, MatrixPool& pool) {
  return ReadWeights(source, precision, kernels, &pool);
}

absl::StatusOr<CpuWeights> PlanWeights(const ModelSource& source, Precision precision,
                                       const kernels::KernelTable& kernels) {
  return ReadWeights(source, precision, kernels, nullptr);
}

}  // namespace quern
