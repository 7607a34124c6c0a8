#include "core/quant/mixed_precision.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/checkpoint/checkpoint.h"
#include "core/quant/fake_quantizer.h"
#include "core/quant/torch_ops.h"
#include "tests/support/scratch_directory.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using Bits = std::map<std::string, int>;

TEST(ChooseMatrixBitsTest, SpendsTheBudgetWhereItGainsMost) {
  // Two matrices of equal size and one of four times it.
  const std::vector<MatrixSensitivity> all = {
      {"a", 100, {{2, 10.0}, {3, 2.0}, {4, 1.0}}},
      {"b", 100, {{2, 4.0}, {3, 3.0}, {4, 0.0}}},  // 3 lies above the line from 2 to 4
      {"c", 400, {{2, 20.0}, {3, 5.0}, {4, 2.0}}}};
  EXPECT_EQ(ChooseMatrixBits(all, 2, 2.1), (Bits{}));
  // a: 8 for 100 bits; c: 15 for 400; b: 4 for 200; a again: 1 for 100; c again: 3 for 400.
  EXPECT_EQ(ChooseMatrixBits(all, 2, 2.2), (Bits{{"a", 3}}));
  EXPECT_EQ(ChooseMatrixBits(all, 2, 2.84), (Bits{{"a", 3}, {"c", 3}}));
  // What does not fit is passed over for what does.
  EXPECT_EQ(ChooseMatrixBits(all, 2, 2.6), (Bits{{"a", 3}, {"b", 4}}));
  EXPECT_EQ(ChooseMatrixBits(all, 2, 4), (Bits{{"a", 4}, {"b", 4}, {"c", 4}}));
}

class SensitivityTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(WriteTinyCheckpoint(directory_.path() + "/model"));
    ASSERT_OK_AND_ASSIGN(checkpoint_, OpenCheckpoint(directory_.path() + "/model"));
    for (int i = 0; i < 8; ++i) {
      calibration_.emplace_back();
      for (int t = 0; t < 200; ++t) {
        calibration_.back().push_back((i * 37 + t * t * 11 + t * i) % 300);
      }
    }
  }

  // Log-probabilities of every token, with matrix `changed` rounded to `bits`, or none.
  at::Tensor LogProbabilities(const std::string& changed, int bits) const {
    const at::NoGradGuard no_grad;
    const ModelConfig& config = checkpoint_->config();
    const RotaryTables rotary = MakeRotaryTables(config, 200, at::kCPU);
    TorchModel model;
    model.embedding = LoadTensor(*checkpoint_, kEmbeddingName, at::kCPU).value();
    model.head = model.embedding;
    model.final_norm = LoadTensor(*checkpoint_, kFinalNormName, at::kCPU).value();
    TorchOps ops(config, rotary, ToTokenTensor(calibration_, 0, 8, 200, at::kCPU));
    at::Tensor x = ops.Embed(model);
    for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
      TorchBlock block = LoadBlock(*checkpoint_, layer, at::kCPU).value();
      for (int i = 0; i < kNumBlockMatrices; ++i) {
        if (MatrixTensorName(layer, BlockMatrix(i)) != changed) continue;
        at::Tensor& weight = block.linears[i].weight;
        weight = FakeQuantize(
            weight, SearchQuantParameters(weight, at::ones({weight.size(1)}), {.bits = bits}));
      }
      x = RunBlock(ops, layer, block, x);
    }
    return ops.Head(model, x).log_softmax(-1);
  }

  const ScratchDirectory directory_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<std::vector<int32_t>> calibration_;
};

// A random model's gradients at drawn tokens are noisy: the estimate of one matrix holds within a
// factor, that of all of them closer.
TEST_F(SensitivityTest, EstimatesTheDivergenceThatRoundingAMatrixCauses) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    ASSERT_OK_AND_ASSIGN(const std::vector<MatrixSensitivity> measured,
                         MeasureSensitivities(*checkpoint_, {.bits = 2, .group_size = 64},
                                              {2, 3, 4, 8}, calibration_, type, at::kCPU, {}));
    ASSERT_EQ(measured.size(), 2u * kNumBlockMatrices);
    const at::Tensor source = LogProbabilities("", 0);
    double sum_estimated = 0;
    double sum_found = 0;
    for (const MatrixSensitivity& matrix : measured) {
      SCOPED_TRACE(matrix.name);
      EXPECT_GT(matrix.loss.at(2), 2 * matrix.loss.at(3));
      EXPECT_GT(matrix.loss.at(3), 2 * matrix.loss.at(4));
      EXPECT_GT(matrix.loss.at(4), 50 * matrix.loss.at(8));
      const at::Tensor changed = LogProbabilities(matrix.name, 3);
      const double found = (source.exp() * (source - changed)).sum(-1).mean().item<double>();
      EXPECT_GT(matrix.loss.at(3), found / 6);
      EXPECT_LT(matrix.loss.at(3), found * 6);
      sum_estimated += matrix.loss.at(3);
      sum_found += found;
    }
    EXPECT_NEAR(sum_estimated / sum_found, 1, 0.5);
  }
}

TEST_F(SensitivityTest, IsCancelled) {
  EXPECT_THAT(MeasureSensitivities(*checkpoint_, {.bits = 2}, {2, 4}, calibration_, at::kFloat,
                                   at::kCPU, [] { return true; }),
              StatusIs(absl::StatusCode::kCancelled, testing::HasSubstr("sensitivities")));
}

}  // namespace
}  // namespace quern
