// What training leaves behind must mean the same to the serving kernels: logits of one packed
// model through LibTorch (dense, fp32) and through the engine.

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "core/engine/engine.h"
#include "core/model/tensor_names.h"
#include "core/quant/block_ap.h"
#include "core/quant/quantize.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

constexpr int kLength = 48;

std::vector<int32_t> Tokens(int seed) {
  std::vector<int32_t> tokens;
  for (int t = 0; t < kLength; ++t) tokens.push_back((seed * 37 + t * t * 11 + t * seed) % 300);
  return tokens;
}

// The blocks of `model` as training would hold them.
TorchModel ToTorchModel(const PackedModel& model) {
  TorchModel torch;
  torch.embedding = ToDense(model.matrices.at(std::string(kEmbeddingName)), at::kCPU);
  torch.final_norm = at::tensor(model.vectors.at(std::string(kFinalNormName)));
  torch.head = model.config.tie_word_embeddings
                   ? torch.embedding
                   : ToDense(model.matrices.at(std::string(kHeadName)), at::kCPU);
  const TrainedBlock all{.matrices = model.matrices, .vectors = model.vectors};
  for (int layer = 0; layer < model.config.num_hidden_layers; ++layer) {
    torch.blocks.push_back(ToTorchBlock(layer, all, WeightForm::kDense, at::kFloat, at::kCPU));
  }
  return torch;
}

struct Variant {
  const char* model_type;
  int bits;
  int group_size;
  bool symmetric;
  double target_bits = 0;
};

class PackedLogitsTest : public testing::TestWithParam<Variant> {};

TEST_P(PackedLogitsTest, EngineAndLibTorchAgree) {
  const Variant& variant = GetParam();
  const std::string directory = testing::TempDir() + "/packed_logits";
  ASSERT_OK(RemoveTree(directory));
  ASSERT_OK(WriteTinyCheckpoint(
      directory + "/model", {.model_type = variant.model_type,
                             .tie_word_embeddings = std::string(variant.model_type) != "llama"}));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(directory + "/model"));
  Task task;
  task.method = QuantMethod::kBlockAp;
  task.compute_dtype = ComputeDtype::kFloat32;
  task.format = {
      .bits = variant.bits, .group_size = variant.group_size, .symmetric = variant.symmetric};
  task.target_bits = variant.target_bits;
  task.block_ap = {.sample_count = 4,
                   .sequence_length_tokens = kLength,
                   .epoch_count = 1,
                   .batch_size = 1,
                   .weight_learning_rate = 1e-3,
                   .quant_learning_rate = 1e-3,
                   .zero_point_learning_rate = 0.0,
                   .validation_sample_count = 0,
                   .start = QuantStart::kSearch,
                   .target = BlockTarget::kSourceStream,
                   .loss = BlockLoss::kRelativePerToken,
                   .round_scales = true};
  ASSERT_OK_AND_ASSIGN(
      PackedModel packed,
      Quantize(*checkpoint, task, {Tokens(1), Tokens(2), Tokens(3), Tokens(4)},
               {.work_directory = directory + "/work", .num_threads = 1, .device = "cpu"}));
  const auto model = std::make_shared<const PackedModel>(std::move(packed));

  const std::vector<int32_t> tokens = Tokens(9);
  const TorchModel torch = ToTorchModel(*model);
  const RotaryTables rotary = MakeRotaryTables(model->config, kLength, at::kCPU);
  TorchOps ops(model->config, rotary, at::tensor(tokens).to(at::kLong).unsqueeze(0));
  const at::Tensor expected =
      RunDecoder(ops, torch, model->config.num_hidden_layers).squeeze(0).contiguous();

  ASSERT_OK_AND_ASSIGN(const auto engine, Engine::Create({.kv_cache_bytes = 1 << 22}));
  ASSERT_OK_AND_ASSIGN(const ModelHandle handle, engine->Load(*MakeModelSource(model)));
  at::Tensor found = at::empty_like(expected);
  ASSERT_OK(engine->Score(handle, tokens, [&](int position, absl::Span<const float> logits) {
    std::copy(logits.begin(), logits.end(),
              found.data_ptr<float>() + position * static_cast<int64_t>(logits.size()));
  }));
  // The kernels round the inputs of every product to 8 bits, half a step of which is 1/254 of a
  // group's largest input: 0.7 % of its root mean square, and seven products in each of two blocks
  // and the head add up to 2.7 %. A wrong layout, group or zero point is off by the whole of a
  // logit.
  const double error = (found - expected).square().mean().sqrt().item<double>();
  const double size = expected.square().mean().sqrt().item<double>();
  RecordProperty("relative_error", std::to_string(error / size));
  EXPECT_LT(error, 0.04 * size);
  ASSERT_OK(RemoveTree(directory));
}

INSTANTIATE_TEST_SUITE_P(
    Variants, PackedLogitsTest,
    testing::Values(Variant{"llama", 2, 64, true}, Variant{"llama", 3, 32, false},
                    Variant{"llama", 4, 64, false}, Variant{"llama", 8, 128, false},
                    Variant{"qwen2", 4, 0, true}, Variant{"qwen3", 3, 64, true},
                    Variant{"mistral", 2, 0, false}, Variant{"llama", 2, 64, false, 3.5}),
    [](const auto& info) {
      return std::string(info.param.model_type) + "_w" + std::to_string(info.param.bits) + "g" +
             std::to_string(info.param.group_size) + (info.param.symmetric ? "s" : "a") +
             (info.param.target_bits > 0 ? "_mixed" : "");
    });

}  // namespace
}  // namespace quern
