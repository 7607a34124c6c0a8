#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "core/base/half.h"
#include "core/base/sha256.h"
#include "core/checkpoint/checkpoint.h"
#include "core/checkpoint/gguf_writer.h"
#include "core/model/tensor_names.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

float At(const TensorView& view, size_t i) {
  const auto* bytes = static_cast<const uint8_t*>(view.data);
  if (view.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, bytes + 4 * i, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, bytes + 2 * i, 2);
  return view.dtype == DType::kF16 ? HalfToFloat(bits) : Bfloat16ToFloat(bits);
}

struct RoundTrip {
  std::string name;
  TinyModelOptions options;
  TinyGgufType type;
};

void PrintTo(const RoundTrip& value, std::ostream* out) { *out << value.name; }

class GgufRoundTripTest : public testing::TestWithParam<RoundTrip> {};

// A GGUF gives the Hugging Face names, row order and values of the model it was made of.
TEST_P(GgufRoundTripTest, GivesTheHuggingFaceModelBack) {
  const auto& [name, options, type] = GetParam();
  TempDirectory directory;
  const std::string path = directory.Path("tiny.gguf");
  ASSERT_OK(WriteTinyGguf(path, options, type));
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Checkpoint> checkpoint, OpenCheckpoint(path));
  ModelConfig expected = TinyModelConfig(options);
  if (expected.model_type == "mistral") expected.model_type = "llama";  // GGUF has one for both
  expected.rms_norm_eps = static_cast<float>(expected.rms_norm_eps);    // GGUF stores floats
  EXPECT_EQ(checkpoint->config(), expected);
  const std::map<std::string, TinyTensor> weights = TinyModelWeights(options);
  for (const auto& [tensor_name, tensor] : weights) {
    SCOPED_TRACE(tensor_name);
    ASSERT_OK_AND_ASSIGN(const TensorView view, checkpoint->Tensor(tensor_name));
    ASSERT_EQ(view.shape, tensor.shape);
    ASSERT_EQ(view.size_bytes, tensor.values.size() * SizeOf(view.dtype));
    for (size_t i = 0; i < tensor.values.size(); ++i) {
      // Q8_0 rounds to half a step of (largest of 32) / 127, which is below 0.05 here.
      const float tolerance = type == TinyGgufType::kF32   ? 0
                              : type == TinyGgufType::kF16 ? 1e-3f
                                                           : 0.02f;
      ASSERT_NEAR(At(view, i), tensor.values[i], tolerance * (1 + std::fabs(tensor.values[i])));
    }
  }
}

TinyModelOptions OfFamily(const std::string& model_type, bool tied = true) {
  TinyModelOptions options;
  options.model_type = model_type;
  options.tie_word_embeddings = tied;
  return options;
}

TinyModelOptions WithBiases() {
  TinyModelOptions options = OfFamily("llama");
  options.attention_bias = options.mlp_bias = true;
  return options;
}

INSTANTIATE_TEST_SUITE_P(
    All, GgufRoundTripTest,
    testing::Values(RoundTrip{"LlamaF32", OfFamily("llama"), TinyGgufType::kF32},
                    RoundTrip{"LlamaF16", OfFamily("llama"), TinyGgufType::kF16},
                    RoundTrip{"LlamaQ8_0", OfFamily("llama"), TinyGgufType::kQ8_0},
                    RoundTrip{"LlamaUntied", OfFamily("llama", false), TinyGgufType::kF32},
                    RoundTrip{"LlamaBiases", WithBiases(), TinyGgufType::kF32},
                    RoundTrip{"Mistral", OfFamily("mistral", false), TinyGgufType::kQ8_0},
                    RoundTrip{"Qwen2", OfFamily("qwen2"), TinyGgufType::kF32},
                    RoundTrip{"Qwen3", OfFamily("qwen3"), TinyGgufType::kQ8_0}),
    [](const auto& info) { return info.param.name; });

class GgufCheckpointTest : public testing::Test {
 protected:
  TempDirectory directory_;
  const std::string path_ = directory_.Path("x.gguf");
};

