#include "core/quant/awq.h"

#include <gtest/gtest.h>

#include "core/quant/activation_store.h"
#include "core/quant/block_ap.h"
#include "core/quant/fake_quantizer.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

constexpr int64_t kHidden = 64;

ModelConfig AwqConfig(int num_key_value_heads) {
  ModelConfig config;
  config.model_type = "llama";
  config.hidden_size = kHidden;
  config.intermediate_size = 96;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 4;
  config.num_key_value_heads = num_key_value_heads;
  config.head_dim = 16;
  config.vocab_size = 40;
  config.max_position_embeddings = 64;
  return config;
}

at::Tensor Drawn(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kFloat);
}

TorchBlock DrawnBlock(const ModelConfig& config) {
  TorchBlock block;
  const auto matrix = [&](BlockMatrix which, int64_t rows, int64_t cols, uint64_t seed) {
    block.linears[which].weight = Drawn({rows, cols}, seed) / std::sqrt(static_cast<double>(cols));
  };
  matrix(kQProj, config.q_size(), kHidden, 1);
  matrix(kKProj, config.kv_size(), kHidden, 2);
  matrix(kVProj, config.kv_size(), kHidden, 3);
  matrix(kOProj, kHidden, config.q_size(), 4);
  matrix(kGateProj, config.intermediate_size, kHidden, 5);
  matrix(kUpProj, config.intermediate_size, kHidden, 6);
  matrix(kDownProj, kHidden, config.intermediate_size, 7);
  block.linears[kVProj].bias = Drawn({config.kv_size()}, 8);
  block.linears[kUpProj].bias = Drawn({config.intermediate_size}, 9);
  // A few channels see far larger inputs than others, as in trained models.
  block.input_norm = at::ones({kHidden});
  block.input_norm.narrow(0, 5, 3).fill_(12);
  block.post_attention_norm = at::ones({kHidden});
  block.post_attention_norm.narrow(0, 20, 2).fill_(15);
  return block;
}

class AwqTest : public testing::TestWithParam<int> {
 protected:
  AwqTest() : config_(AwqConfig(GetParam())), block_(DrawnBlock(config_)) {
    const at::Tensor ids = at::arange(240, at::kLong).view({8, 30}).remainder(40);
    states_.emplace(Drawn({40, kHidden}, 10), ids);
    after_.emplace(states_->Copy());
    after_->Advance(config_, rotary(), 0, block_, &moments_, states_->num_sequences());
  }
  RotaryTables rotary() const { return MakeRotaryTables(config_, 30, at::kCPU); }
  // How far the block's output is from the source's, relative to what the block adds.
  double Error(const TorchBlock& block) const {
    ActivationStore reached = states_->Copy();
    reached.Advance(config_, rotary(), 0, block);
    const at::Tensor target = after_->Rows(0, 8);
    return ((reached.Rows(0, 8) - target).square().sum() /
            (target - states_->Rows(0, 8)).square().sum())
        .item<double>();
  }

  const ModelConfig config_;
  const TorchBlock block_;
  std::optional<ActivationStore> states_;
  std::optional<ActivationStore> after_;
  InputMoments moments_{.form = InputMoments::Form::kFull};
};

TEST_P(AwqTest, TheScaledBlockComputesTheSame) {
  TorchBlock scaled = block_;
  InputMoments moments = moments_;
  ScaleChannels({.bits = 3, .group_size = 32}, 0, moments, scaled);
  EXPECT_LT(Error(scaled), 1e-9);
  EXPECT_FALSE(at::allclose(scaled.input_norm, block_.input_norm)) << "something was scaled";
  EXPECT_FALSE(at::allclose(scaled.linears[kDownProj].weight, block_.linears[kDownProj].weight));
  const bool own_heads = config_.num_key_value_heads == config_.num_attention_heads;
  EXPECT_EQ(at::allclose(scaled.linears[kOProj].weight, block_.linears[kOProj].weight), !own_heads);
  // The moments are those of the scaled block's inputs.
  InputMoments measured{.form = InputMoments::Form::kFull};
  states_->Copy().Advance(config_, rotary(), 0, scaled, &measured, states_->num_sequences());
  for (const BlockMatrix matrix : {kQProj, kGateProj, kDownProj}) {
    EXPECT_TRUE(at::allclose(measured.of(matrix), moments.of(matrix), 1e-3, 1e-3)) << matrix;
  }
}

TEST_P(AwqTest, EachMatrixIsRoundedToItsOwnBits) {
  const auto scaled_down = [&](const QuantFormat& format) {
    TorchBlock scaled = block_;
    InputMoments moments = moments_;
    ScaleChannels(format, 0, moments, scaled);
    return scaled.linears[kDownProj].weight;
  };
  const at::Tensor wanted = scaled_down({.bits = 8, .group_size = 32});
  ASSERT_FALSE(at::equal(scaled_down({.bits = 2, .group_size = 32}), wanted));
  EXPECT_TRUE(at::equal(
      scaled_down(
          {.bits = 2, .group_size = 32, .matrix_bits = {{MatrixTensorName(0, kDownProj), 8}}}),
      wanted));
}

TEST_P(AwqTest, LosesLessThanRounding) {
  const QuantFormat format{.bits = 3, .group_size = 32};
  ASSERT_OK_AND_ASSIGN(const TrainedBlock awq, QuantizeBlockByAwq(format, 0, block_, moments_));
  ASSERT_OK_AND_ASSIGN(const TrainedBlock rounded,
                       StartBlock(QuantStart::kMinMax, format, 0, block_, moments_));
  const auto error = [&](const TrainedBlock& trained) {
    return Error(ToTorchBlock(0, trained, WeightForm::kDense, at::kFloat, at::kCPU));
  };
  EXPECT_LT(error(awq), 0.8 * error(rounded));
}

TEST_P(AwqTest, MomentsThatAreNotFiniteAreRefused) {
  moments_.sums[kDownProj][3][4] = INFINITY;
  EXPECT_THAT(QuantizeBlockByAwq({.bits = 4}, 0, block_, moments_),
              StatusIs(absl::StatusCode::kAborted, testing::HasSubstr("not finite")));
}

INSTANTIATE_TEST_SUITE_P(KeyValueHeads, AwqTest, testing::Values(2, 4));

}  // namespace
}  // namespace quern
