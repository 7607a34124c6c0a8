// Checkpoints with weights that a sound training never leaves: each method either gives a model of
// finite weights or says which tensor is wrong.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/artifact/pack.h"
#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/plan/plan.h"
#include "core/quant/quantize.h"
#include "core/safetensors/safetensors.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;

constexpr int kSequenceTokens = 24;
constexpr char kHostileTensor[] = "model.layers.0.mlp.gate_proj.weight";
constexpr QuantMethod kEveryMethod[] = {QuantMethod::kRtn, QuantMethod::kGptq, QuantMethod::kAwq,
                                        QuantMethod::kBlockAp, QuantMethod::kBlockApE2eQp};

class HostileWeightsTest : public testing::TestWithParam<QuantMethod> {
 protected:
  // A model whose tensor kHostileTensor, [rows, cols], was changed, quantized to 4 bits.
  absl::StatusOr<PackedModel> Run(const std::function<void(std::vector<float>&)>& change) {
    TinyModelOptions options;
    const std::string model = directory_.Path("model");
    RETURN_IF_ERROR(WriteTinyCheckpoint(model, options));
    std::map<std::string, TinyTensor> weights = TinyModelWeights(options);
    change(weights.at(kHostileTensor).values);
    std::map<std::string, TensorView> views;
    for (auto& [name, tensor] : weights) {
      views[name] = {DType::kF32, tensor.shape, tensor.values.data(),
                     tensor.values.size() * sizeof(float)};
    }
    RETURN_IF_ERROR(WriteSafetensors(model + "/model.safetensors", views, {{"format", "pt"}}));
    ASSIGN_OR_RETURN(const auto checkpoint, OpenCheckpoint(model));
    ASSIGN_OR_RETURN(Task task, ParseTask(R"({"checkpoint":{"path":"model"},"preset":"QUICK",)"
                                          R"("format":{"bits":4,"groupSize":32}})"));
    task.method = GetParam();
    std::vector<std::vector<int32_t>> calibration;
    if (task.method != QuantMethod::kRtn) {
      task.block_ap.sample_count = 8;
      task.block_ap.sequence_length_tokens = kSequenceTokens;
    }
    if (task.method == QuantMethod::kBlockApE2eQp) {
      task.e2e_qp.first_sample = 0;
      task.e2e_qp.sample_count = 8;
      task.e2e_qp.sequence_length_tokens = kSequenceTokens;
    }
    ASSIGN_OR_RETURN(const PlanResult plan, MakePlan(task, checkpoint->config(), {}));
    const CalibrationShape shape = CalibrationShapeOf(plan.resolved);
    for (int i = 0; i < shape.num_sequences; ++i) {
      std::vector<int32_t>& row = calibration.emplace_back();
      for (int t = 0; t < kSequenceTokens; ++t) row.push_back((i * 37 + t * t * 11 + t * i) % 300);
    }
    return Quantize(*checkpoint, plan.resolved, calibration,
                    {.work_directory = directory_.Path(std::to_string(++num_runs_)),
                     .num_threads = 1,
                     .device = "cpu"});
  }

  static void ExpectFinite(const PackedModel& model) {
    for (const auto& [name, matrix] : model.matrices) {
      for (float value : Dequantize(matrix)) ASSERT_TRUE(std::isfinite(value)) << name;
    }
  }

  TempDirectory directory_;
  int num_runs_ = 0;
};

TEST_P(HostileWeightsTest, WhatIsNotFiniteIsNamed) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const auto model = Run([&](std::vector<float>& weights) { weights[77] = value; });
    EXPECT_THAT(model, StatusIs(absl::StatusCode::kDataLoss,
                                AllOf(HasSubstr(kHostileTensor), HasSubstr("not finite"))));
  }
}

TEST_P(HostileWeightsTest, AGroupOfZerosStaysZero) {
  ASSERT_OK_AND_ASSIGN(const PackedModel model, Run([](std::vector<float>& weights) {
                         std::fill_n(weights.begin(), 32, 0.0f);
                       }));
  ExpectFinite(model);
  const std::vector<float> values = Dequantize(model.matrices.at(kHostileTensor));
  for (int i = 0; i < 32; ++i) EXPECT_LT(std::fabs(values[i]), 0.02f) << i;
}

TEST_P(HostileWeightsTest, AMatrixOfZerosAndOneOfEqualWeights) {
  for (const float value : {0.0f, 0.25f, -3.0f}) {
    ASSERT_OK_AND_ASSIGN(const PackedModel model, Run([value](std::vector<float>& weights) {
                           std::fill(weights.begin(), weights.end(), value);
                         }));
    ExpectFinite(model);
    double sum = 0;
    const std::vector<float> values = Dequantize(model.matrices.at(kHostileTensor));
    for (float one : values) sum += one;
    EXPECT_NEAR(sum / static_cast<double>(values.size()), value, 0.02 + 0.15 * std::fabs(value));
  }
}

TEST_P(HostileWeightsTest, AnOutlierBeyondWhatAScaleCanSay) {
  for (const float value : {1e30f, -1e30f}) {
    const auto model = Run([&](std::vector<float>& weights) { weights[77] = value; });
    if (model.ok()) {
      ExpectFinite(*model);
    } else {
      EXPECT_THAT(model.status().code(),
                  AnyOf(absl::StatusCode::kAborted, absl::StatusCode::kDataLoss, kInvalid));
      EXPECT_THAT(std::string(model.status().message()),
                  AnyOf(HasSubstr(kHostileTensor), HasSubstr("block 0")));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, HostileWeightsTest, testing::ValuesIn(kEveryMethod),
                         [](const auto& info) { return std::string(MethodName(info.param)); });

}  // namespace
}  // namespace quern
