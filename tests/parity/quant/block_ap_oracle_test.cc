// Block-AP with the published recipe against tests/oracle/block_ap.py, which no code of this
// project had a part in: the loss of each of 50 steps, and all that training leaves.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/artifact/pack.h"
#include "core/model/tensor_names.h"
#include "core/quant/block_ap.h"
#include "core/safetensors/safetensors.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

constexpr int kHidden = 32;
constexpr int kSequences = 10;
constexpr int kTokens = 16;

class GoldenRun {
 public:
  explicit GoldenRun(std::string run) : run_(std::move(run)) {
    const char* source = std::getenv("QUERN_SOURCE_DIR");
    file_.emplace(SafetensorsFile::Open(std::string(source == nullptr ? "." : source) +
                                        "/tests/testdata/block_ap_golden.safetensors")
                      .value());
  }
  at::Tensor operator[](const std::string& name) const {
    const TensorView& view = file_->tensors().at(run_ + "." + name);
    at::Tensor tensor = at::empty(view.shape, at::kFloat);
    std::memcpy(tensor.data_ptr(), view.data, view.size_bytes);
    return tensor;
  }

 private:
  std::string run_;
  std::optional<SafetensorsFile> file_;
};

// States [sequences, tokens, hidden], by way of an embedding with a row for each.
ActivationStore ToStore(const at::Tensor& states) {
  return ActivationStore(states.reshape({-1, kHidden}),
                         at::arange(kSequences * kTokens).view({kSequences, kTokens}));
}

ModelConfig OracleConfig() {
  ModelConfig config;
  config.model_type = "llama";
  config.hidden_size = kHidden;
  config.intermediate_size = 64;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.vocab_size = kSequences * kTokens;
  config.max_position_embeddings = kTokens;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 10000;
  return config;
}

struct Recipe {
  const char* run;
  int bits;
  double weight_rate;
  double quant_rate;
};

class BlockApOracleTest : public testing::TestWithParam<Recipe> {};

TEST_P(BlockApOracleTest, EveryStepAndTheResultAreTheOracles) {
  const Recipe& recipe = GetParam();
  const GoldenRun golden(recipe.run);
  const ModelConfig config = OracleConfig();
  const RotaryTables rotary = MakeRotaryTables(config, kTokens, at::kCPU);
  TorchBlock source;
  for (int i = 0; i < kNumBlockMatrices; ++i) {
    source.linears[i].weight =
        golden[std::string("start.") + BlockMatrixName(static_cast<BlockMatrix>(i))];
  }
  source.input_norm = golden["start.input_layernorm"];
  source.post_attention_norm = golden["start.post_attention_layernorm"];
  ActivationStore targets = ToStore(golden["source_input"]);
  targets.Advance(config, rotary, 0, source);
  const ActivationStore inputs = ToStore(golden["student_input"]);

  const QuantFormat format{.bits = recipe.bits, .group_size = 16};
  const BlockApSettings settings{.sample_count = kSequences,
                                 .sequence_length_tokens = kTokens,
                                 .epoch_count = 10,
                                 .batch_size = 2,
                                 .weight_learning_rate = recipe.weight_rate,
                                 .quant_learning_rate = recipe.quant_rate,
                                 .zero_point_learning_rate = recipe.quant_rate,
                                 .validation_sample_count = 0,
                                 .start = QuantStart::kMinMax,
                                 .target = BlockTarget::kSourceStream,
                                 .loss = BlockLoss::kMeanSquares,
                                 .round_scales = false};
  std::vector<double> losses;
  const BlockApContext context{.config = config,
                               .rotary = rotary,
                               .format = format,
                               .settings = settings,
                               .on_step = [&](int64_t, double loss) { losses.push_back(loss); }};
  ASSERT_OK_AND_ASSIGN(const TrainedBlock trained,
                       TrainBlock(context, 0, source, inputs, {&targets}, {}));

  const at::Tensor expected = golden["losses"];
  ASSERT_EQ(static_cast<int64_t>(losses.size()), expected.numel());
  for (size_t i = 0; i < losses.size(); ++i) {
    const double wanted = expected[static_cast<int64_t>(i)].item<double>();
    EXPECT_NEAR(losses[i], wanted, 1e-4 * wanted) << "step " << i;
  }
  int64_t num_codes = 0;
  int64_t num_equal = 0;
  for (int i = 0; i < kNumBlockMatrices; ++i) {
    const std::string name = BlockMatrixName(static_cast<BlockMatrix>(i));
    const PackedTensor& packed = trained.matrices.at(BlockTensorName(0, name + ".weight"));
    const at::Tensor codes = golden["codes." + name].contiguous();
    const std::vector<uint8_t> found = UnpackCodes(packed);
    for (size_t k = 0; k < found.size(); ++k) {
      num_equal += found[k] == static_cast<uint8_t>(codes.data_ptr<float>()[k]);
    }
    num_codes += codes.numel();
    // Stored as half floats: within 2^-11.
    const at::Tensor scales = golden["scales." + name];
    const at::Tensor stored = at::tensor(UnpackScales(packed)).view(scales.sizes());
    EXPECT_LT(((stored - scales) / scales).abs().max().item<double>(), 6e-4) << name;
    const std::vector<uint8_t> zero_points = UnpackZeroPoints(packed);
    const at::Tensor zeros = golden["zero_points." + name].contiguous();
    for (size_t k = 0; k < zero_points.size(); ++k) {
      EXPECT_EQ(zero_points[k], static_cast<uint8_t>(zeros.data_ptr<float>()[k])) << name;
    }
  }
  EXPECT_GE(num_equal, 0.999 * static_cast<double>(num_codes));
  for (const char* name : {"input_layernorm", "post_attention_layernorm"}) {
    const at::Tensor norm =
        at::tensor(trained.vectors.at(BlockTensorName(0, std::string(name) + ".weight")));
    EXPECT_TRUE(at::allclose(norm, golden[std::string("norms.") + name], 1e-4, 1e-5)) << name;
  }
}

// The published rates, and such as move codes and scales within 50 steps.
INSTANTIATE_TEST_SUITE_P(Recipes, BlockApOracleTest,
                         testing::Values(Recipe{"published", 2, 2e-5, 1e-4},
                                         Recipe{"fast", 3, 1e-3, 1e-3}),
                         [](const auto& info) { return std::string(info.param.run); });

}  // namespace
}  // namespace quern
