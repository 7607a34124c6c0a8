// The same training on a GPU. Skips where there is none.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "core/artifact/pack.h"
#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/plan/plan.h"
#include "core/quant/quantize.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<DeviceInfo> gpu = FindDevice("cuda");
    if (!gpu.ok()) GTEST_SKIP() << "no GPU to test on: " << gpu.status().message();
    ASSERT_OK(RemoveTree(directory_));
    ASSERT_OK(WriteTinyCheckpoint(directory_ + "/model"));
    ASSERT_OK_AND_ASSIGN(checkpoint_, OpenCheckpoint(directory_ + "/model"));
    for (int i = 0; i < 10; ++i) {
      std::vector<int32_t> row;
      for (int t = 0; t < 24; ++t) row.push_back((i * 37 + t * t * 11 + t * i) % 300);
      calibration_.push_back(row);
    }
  }
  void TearDown() override { EXPECT_OK(RemoveTree(directory_)); }

  struct Result {
    PackedModel model;
    std::vector<double> losses;
  };

  absl::StatusOr<Result> Run(const Task& task, const std::string& device, const std::string& name,
                             int64_t activation_memory_bytes = int64_t{1} << 40) {
    Result result;
    QuantizeOptions options;
    options.work_directory = directory_ + "/" + name;
    options.device = device;
    options.activation_memory_bytes = activation_memory_bytes;
    options.on_progress = [&](const QuantizeProgress& progress) {
      if (progress.loss.has_value()) result.losses.push_back(*progress.loss);
    };
    ASSIGN_OR_RETURN(result.model, Quantize(*checkpoint_, task, calibration_, options));
    return result;
  }

  Task ResolvedTask(QuantMethod method, ComputeDtype compute_dtype) const {
    Task task;
    task.method = method;
    task.format = {.bits = 3, .group_size = 64};
    task.preset = Preset::kQuick;
    task.compute_dtype = compute_dtype;
    task.block_ap.sample_count = 8;
    task.block_ap.sequence_length_tokens = 24;
    if (method == QuantMethod::kBlockApE2eQp) {
      task.block_ap.epoch_count = 2;
      task.e2e_qp.sample_count = 8;
      task.e2e_qp.sequence_length_tokens = 24;
    }
    const absl::StatusOr<PlanResult> plan = MakePlan(task, checkpoint_->config(), Machine{});
    EXPECT_OK(plan);
    return plan.ok() ? plan->resolved : task;
  }

  const std::string directory_ = testing::TempDir() + "/gpu_test";
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<std::vector<int32_t>> calibration_;
};

TEST_F(GpuTest, TrainsAsTheProcessorDoes) {
  const Task task = ResolvedTask(QuantMethod::kBlockApE2eQp, ComputeDtype::kFloat32);
  ASSERT_OK_AND_ASSIGN(const Result host, Run(task, "cpu", "host"));
  ASSERT_OK_AND_ASSIGN(const Result device, Run(task, "cuda", "device"));
  ASSERT_EQ(device.losses.size(), host.losses.size());
  for (size_t i = 0; i < host.losses.size(); ++i) {
    EXPECT_NEAR(device.losses[i], host.losses[i], 0.05 * host.losses[i]) << i;
  }
}

TEST_F(GpuTest, ProductsOfBfloat16TrainAsThoseOfFloats) {
  Task task = ResolvedTask(QuantMethod::kBlockApE2eQp, ComputeDtype::kFloat32);
  ASSERT_OK_AND_ASSIGN(const Result floats, Run(task, "cuda", "floats"));
  task.compute_dtype = ComputeDtype::kBfloat16;
  ASSERT_OK_AND_ASSIGN(const Result rounded, Run(task, "cuda", "bfloat16"));
  ASSERT_EQ(rounded.losses.size(), floats.losses.size());
  for (size_t i = 0; i < floats.losses.size(); ++i) {
    EXPECT_NEAR(rounded.losses[i], floats.losses[i], 0.1 * floats.losses[i]) << i;
  }
}

TEST_F(GpuTest, StatesOnTheDiskGiveTheSameCodes) {
  const Task task = ResolvedTask(QuantMethod::kGptq, ComputeDtype::kFloat32);
  ASSERT_OK_AND_ASSIGN(const Result kept, Run(task, "cuda", "kept"));
  ASSERT_OK_AND_ASSIGN(const Result spilled, Run(task, "cuda", "spilled", 0));
  for (const auto& [name, matrix] : kept.model.matrices) {
    EXPECT_EQ(UnpackCodes(matrix), UnpackCodes(spilled.model.matrices.at(name))) << name;
  }
}

}  // namespace
}  // namespace quern
