// The LibTorch operations against logits that Hugging Face transformers computed for tiny random
// models of every family (tests/oracle), which no code of this project had a part in.

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/checkpoint/checkpoint.h"
#include "core/model/tensor_names.h"
#include "core/quant/torch_ops.h"
#include "core/safetensors/safetensors.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

std::string GoldenDirectory() {
  const char* source = std::getenv("QUERN_SOURCE_DIR");
  return std::string(source == nullptr ? "." : source) + "/tests/testdata/golden_models/";
}

class TorchGoldenLogitsTest : public testing::TestWithParam<std::string> {};

TEST_P(TorchGoldenLogitsTest, DecoderGivesTheLogitsOfTransformers) {
  const std::string directory = GoldenDirectory() + GetParam();
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Checkpoint> checkpoint, OpenCheckpoint(directory));
  const ModelConfig& config = checkpoint->config();
  ASSERT_OK_AND_ASSIGN(const SafetensorsFile golden,
                       SafetensorsFile::Open(directory + "/logits.safetensors"));
  const TensorView& tokens = golden.tensors().at("tokens");
  const TensorView& logits = golden.tensors().at("logits");
  const int num_tokens = static_cast<int>(tokens.num_elements());
  at::Tensor ids = at::empty({1, num_tokens}, at::kInt);
  std::memcpy(ids.data_ptr(), tokens.data, tokens.size_bytes);
  at::Tensor expected = at::empty({num_tokens, config.vocab_size}, at::kFloat);
  ASSERT_EQ(logits.size_bytes, static_cast<size_t>(expected.nbytes()));
  std::memcpy(expected.data_ptr(), logits.data, logits.size_bytes);

  TorchModel model;
  ASSERT_OK_AND_ASSIGN(model.embedding, LoadTensor(*checkpoint, kEmbeddingName, at::kCPU));
  ASSERT_OK_AND_ASSIGN(model.final_norm, LoadTensor(*checkpoint, kFinalNormName, at::kCPU));
  model.head = model.embedding;
  if (!config.tie_word_embeddings) {
    ASSERT_OK_AND_ASSIGN(model.head, LoadTensor(*checkpoint, kHeadName, at::kCPU));
  }
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    ASSERT_OK_AND_ASSIGN(TorchBlock block, LoadBlock(*checkpoint, layer, at::kCPU));
    model.blocks.push_back(std::move(block));
  }
  const RotaryTables rotary = MakeRotaryTables(config, num_tokens, at::kCPU);
  TorchOps ops(config, rotary, ids.to(at::kLong));
  const at::Tensor found = RunDecoder(ops, model, config.num_hidden_layers).squeeze(0);
  // Both sum in fp32, in other orders: about 1e-6 of the largest logit a layer.
  const double tolerance = 2e-5 * expected.abs().max().item<double>();
  EXPECT_LT((found - expected).abs().max().item<double>(), tolerance);
}

INSTANTIATE_TEST_SUITE_P(Models, TorchGoldenLogitsTest,
                         testing::Values("llama", "llama_tied", "llama_mha", "llama_rope_llama3",
                                         "llama_rope_linear", "llama_biases", "mistral", "qwen2",
                                         "qwen3", "qwen3_biases"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace quern
