#include "core/bench/synthetic_model.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <map>
#include <random>
#include <utility>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/model/tensor_names.h"

namespace quern {
namespace {

struct Shape {
  const char* name;
  int hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
      head_dim, vocab_size, max_position_embeddings;
  double rope_theta;
  bool tie_word_embeddings;
};

// From the models' config.json.
constexpr Shape kShapes[] = {
    {"smollm2-135m", 576, 1536, 30, 9, 3, 64, 49152, 8192, 100000, true},
    {"tinyllama-1.1b", 2048, 5632, 22, 32, 4, 64, 32000, 2048, 10000, false},
    {"llama-2-7b", 4096, 11008, 32, 32, 32, 128, 32000, 4096, 10000, false},
    {"llama-3-8b", 4096, 14336, 32, 32, 8, 128, 128256, 8192, 500000, false},
};

class SyntheticSource final : public ModelSource {
 public:
  SyntheticSource(ModelConfig config, const QuantFormat& format)
      : config_(std::move(config)), format_(format) {
    int64_t code_words = 0, groups = 0, halves = 0;
    for (TensorSpec& spec : ModelTensors(config_)) {
      if (spec.kind != TensorSpec::Kind::kVector) {
        const PackedMatrix w = View(spec);
        if (w.bits == 0) {
          halves = std::max(halves, int64_t{w.rows} * w.cols);
        } else {
          code_words = std::max(code_words, w.words_per_row() * w.rows);
          groups = std::max(groups, int64_t{w.rows} * w.num_groups());
        }
      }
      specs_.emplace(spec.name, spec);
    }
    // A run of random words again and again is as good as as many random ones.
    std::mt19937 random(1);
    std::vector<uint32_t> run(1 << 20);
    for (uint32_t& word : run) word = random();
    codes_.resize(code_words);
    for (size_t i = 0; i < codes_.size(); i += run.size()) {
      std::copy_n(run.begin(), std::min(run.size(), codes_.size() - i), codes_.begin() + i);
    }
    // About the middle code, at any width.
    zero_points_.assign(PackedWords(groups, 8), 0x55555555u);
    scales_.assign(groups, FloatToHalf(0.01f));
    halves_.assign(halves, FloatToHalf(0.01f));
  }

  const ModelConfig& config() const override { return config_; }
  const std::string& tokenizer_json() const override { return none_; }
  const std::string& chat_template() const override { return none_; }

  absl::StatusOr<MatrixView> Matrix(absl::string_view name) const override {
    const auto it = specs_.find(std::string(name));
    if (it == specs_.end()) return absl::NotFoundError(absl::StrCat("no tensor ", name));
    PackedMatrix w = View(it->second);
    if (w.bits == 0) {
      return MatrixView(DenseMatrix{
          .type = DenseMatrix::Type::kF16, .rows = w.rows, .cols = w.cols, .data = halves_.data()});
    }
    w.codes = codes_.data();
    w.scales = scales_.data();
    w.zero_points = w.symmetric ? nullptr : zero_points_.data();
    return MatrixView(w);
  }

  absl::StatusOr<std::vector<float>> Vector(absl::string_view name) const override {
    const auto it = specs_.find(std::string(name));
    if (it == specs_.end()) return absl::NotFoundError(absl::StrCat("no tensor ", name));
    return std::vector<float>(it->second.shape[0], 1.0f);
  }

 private:
  // Without its memory; bits 0 when the matrix stays at 16 bits.
  PackedMatrix View(const TensorSpec& spec) const {
    PackedMatrix w{.rows = static_cast<int>(spec.shape[0]),
                   .cols = static_cast<int>(spec.shape[1])};
    if (const auto format = FormatOf(format_, spec.kind, w.cols)) {
      w.bits = format->bits;
      w.group_size = format->group_size;
      w.symmetric = format->symmetric;
    }
    return w;
  }

  const ModelConfig config_;
  const QuantFormat format_;
  const std::string none_;
  std::map<std::string, TensorSpec> specs_;
  std::vector<uint32_t> codes_, zero_points_;
  std::vector<uint16_t> scales_, halves_;
};

}  // namespace

std::vector<std::string> SyntheticShapes() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

absl::StatusOr<ModelConfig> SyntheticConfig(absl::string_view name) {
  for (const Shape& shape : kShapes) {
    if (name != shape.name) continue;
    ModelConfig config;
    config.model_type = "llama";
    config.hidden_size = shape.hidden_size;
    config.intermediate_size = shape.intermediate_size;
    config.num_hidden_layers = shape.num_hidden_layers;
    config.num_attention_heads = shape.num_attention_heads;
    config.num_key_value_heads = shape.num_key_value_heads;
    config.head_dim = shape.head_dim;
    config.vocab_size = shape.vocab_size;
    config.max_position_embeddings = shape.max_position_embeddings;
    config.rope_theta = shape.rope_theta;
    config.tie_word_embeddings = shape.tie_word_embeddings;
    RETURN_IF_ERROR(config.Validate());
    return config;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no shape \"", name, "\"; there are ", absl::StrJoin(SyntheticShapes(), ", ")));
}

absl::StatusOr<std::unique_ptr<ModelSource>> MakeSyntheticModel(absl::string_view shape,
                                                                const QuantFormat& format) {
  RETURN_IF_ERROR(format.Validate());
  ASSIGN_OR_RETURN(ModelConfig config, SyntheticConfig(shape));
  return std::make_unique<SyntheticSource>(std::move(config), format);
}

}  // namespace quern
