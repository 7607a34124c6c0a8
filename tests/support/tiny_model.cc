#include "tests/support/tiny_model.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_replace.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <utility>

#include "core/base/file.h"
#include "core/base/half.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/gguf_writer.h"
#include "core/model/tensor_names.h"
#include "core/safetensors/safetensors.h"

namespace quern {
namespace {

struct Vocabulary {
  std::vector<std::string> tokens;  // by id
  std::vector<std::string> merges;
};

std::string Utf8(int code_point) {
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3f))};
}

// GPT-2's bytes_to_unicode: printable bytes stand for themselves, the others for U+0100 and up.
std::vector<std::string> ByteTokens() {
  std::vector<std::string> tokens;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    tokens.push_back(Utf8(printable ? byte : next++));
  }
  return tokens;
}

Vocabulary TinyVocabulary(int vocab_size) {
  Vocabulary vocabulary;
  vocabulary.tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (std::string& token : ByteTokens()) vocabulary.tokens.push_back(std::move(token));
  std::set<std::string> known(vocabulary.tokens.begin(), vocabulary.tokens.end());
  const auto merge = [&](const std::string& left, const std::string& right) {
    if (static_cast<int>(vocabulary.tokens.size()) >= vocab_size) return;
    if (!known.insert(left + right).second) return;
    vocabulary.tokens.push_back(left + right);
    vocabulary.merges.push_back(absl::StrCat(left, " ", right));
  };
  const std::pair<std::string, std::string> english[] = {
      {"Ġ", "t"}, {"Ġ", "a"},   {"h", "e"},  {"i", "n"},   {"r", "e"},  {"o", "n"},
      {"e", "r"}, {"Ġ", "s"},   {"a", "t"},  {"Ġt", "he"}, {"o", "r"},  {"e", "n"},
      {"Ġ", "c"}, {"Ġ", "w"},   {"i", "s"},  {"i", "t"},   {"o", "u"},  {"n", "d"},
      {"e", "s"}, {"Ġ", "f"},   {"in", "g"}, {"Ġ", "b"},   {"Ġ", "p"},  {"e", "d"},
      {"Ġ", "o"}, {"Ġa", "nd"}, {"a", "n"},  {"a", "l"},   {"Ġ", "in"}, {"Ġo", "f"}};
  for (const auto& [left, right] : english) merge(left, right);
  const std::string letters = "abcdefghijklmnopqrstuvwxyz";
  for (char a : letters) {
    for (char b : letters) merge(std::string(1, a), std::string(1, b));
  }
  for (char a : letters) {
    for (char b : letters) {
      for (char c : letters) merge({a, b}, std::string(1, c));
    }
  }
  CHECK(static_cast<int>(vocabulary.tokens.size()) == vocab_size)
      << "vocab_size must be 300 to 18000";
  return vocabulary;
}

Json HuggingFaceConfig(const TinyModelOptions& options) {
  return Json{
      {"architectures", {"TinyForCausalLM"}},
      {"model_type", options.model_type},
      {"hidden_act", "silu"},
      {"hidden_size", options.hidden_size},
      {"intermediate_size", options.intermediate_size},
      {"num_hidden_layers", options.num_hidden_layers},
      {"num_attention_heads", options.num_attention_heads},
      {"num_key_value_heads", options.num_key_value_heads},
      {"head_dim", options.head_dim},
      {"vocab_size", options.vocab_size},
      {"max_position_embeddings", options.max_position_embeddings},
      {"rms_norm_eps", 1e-5},
      {"rope_theta", 10000.0},
      {"sliding_window", nullptr},
      {"tie_word_embeddings", options.tie_word_embeddings},
      {"attention_bias", options.attention_bias},
      {"mlp_bias", options.mlp_bias},
      {"bos_token_id", kTinyEndOfText},
      {"eos_token_id", kTinyImEnd},
      {"torch_dtype", "float32"},
  };
}

std::string Encode(const std::vector<float>& values, DType dtype) {
  std::string bytes(values.size() * SizeOf(dtype), '\0');
  if (dtype == DType::kF32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  }
  CHECK(dtype == DType::kF16 || dtype == DType::kBF16);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits =
        dtype == DType::kF16 ? FloatToHalf(values[i]) : FloatToBfloat16(values[i]);
    std::memcpy(bytes.data() + 2 * i, &bits, 2);
  }
  return bytes;
}