TEST_F(GgufCheckpointTest, CarriesTokenizerTemplateDigestAndSize) {
  ASSERT_OK(WriteTinyGguf(path_));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(path_));
  ASSERT_OK_AND_ASSIGN(const Json made, ParseJson(checkpoint->tokenizer_json(), "made"));
  ASSERT_OK_AND_ASSIGN(const Json wanted, ParseJson(TinyTokenizerJson(300), "wanted"));
  EXPECT_EQ(made["model"]["vocab"], wanted["model"]["vocab"]);
  EXPECT_EQ(made["model"]["merges"], wanted["model"]["merges"]);
  EXPECT_EQ(made["added_tokens"], wanted["added_tokens"]);
  EXPECT_EQ(made["pre_tokenizer"], wanted["pre_tokenizer"]);
  EXPECT_EQ(checkpoint->chat_template(), TinyChatTemplate());
  ASSERT_OK_AND_ASSIGN(const std::string bytes, ReadFile(path_, 1 << 24));
  EXPECT_EQ(*checkpoint->DigestHex(), Sha256Hex(bytes));
  int64_t weight_bytes = 0;
  for (const auto& [name, tensor] : TinyModelWeights({})) {
    weight_bytes += static_cast<int64_t>(4 * tensor.values.size());
  }
  EXPECT_EQ(checkpoint->weight_bytes(), weight_bytes);
  EXPECT_THAT(checkpoint->Tensor(kHeadName),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("lm_head.weight")));
  EXPECT_THAT(checkpoint->Tensor("nonsense"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("nonsense")));
}

TEST_F(GgufCheckpointTest, TheContextCanBeReplaced) {
  ASSERT_OK(WriteTinyGguf(path_));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint,
                       OpenCheckpoint(path_, {.max_position_embeddings = 99}));
  EXPECT_EQ(checkpoint->config().max_position_embeddings, 99);
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ReadCheckpointConfig(path_));
  EXPECT_EQ(config.max_position_embeddings, 256);
}

TEST_F(GgufCheckpointTest, ManyThreadsSeeOneTensor) {
  ASSERT_OK(WriteTinyGguf(path_, {}, TinyGgufType::kQ8_0));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(path_));
  std::vector<std::map<std::string, const void*>> seen(4);
  std::vector<std::thread> threads;
  for (auto& mine : seen) {
    threads.emplace_back([&] {
      for (const TensorSpec& spec : ModelTensors(checkpoint->config())) {
        absl::StatusOr<TensorView> view = checkpoint->Tensor(spec.name);
        if (view.ok()) mine[spec.name] = view->data;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(seen[0].size(), ModelTensors(checkpoint->config()).size());
  for (const auto& other : seen) EXPECT_EQ(other, seen[0]);
}

// A llama of one block with hidden_size 32, for what the tiny model's writer does not vary.
class SmallGguf {
 public:
  SmallGguf() {
    writer_.String("general.architecture", "llama");
    Sizes("llama");
  }
  explicit SmallGguf(const std::string& architecture) {
    writer_.String("general.architecture", architecture);
    Sizes(architecture);
  }
  void Sizes(const std::string& arch) {
    writer_.Uint32(arch + ".block_count", 1);
    writer_.Uint32(arch + ".context_length", 64);
    writer_.Uint32(arch + ".embedding_length", 32);
    writer_.Uint32(arch + ".feed_forward_length", 32);
    writer_.Uint32(arch + ".attention.head_count", 1);
    writer_.Float32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f);
    writer_.Float32(arch + ".rope.freq_base", 500000.0f);
  }
  void Tensors() {
    Zeros("token_embd.weight", {32, 8});
    for (const char* name :
         {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}) {
      Zeros("blk.0." + std::string(name) + ".weight", {32, 32});
    }
    Zeros("blk.0.attn_norm.weight", {32});
    Zeros("blk.0.ffn_norm.weight", {32});
    Zeros("output_norm.weight", {32});
  }
  void Zeros(const std::string& name, const std::vector<uint64_t>& shape) {
    size_t count = 1;
    for (uint64_t dim : shape) count *= dim;
    writer_.Tensor(name, shape, 0, std::string(4 * count, '\0'));
  }
  GgufWriter* operator->() { return &writer_; }
  std::string Finish() const { return writer_.Finish(); }

 private:
  GgufWriter writer_;
};

// The factors as llama.cpp's converter computes them (conversion of LlamaForCausalLM).
std::string Llama3Factors(double factor, double theta, int head_dim, double low, double high,
                          double context) {
  std::string bytes;
  for (int i = 0; i < head_dim; i += 2) {
    const double frequency = 1 / std::pow(theta, static_cast<double>(i) / head_dim);
    const double wavelength = 2 * M_PI / frequency;
    double value = 1;
    if (wavelength > context / low) {
      value = factor;
    } else if (wavelength >= context / high) {
      const double smooth = (context / wavelength - low) / (high - low);
      value = 1 / ((1 - smooth) / factor + smooth);
    }
    bytes += LittleEndian(static_cast<float>(value));
  }
  return bytes;
}

TEST_F(GgufCheckpointTest, RopeFactorsOfLlama3BecomeItsParameters) {
  SmallGguf gguf;
  gguf.Tensors();
  gguf->Tensor("rope_freqs.weight", {16}, 0, Llama3Factors(32, 500000, 32, 1, 4, 8192));
  OverwriteFile(path_, gguf.Finish());
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(path_));
  EXPECT_EQ(checkpoint->config().rope_scaling,
            (RopeScaling{RopeScaling::Type::kLlama3, 32, 1, 4, 8192}));
}

TEST_F(GgufCheckpointTest, OtherRopeFactorsAreRefusedByName) {
  for (const double high : {3.0, 8.0}) {
    SmallGguf gguf;
    gguf.Tensors();
    gguf->Tensor("rope_freqs.weight", {16}, 0, Llama3Factors(8, 500000, 32, 1, high, 8192));
    OverwriteFile(path_, gguf.Finish());
    EXPECT_THAT(OpenCheckpoint(path_), StatusIs(kInvalid, HasSubstr("rope_freqs.weight")));
  }
  SmallGguf gguf;
  gguf.Tensors();
  std::string zeros(64, '\0');
  gguf->Tensor("rope_freqs.weight", {16}, 0, zeros);
  OverwriteFile(path_, gguf.Finish());
  EXPECT_THAT(OpenCheckpoint(path_), StatusIs(kInvalid, HasSubstr("rope_freqs.weight")));
}

TEST_F(GgufCheckpointTest, RopeFactorsOfOneChangeNothing) {
  SmallGguf gguf;
  gguf.Tensors();
  std::string ones;
  for (int i = 0; i < 16; ++i) ones += LittleEndian(1.0f);
  gguf->Tensor("rope_freqs.weight", {16}, 0, ones);
  OverwriteFile(path_, gguf.Finish());
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(path_));
  EXPECT_EQ(checkpoint->config().rope_scaling.type, RopeScaling::Type::kNone);
  EXPECT_TRUE(checkpoint->tokenizer_json().empty());
}

