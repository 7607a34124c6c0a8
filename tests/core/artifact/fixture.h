#ifndef QUERN_TESTS_CORE_ARTIFACT_FIXTURE_H_
#define QUERN_TESTS_CORE_ARTIFACT_FIXTURE_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/artifact/pack.h"
#include "core/model/tensor_names.h"

namespace quern {

// A fresh directory, removed with everything in it when destroyed.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "quern_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

inline void WriteAll(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// One block, odd numbers everywhere: a vocabulary of 33, 48 inner channels (a shorter last group at
// group size 32).
inline ModelConfig TinyConfig() {
  ModelConfig config;
  config.model_type = "llama";
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.head_dim = 16;
  config.vocab_size = 33;
  config.max_position_embeddings = 64;
  config.tie_word_embeddings = true;
  config.bos_token_id = 1;
  config.eos_token_ids = {2};
  return config;
}

// The same with sizes that are multiples of 32, which other programs' layouts want.
inline ModelConfig EvenConfig() {
  ModelConfig config = TinyConfig();
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.head_dim = 32;
  return config;
}

// Weights by a fixed formula in exact arithmetic: the same on every machine.
inline std::vector<float> FixedWeights(int64_t count, uint32_t seed) {
  std::vector<float> weights(count);
  uint32_t state = seed;
  for (float& weight : weights) {
    state = state * 1664525u + 1013904223u;
    weight = static_cast<float>(static_cast<int32_t>(state >> 16) - 32768) * 0x1p-16f;
  }
  return weights;
}

inline PackedModel TinyModel(const QuantFormat& format = {.bits = 3, .group_size = 32},
                             const ModelConfig& config = TinyConfig()) {
  PackedModel model{.config = config,
                    .format = format,
                    .tokenizer_json = "{\"tokenizer\":1}",
                    .chat_template = "{{ messages }}"};
  uint32_t seed = 0;
  for (const TensorSpec& spec : ModelTensors(config)) {
    ++seed;
    if (spec.kind == TensorSpec::Kind::kVector) {
      model.vectors[spec.name] = FixedWeights(spec.shape[0], seed);
      continue;
    }
    const int rows = static_cast<int>(spec.shape[0]);
    const int cols = static_cast<int>(spec.shape[1]);
    const auto weights = FixedWeights(spec.shape[0] * spec.shape[1], seed);
    if (const auto matrix = FormatOf(format, spec); matrix.has_value()) {
      model.matrices[spec.name] =
          RoundToNearest(weights, rows, cols, matrix->bits, matrix->group_size, matrix->symmetric)
              .value();
    } else {
      auto halves = std::make_shared<std::vector<uint16_t>>(weights.size(), uint16_t{0x3c00});
      model.half_matrices[spec.name] =
          HalfTensor{.rows = rows, .cols = cols, .data = halves->data(), .storage = halves};
    }
  }
  return model;
}

inline Lineage TinyLineage() {
  return {.checkpoint_digest = std::string(64, 'a'),
          .task_digest = std::string(64, 'b'),
          .calibration_digest = "",
          .quern_version = "0.1.0"};
}

}  // namespace quern

#endif  // QUERN_TESTS_CORE_ARTIFACT_FIXTURE_H_