absl::Status WriteWeights(const std::string& directory, const TinyModelOptions& options) {
  const std::map<std::string, TinyTensor> weights = TinyModelWeights(options);
  const size_t num_shards = static_cast<size_t>(options.num_shards);
  std::vector<std::string> bytes;
  bytes.reserve(weights.size());
  std::vector<std::map<std::string, TensorView>> shards(num_shards);
  Json weight_map = Json::object();
  int64_t total_size = 0;
  for (const auto& [name, tensor] : weights) {
    bytes.push_back(Encode(tensor.values, options.dtype));
    const size_t shard = (bytes.size() - 1) * num_shards / weights.size();
    shards[shard][name] = {options.dtype, tensor.shape, bytes.back().data(), bytes.back().size()};
    weight_map[name] = absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, num_shards);
    total_size += static_cast<int64_t>(bytes.back().size());
  }
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (num_shards == 1) {
    return WriteSafetensors(directory + "/model.safetensors", shards[0], metadata);
  }
  for (size_t shard = 0; shard < num_shards; ++shard) {
    const std::string name =
        absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, num_shards);
    RETURN_IF_ERROR(WriteSafetensors(absl::StrCat(directory, "/", name), shards[shard], metadata));
  }
  const Json index = {{"metadata", {{"total_size", total_size}}}, {"weight_map", weight_map}};
  return WriteFileDurably(directory + "/model.safetensors.index.json", index.dump(1));
}

std::string QuantizeQ8_0(const std::vector<float>& values) {
  std::string bytes;
  for (size_t begin = 0; begin < values.size(); begin += 32) {
    float max = 0;
    for (size_t i = begin; i < begin + 32; ++i) max = std::max(max, std::fabs(values[i]));
    const float scale = max / 127;
    bytes += LittleEndian(FloatToHalf(scale));
    for (size_t i = begin; i < begin + 32; ++i) {
      bytes += LittleEndian(static_cast<int8_t>(scale == 0 ? 0 : std::lround(values[i] / scale)));
    }
  }
  return bytes;
}

// Hugging Face's row (head, half, pair) becomes row (head, pair, half): llama.cpp turns
// neighbouring elements for the llama architecture.
std::vector<float> InterleaveRows(const std::vector<float>& values, int64_t rows,
                                  int64_t head_dim) {
  const int64_t columns = static_cast<int64_t>(values.size()) / rows;
  std::vector<float> result(values.size());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = row / head_dim;
    const int64_t half = row % head_dim / (head_dim / 2);
    const int64_t pair = row % (head_dim / 2);
    const int64_t target = head * head_dim + 2 * pair + half;
    std::copy_n(values.begin() + row * columns, columns, result.begin() + target * columns);
  }
  return result;
}

std::string GgufName(absl::string_view name) {
  return absl::StrReplaceAll(name, {{"model.embed_tokens", "token_embd"},
                                    {"model.norm", "output_norm"},
                                    {"lm_head", "output"},
                                    {"model.layers", "blk"},
                                    {"input_layernorm", "attn_norm"},
                                    {"post_attention_layernorm", "ffn_norm"},
                                    {"self_attn.q_proj", "attn_q"},
                                    {"self_attn.k_proj", "attn_k"},
                                    {"self_attn.v_proj", "attn_v"},
                                    {"self_attn.o_proj", "attn_output"},
                                    {"self_attn.q_norm", "attn_q_norm"},
                                    {"self_attn.k_norm", "attn_k_norm"},
                                    {"mlp.gate_proj", "ffn_gate"},
                                    {"mlp.up_proj", "ffn_up"},
                                    {"mlp.down_proj", "ffn_down"}});
}

void AddGgufMetadata(const ModelConfig& config, const std::string& arch, GgufWriter* writer) {
  writer->String("general.architecture", arch);
  writer->String("general.name", "tiny");
  writer->Uint32(arch + ".block_count", config.num_hidden_layers);
  writer->Uint32(arch + ".context_length", config.max_position_embeddings);
  writer->Uint32(arch + ".embedding_length", config.hidden_size);
  writer->Uint32(arch + ".feed_forward_length", config.intermediate_size);
  writer->Uint32(arch + ".attention.head_count", config.num_attention_heads);
  writer->Uint32(arch + ".attention.head_count_kv", config.num_key_value_heads);
  writer->Uint32(arch + ".attention.key_length", config.head_dim);
  writer->Uint32(arch + ".attention.value_length", config.head_dim);
  writer->Uint32(arch + ".rope.dimension_count", config.head_dim);
  writer->Float32(arch + ".rope.freq_base", static_cast<float>(config.rope_theta));
  writer->Float32(arch + ".attention.layer_norm_rms_epsilon",
                  static_cast<float>(config.rms_norm_eps));
  const Vocabulary vocabulary = TinyVocabulary(config.vocab_size);
  std::vector<int32_t> types(vocabulary.tokens.size(), 1);
  std::fill_n(types.begin(), 3, 3);
  writer->String("tokenizer.ggml.model", "gpt2");
  writer->String("tokenizer.ggml.pre", "smollm");
  writer->Strings("tokenizer.ggml.tokens", vocabulary.tokens);
  writer->Int32s("tokenizer.ggml.token_type", types);
  writer->Strings("tokenizer.ggml.merges", vocabulary.merges);
  writer->Uint32("tokenizer.ggml.bos_token_id", kTinyEndOfText);
  writer->Uint32("tokenizer.ggml.eos_token_id", kTinyImEnd);
  writer->Bool("tokenizer.ggml.add_bos_token", false);
  writer->String("tokenizer.chat_template", TinyChatTemplate());
}

}  // namespace