TEST_F(GgufCheckpointTest, LinearScalingUnderBothItsKeys) {
  for (const bool old_key : {false, true}) {
    SmallGguf gguf;
    gguf.Tensors();
    if (old_key) {
      gguf->Float32("llama.rope.scale_linear", 4);
    } else {
      gguf->String("llama.rope.scaling.type", "linear");
      gguf->Float32("llama.rope.scaling.factor", 4);
    }
    OverwriteFile(path_, gguf.Finish());
    ASSERT_OK_AND_ASSIGN(const ModelConfig config, ReadCheckpointConfig(path_));
    EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLinear);
    EXPECT_EQ(config.rope_scaling.factor, 4);
  }
}

TEST_F(GgufCheckpointTest, EndOfTurnTokensEndAGenerationToo) {
  SmallGguf gguf;
  gguf.Tensors();
  gguf->Uint32("tokenizer.ggml.eos_token_id", 2);
  gguf->Uint32("tokenizer.ggml.eot_token_id", 5);
  gguf->Uint32("tokenizer.ggml.bos_token_id", UINT32_MAX);
  OverwriteFile(path_, gguf.Finish());
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, ReadCheckpointConfig(path_));
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2, 5));
  EXPECT_EQ(config.bos_token_id, -1);
}

struct BadModel {
  std::string name;
  std::function<void(SmallGguf&)> change;
  std::string message;
  absl::StatusCode code = kInvalid;
};

void PrintTo(const BadModel& value, std::ostream* out) { *out << value.name; }

class BadGgufModelTest : public testing::TestWithParam<BadModel> {};

TEST_P(BadGgufModelTest, IsRefusedByName) {
  TempDirectory directory;
  const std::string path = directory.Path("bad.gguf");
  SmallGguf gguf;
  gguf.Tensors();
  GetParam().change(gguf);
  OverwriteFile(path, gguf.Finish());
  EXPECT_THAT(
      OpenCheckpoint(path),
      StatusIs(GetParam().code, AllOf(HasSubstr("bad.gguf"), HasSubstr(GetParam().message))));
}

