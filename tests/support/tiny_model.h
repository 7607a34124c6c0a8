#ifndef QUERN_TESTS_SUPPORT_TINY_MODEL_H_
#define QUERN_TESTS_SUPPORT_TINY_MODEL_H_

// Tiny random checkpoints, written in milliseconds. Same options, same bytes.

#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "core/model/model_config.h"

namespace quern {

struct TinyModelOptions {
  std::string model_type = "llama";  // biases and q/k norms are those of the family
  int num_hidden_layers = 2;
  int hidden_size = 64;
  int intermediate_size = 172;  // groups of 64: two whole ones and one of 44
  int num_attention_heads = 4;
  int num_key_value_heads = 2;
  int head_dim = 16;
  int max_position_embeddings = 256;
  int vocab_size = 300;  // 300 to 18,000; the tokenizer has a token for every row
  bool tie_word_embeddings = true;
  bool attention_bias = false;  // llama, qwen3
  bool mlp_bias = false;        // llama
  DType dtype = DType::kF32;    // F32, F16 or BF16
  int num_shards = 1;           // more than 1: with model.safetensors.index.json
  uint64_t seed = 1;
};

// Token ids of the tiny tokenizer; the bytes follow.
inline constexpr int kTinyEndOfText = 0;  // <|endoftext|>, bos
inline constexpr int kTinyImStart = 1;    // <|im_start|>
inline constexpr int kTinyImEnd = 2;      // <|im_end|>, eos

struct TinyTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

ModelConfig TinyModelConfig(const TinyModelOptions& options);

// The weights by Hugging Face name, as drawn (not rounded to options.dtype).
std::map<std::string, TinyTensor> TinyModelWeights(const TinyModelOptions& options);

// tokenizer.json: byte-level BPE with SmolLM2's pre-tokenizer, the three special tokens above, the
// 256 bytes, some English merges, then merges of two and three letters up to `vocab_size`.
std::string TinyTokenizerJson(int vocab_size);

// A ChatML template.
std::string TinyChatTemplate();

// Makes `directory` (and its parents) with config.json, generation_config.json, tokenizer.json,
// tokenizer_config.json and the weights.
absl::Status WriteTinyCheckpoint(absl::string_view directory, const TinyModelOptions& options = {});

enum class TinyGgufType { kF32, kF16, kQ8_0 };

// The same model as a GGUF file, as llama.cpp's converter would write it: matrices in `type` (rows
// that 32 does not divide in F16), vectors in F32, q and k of llama and mistral in interleaved
// order.
absl::Status WriteTinyGguf(absl::string_view path, const TinyModelOptions& options = {},
                           TinyGgufType type = TinyGgufType::kF32);

}  // namespace quern

#endif  // QUERN_TESTS_SUPPORT_TINY_MODEL_H_