ModelConfig TinyModelConfig(const TinyModelOptions& options) {
  absl::StatusOr<ModelConfig> config =
      ModelConfigFromHuggingFace(HuggingFaceConfig(options), "tiny model");
  CHECK(config.ok()) << config.status();
  return *std::move(config);
}

std::map<std::string, TinyTensor> TinyModelWeights(const TinyModelOptions& options) {
  std::mt19937_64 random(options.seed);
  std::normal_distribution<float> normal;
  std::map<std::string, TinyTensor> weights;
  for (const TensorSpec& spec : ModelTensors(TinyModelConfig(options))) {
    float mean = 0;
    float deviation = 0.1f;
    if (spec.kind != TensorSpec::Kind::kVector) {
      // Keeps the size of what flows through; the head's logits spread by about 2.
      deviation = 1 / std::sqrt(static_cast<float>(spec.shape[1]));
      if (spec.kind != TensorSpec::Kind::kBlockMatrix) deviation *= 2;
    } else if (absl::EndsWith(spec.name, "norm.weight")) {
      mean = 1;
    }
    TinyTensor& tensor = weights[spec.name];
    tensor.shape = spec.shape;
    int64_t count = 1;
    for (int64_t dim : spec.shape) count *= dim;
    tensor.values.resize(static_cast<size_t>(count));
    for (float& value : tensor.values) value = mean + deviation * normal(random);
  }
  return weights;
}

std::string TinyTokenizerJson(int vocab_size) {
  const Vocabulary vocabulary = TinyVocabulary(vocab_size);
  Json vocab = Json::object();
  Json added = Json::array();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    vocab[vocabulary.tokens[id]] = id;
    if (id > 2) continue;
    added.push_back({{"id", id},
                     {"content", vocabulary.tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  return Json{{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", added},
              {"normalizer", nullptr},
              {"pre_tokenizer",
               {{"type", "Sequence"}, {"pretokenizers", Json::array({digits, byte_level})}}},
              {"post_processor", nullptr},
              {"decoder", byte_level},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"vocab", vocab},
                {"merges", vocabulary.merges}}}}
      .dump();
}

std::string TinyChatTemplate() {
  return "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
         "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
         "{{ '<|im_start|>assistant\n' }}{% endif %}";
}

absl::Status WriteTinyCheckpoint(absl::string_view directory, const TinyModelOptions& options) {
  const std::string base(directory);
  RETURN_IF_ERROR(CreateDirectories(base));
  RETURN_IF_ERROR(WriteFileDurably(base + "/config.json", HuggingFaceConfig(options).dump(2)));
  const Json generation = {{"bos_token_id", kTinyEndOfText},
                           {"eos_token_id", {kTinyImEnd, kTinyEndOfText}}};
  RETURN_IF_ERROR(WriteFileDurably(base + "/generation_config.json", generation.dump(2)));
  RETURN_IF_ERROR(
      WriteFileDurably(base + "/tokenizer.json", TinyTokenizerJson(options.vocab_size)));
  const Json tokenizer_config = {{"tokenizer_class", "GPT2Tokenizer"},
                                 {"chat_template", TinyChatTemplate()}};
  RETURN_IF_ERROR(WriteFileDurably(base + "/tokenizer_config.json", tokenizer_config.dump(2)));
  return WriteWeights(base, options);
}

absl::Status WriteTinyGguf(absl::string_view path, const TinyModelOptions& options,
                           TinyGgufType type) {
  constexpr uint32_t kF32 = 0, kF16 = 1, kQ8_0 = 8;
  const ModelConfig config = TinyModelConfig(options);
  const bool interleaved = config.model_type == "llama" || config.model_type == "mistral";
  GgufWriter writer;
  AddGgufMetadata(config, interleaved ? "llama" : config.model_type, &writer);
  for (const auto& [name, tensor] : TinyModelWeights(options)) {
    std::vector<float> values = tensor.values;
    if (interleaved && (absl::StrContains(name, "q_proj") || absl::StrContains(name, "k_proj"))) {
      values = InterleaveRows(values, tensor.shape[0], config.head_dim);
    }
    const std::vector<uint64_t> shape(tensor.shape.rbegin(), tensor.shape.rend());
    if (tensor.shape.size() == 1 || type == TinyGgufType::kF32) {
      writer.Tensor(GgufName(name), shape, kF32, Encode(values, DType::kF32));
    } else if (type == TinyGgufType::kF16 || shape[0] % 32 != 0) {
      writer.Tensor(GgufName(name), shape, kF16, Encode(values, DType::kF16));
    } else {
      writer.Tensor(GgufName(name), shape, kQ8_0, QuantizeQ8_0(values));
    }
  }
  return WriteFileDurably(path, writer.Finish());
}

}  // namespace quern