const BadModel kBadModels[] = {
    {"Experts", [](SmallGguf& g) { g->Uint32("llama.expert_count", 8); },
     "llama.expert_count: found 8"},
    {"LogitScale", [](SmallGguf& g) { g->Float32("llama.logit_scale", 2); },
     "llama.logit_scale: found 2"},
    {"SlidingWindow", [](SmallGguf& g) { g->Uint32("llama.attention.sliding_window", 16); },
     "llama.attention.sliding_window: found 16"},
    {"NotCausal", [](SmallGguf& g) { g->Bool("llama.attention.causal", false); }, "causal"},
    {"Yarn", [](SmallGguf& g) { g->String("llama.rope.scaling.type", "yarn"); }, "found \"yarn\""},
    {"PartialRotary", [](SmallGguf& g) { g->Uint32("llama.rope.dimension_count", 16); },
     "llama.rope.dimension_count: found 16, wanted the head size 32"},
    {"ValueLength", [](SmallGguf& g) { g->Uint32("llama.attention.value_length", 16); },
     "value_length"},
    {"HeadsPerLayer",
     [](SmallGguf& g) {
       g->Int32s("llama.attention.head_count_kv", {1, 1});
     },
     "found an array of 2"},
    {"KeyHeadsZero", [](SmallGguf& g) { g->Uint32("llama.attention.head_count_kv", 0); },
     "found 0"},
    {"VocabSize", [](SmallGguf& g) { g->Uint32("llama.vocab_size", 9); },
     "the 8 rows of token_embd"},
    {"EosOutside", [](SmallGguf& g) { g->Uint32("tokenizer.ggml.eos_token_id", 8); }, "less than"},
    {"UnknownTensor", [](SmallGguf& g) { g.Zeros("blk.0.attn_sinks.weight", {1}); },
     "blk.0.attn_sinks.weight"},
    {"LayerTooMany", [](SmallGguf& g) { g.Zeros("blk.1.attn_norm.weight", {32}); },
     "blk.1.attn_norm.weight"},
    {"BiasOfOneKindOnly", [](SmallGguf& g) { g.Zeros("blk.0.attn_q.bias", {32}); },
     "blk.0.attn_k.bias", absl::StatusCode::kDataLoss},
    {"HeadOfOtherShape",
     [](SmallGguf& g) {
       g.Zeros("output.weight", {32, 7});
     },
     "output.weight: found shape [7, 32], wanted [8, 32]", absl::StatusCode::kDataLoss},
    {"TemplateNotText", [](SmallGguf& g) { g->String("tokenizer.chat_template", "\xff"); },
     "tokenizer.chat_template"},
    {"TokenizerUnknown", [](SmallGguf& g) { g->String("tokenizer.ggml.model", "bert"); },
     "tokenizer.ggml.model: found \"bert\""},
};

INSTANTIATE_TEST_SUITE_P(All, BadGgufModelTest, testing::ValuesIn(kBadModels),
                         [](const auto& info) { return info.param.name; });

TEST_F(GgufCheckpointTest, BlockQuantizedVectorsAreRefused) {
  SmallGguf gguf;
  gguf.Zeros("token_embd.weight", {32, 8});
  gguf->Tensor("blk.0.attn_norm.weight", {32}, 8, std::string(34, '\0'));
  ASSERT_NO_FATAL_FAILURE(OverwriteFile(path_, gguf.Finish()));
  EXPECT_THAT(OpenCheckpoint(path_),
              StatusIs(kInvalid, HasSubstr("blk.0.attn_norm.weight: a vector of type Q8_0")));
}

TEST_F(GgufCheckpointTest, MissingPiecesAreNamed) {
  SmallGguf empty;
  OverwriteFile(path_, empty.Finish());
  EXPECT_THAT(OpenCheckpoint(path_),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("token_embd.weight is missing")));
  SmallGguf part;
  part.Zeros("token_embd.weight", {32, 8});
  OverwriteFile(path_, part.Finish());
  EXPECT_THAT(OpenCheckpoint(path_),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("blk.0.attn_norm.weight")));
  OverwriteFile(path_, SmallGguf("gemma3").Finish());
  EXPECT_THAT(OpenCheckpoint(path_),
              StatusIs(kInvalid, HasSubstr("found \"gemma3\", wanted llama, qwen2 or qwen3")));
  OverwriteFile(path_, GgufWriter().Finish());
  EXPECT_THAT(OpenCheckpoint(path_),
              StatusIs(kInvalid, HasSubstr("general.architecture: found nothing")));
}

}  // namespace
}  // namespace quern
