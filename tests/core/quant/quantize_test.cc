#include "core/quant/quantize.h"

#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "core/artifact/pack.h"
#include "core/artifact/tensor_check.h"
#include "core/base/file.h"
#include "core/checkpoint/checkpoint.h"
#include "core/plan/plan.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int kLength = 24;

class QuantizeTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "/quantize_" +
                 testing::UnitTest::GetInstance()->current_test_info()->name();
    for (char& c : directory_) c = c == '\\' ? '_' : c;
    ASSERT_OK(RemoveTree(directory_));
    ASSERT_OK(WriteTinyCheckpoint(directory_ + "/model"));
    ASSERT_OK_AND_ASSIGN(checkpoint_, OpenCheckpoint(directory_ + "/model"));
    for (int i = 0; i < 10; ++i) {
      std::vector<int32_t> row;
      for (int t = 0; t < kLength; ++t) row.push_back((i * 37 + t * t * 11 + t * i) % 300);
      calibration_.push_back(row);
    }
    options_.work_directory = directory_ + "/work";
    options_.device = "cpu";
    options_.num_threads = 1;  // more would wait for each other on a busy machine
    options_.on_progress = [this](const QuantizeProgress& progress) {
      progress_.push_back(progress);
    };
  }
  void TearDown() override { EXPECT_OK(RemoveTree(directory_)); }

  // A resolved task with few, large steps.
  Task MakeTask(QuantMethod method, QuantFormat format) const {
    Task task;
    task.method = method;
    task.format = format;
    task.compute_dtype = ComputeDtype::kFloat32;
    if (method != QuantMethod::kRtn) {
      task.block_ap = {.sample_count = 8,
                       .sequence_length_tokens = kLength,
                       .epoch_count = 2,
                       .batch_size = 1,
                       .weight_learning_rate = 1e-3,
                       .quant_learning_rate = 1e-3,
                       .zero_point_learning_rate = 0.0,
                       .validation_sample_count = 2,
                       .start = QuantStart::kSearch,
                       .target = BlockTarget::kSourceStream,
                       .loss = BlockLoss::kRelativePerToken,
                       .round_scales = true};
    }
    if (IsUntrained(method)) {
      task.block_ap = {.sample_count = 8, .sequence_length_tokens = kLength};
    }
    if (method == QuantMethod::kBlockApE2eQp) {
      task.e2e_qp = {.sample_count = 8,
                     .sequence_length_tokens = kLength,
                     .epoch_count = 2,
                     .batch_size = 2,
                     .learning_rate = 5e-3,
                     .loss = E2eLoss::kDistillation,
                     .trainable = E2eTrainable::kScales,
                     .weight_learning_rate = 0.0,
                     .first_sample = 0,
                     .absolute_rate = false,
                     .cross_entropy_share = 0};
    }
    return task;
  }

  absl::StatusOr<PackedModel> Run(const Task& task) {
    progress_.clear();
    return Quantize(*checkpoint_, task, calibration_, options_);
  }

  std::vector<double> Losses(Stage stage) const {
    std::vector<double> losses;
    for (const QuantizeProgress& progress : progress_) {
      if (progress.stage == stage && progress.loss.has_value()) losses.push_back(*progress.loss);
    }
    return losses;
  }

  std::string directory_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<std::vector<int32_t>> calibration_;
  QuantizeOptions options_;
  std::vector<QuantizeProgress> progress_;
};

void ExpectSameBytes(const PackedModel& a, const PackedModel& b) {
  EXPECT_EQ(a.vectors, b.vectors);
  ASSERT_EQ(a.matrices.size(), b.matrices.size());
  for (const auto& [name, matrix] : a.matrices) {
    const PackedTensor& other = b.matrices.at(name);
    EXPECT_EQ(UnpackCodes(matrix), UnpackCodes(other)) << name;
    EXPECT_EQ(UnpackScales(matrix), UnpackScales(other)) << name;
    EXPECT_EQ(UnpackZeroPoints(matrix), UnpackZeroPoints(other)) << name;
  }
}

using FormatParam = std::tuple<int, int, bool>;  // bits, group size, symmetric

class QuantizeFormatTest : public QuantizeTest, public testing::WithParamInterface<FormatParam> {};

TEST_P(QuantizeFormatTest, EveryMethodGivesTheWholeModel) {
  const auto [bits, group_size, symmetric] = GetParam();
  const QuantFormat format{.bits = bits,
                           .group_size = group_size,
                           .symmetric = symmetric,
                           .embedding_bits = bits == 3   ? 16
                                             : bits == 2 ? 4
                                                         : 8};
  for (QuantMethod method : {QuantMethod::kRtn, QuantMethod::kGptq, QuantMethod::kAwq,
                             QuantMethod::kBlockAp, QuantMethod::kBlockApE2eQp}) {
    options_.work_directory = directory_ + "/work" + std::to_string(static_cast<int>(method));
    ASSERT_OK_AND_ASSIGN(const PackedModel model, Run(MakeTask(method, format)));
    EXPECT_EQ(model.config, checkpoint_->config());
    EXPECT_EQ(model.tokenizer_json, checkpoint_->tokenizer_json());
    for (const TensorSpec& spec : ModelTensors(model.config)) {
      if (spec.kind == TensorSpec::Kind::kVector) {
        EXPECT_EQ(model.vectors.at(spec.name).size(), static_cast<size_t>(spec.shape[0]));
        continue;
      }
      const std::optional<MatrixFormat> wanted =
          FormatOf(format, spec.kind, static_cast<int>(spec.shape[1]));
      if (!wanted.has_value()) {
        EXPECT_EQ(model.half_matrices.at(spec.name).rows, spec.shape[0]);
        continue;
      }
      const PackedTensor& packed = model.matrices.at(spec.name);
      EXPECT_EQ(packed.rows, spec.shape[0]);
      EXPECT_EQ(packed.cols, spec.shape[1]);
      EXPECT_EQ(packed.bits, wanted->bits);
      EXPECT_EQ(packed.group_size, wanted->group_size);
      EXPECT_EQ(packed.symmetric, wanted->symmetric);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizeFormatTest,
                         testing::Values(FormatParam{2, 64, true}, FormatParam{3, 32, false},
                                         FormatParam{4, 64, false}, FormatParam{8, 0, true},
                                         FormatParam{4, 128, true}, FormatParam{2, 0, false}));

TEST_F(QuantizeTest, TrainingLowersTheLoss) {
  const QuantFormat format{.bits = 2, .symmetric = true};
  Task task = MakeTask(QuantMethod::kBlockApE2eQp, format);
  // A random model repeats nothing that eight sequences could teach about others.
  for (int i = 10; i < 100; ++i) {
    calibration_.push_back(calibration_[i % 10]);
    for (int t = 0; t < kLength; ++t) calibration_[i][t] = (i * 53 + t * t * 7 + t * i * 3) % 300;
  }
  task.block_ap.sample_count = 90;
  task.block_ap.validation_sample_count = 10;
  // Without steps the loss reported is that of the start, on held-back sequences.
  Task start = task;
  start.block_ap.epoch_count = 0;
  options_.work_directory = directory_ + "/start";
  ASSERT_OK(Run(start));
  const std::vector<double> before = Losses(Stage::kBlockAp);
  options_.work_directory = directory_ + "/trained";
  ASSERT_OK(Run(task));
  const std::vector<double> after = Losses(Stage::kBlockAp);
  ASSERT_EQ(before.size(), 2u);
  ASSERT_EQ(after.size(), 2u);
  for (int i = 0; i < 2; ++i) EXPECT_LT(after[i], 0.95 * before[i]) << i;

  const std::vector<double> kl = Losses(Stage::kE2eQp);
  ASSERT_EQ(kl.size(), 8u);
  double first_epoch = 0;
  double second_epoch = 0;
  for (int i = 0; i < 4; ++i) first_epoch += kl[i];
  for (int i = 4; i < 8; ++i) second_epoch += kl[i];
  EXPECT_LT(second_epoch, 0.98 * first_epoch);
}

TEST_F(QuantizeTest, MatricesGetTheirOwnBitsUnderABudget) {
  for (QuantMethod method :
       {QuantMethod::kGptq, QuantMethod::kAwq, QuantMethod::kBlockAp, QuantMethod::kBlockApE2eQp}) {
    SCOPED_TRACE(MethodName(method));
    Task task = MakeTask(method, {.bits = 2, .group_size = 64});
    task.target_bits = 2.5;
    options_.work_directory = directory_ + "/" + std::string(MethodName(method));
    ASSERT_OK_AND_ASSIGN(const PackedModel model, Run(task));
    EXPECT_OK(CheckModelTensors(model));
    const double mean = MeanBits(model.format, model.config);
    EXPECT_LE(mean, 2.5);
    EXPECT_GT(mean, 2.3);
    for (const auto& [name, bits] : model.format.matrix_bits) {
      EXPECT_EQ(model.matrices.at(name).bits, bits) << name;
    }
    // Round-to-nearest takes the same.
    Task rounded = MakeTask(QuantMethod::kRtn, model.format);
    ASSERT_OK_AND_ASSIGN(const PackedModel nearest, Run(rounded));
    EXPECT_EQ(nearest.weight_bytes(), model.weight_bytes());
    ASSERT_OK_AND_ASSIGN(const PackedModel again, Run(task));
    ExpectSameBytes(model, again);
  }
}

TEST_F(QuantizeTest, BlocksThatAreNotTrainedReportTheirError) {
  for (const QuantMethod method :
       {QuantMethod::kGptq, QuantMethod::kAwq, QuantMethod::kBlockApE2eQp}) {
    std::vector<double> errors[2];
    for (const int bits : {2, 4}) {
      SCOPED_TRACE(bits);
      options_.work_directory =
          directory_ + "/work" + std::to_string(static_cast<int>(method)) + std::to_string(bits);
      Task task = MakeTask(method, {.bits = bits, .group_size = 32, .embedding_bits = 16});
      if (method == QuantMethod::kBlockApE2eQp) {
        task.block_ap.epoch_count = 0;
        task.block_ap.validation_sample_count = 0;
        task.block_ap.start = QuantStart::kGptq;
      }
      ASSERT_OK(Run(task).status());
      errors[bits / 4] = Losses(Stage::kBlockAp);
      ASSERT_EQ(errors[bits / 4].size(), checkpoint_->config().num_hidden_layers);
    }
    for (size_t layer = 0; layer < errors[0].size(); ++layer) {
      EXPECT_GT(errors[1][layer], 0);
      EXPECT_LT(errors[1][layer], errors[0][layer] / 4);
    }
  }
}

TEST_F(QuantizeTest, CrossEntropyLowersTheLossToo) {
  Task task = MakeTask(QuantMethod::kBlockApE2eQp, {.bits = 2, .symmetric = true});
  task.e2e_qp.loss = E2eLoss::kCrossEntropy;
  ASSERT_OK(Run(task));
  const std::vector<double> losses = Losses(Stage::kE2eQp);
  ASSERT_EQ(losses.size(), 8u);
  EXPECT_LT(losses[4] + losses[5] + losses[6] + losses[7],
            losses[0] + losses[1] + losses[2] + losses[3]);
}

// Half of one and half of the other at the first step, whose model is the same.
TEST_F(QuantizeTest, CrossEntropyMayBeAShareOfTheLoss) {
  const auto first_loss = [&](E2eLoss loss, double share, const std::string& directory) {
    Task task = MakeTask(QuantMethod::kBlockApE2eQp, {.bits = 2, .symmetric = true});
    task.e2e_qp.loss = loss;
    task.e2e_qp.cross_entropy_share = share;
    options_.work_directory = directory_ + directory;
    EXPECT_OK(Run(task));
    return Losses(Stage::kE2eQp).at(0);
  };
  const double divergence = first_loss(E2eLoss::kDistillation, 0, "/divergence");
  const double entropy = first_loss(E2eLoss::kCrossEntropy, 0, "/entropy");
  const double both = first_loss(E2eLoss::kDistillation, 0.5, "/both");
  // The divergence alone counts the last token of a sequence as well.
  EXPECT_NEAR(both, (divergence + entropy) / 2, 0.02 * entropy);
}

TEST_F(QuantizeTest, EndToEndTrainingChangesScalesAlone) {
  const QuantFormat format{.bits = 3};
  options_.work_directory = directory_ + "/a";
  ASSERT_OK_AND_ASSIGN(const PackedModel blocks, Run(MakeTask(QuantMethod::kBlockAp, format)));
  options_.work_directory = directory_ + "/b";
  ASSERT_OK_AND_ASSIGN(const PackedModel tuned, Run(MakeTask(QuantMethod::kBlockApE2eQp, format)));
  EXPECT_EQ(blocks.vectors, tuned.vectors);
  int num_changed = 0;
  for (const auto& [name, matrix] : blocks.matrices) {
    EXPECT_EQ(UnpackCodes(matrix), UnpackCodes(tuned.matrices.at(name)));
    EXPECT_EQ(UnpackZeroPoints(matrix), UnpackZeroPoints(tuned.matrices.at(name)));
    num_changed += UnpackScales(matrix) != UnpackScales(tuned.matrices.at(name));
  }
  EXPECT_EQ(num_changed, 14);
}

// What differs between two models: names of vectors, and matrices by what of them does.
struct Difference {
  int norms = 0;
  int scales = 0;
  int codes = 0;
};
Difference Compare(const PackedModel& a, const PackedModel& b) {
  Difference difference;
  for (const auto& [name, vector] : a.vectors) difference.norms += vector != b.vectors.at(name);
  for (const auto& [name, matrix] : a.matrices) {
    difference.scales += UnpackScales(matrix) != UnpackScales(b.matrices.at(name));
    difference.codes += UnpackCodes(matrix) != UnpackCodes(b.matrices.at(name));
  }
  return difference;
}

TEST_F(QuantizeTest, EndToEndTrainingChangesWhatIsTrainable) {
  const QuantFormat format{.bits = 3};
  options_.work_directory = directory_ + "/blocks";
  ASSERT_OK_AND_ASSIGN(const PackedModel blocks, Run(MakeTask(QuantMethod::kBlockAp, format)));
  Task task = MakeTask(QuantMethod::kBlockApE2eQp, format);
  const auto train = [&](E2eTrainable trainable, double weight_rate, const char* name) {
    task.e2e_qp.trainable = trainable;
    task.e2e_qp.weight_learning_rate = weight_rate;
    options_.work_directory = directory_ + "/" + name;
    absl::StatusOr<PackedModel> tuned = Run(task);
    EXPECT_OK(tuned) << name;
    EXPECT_EQ(Losses(Stage::kE2eQp).size(), 8u) << name;
    EXPECT_EQ(UnpackZeroPoints(blocks.matrices.begin()->second),
              UnpackZeroPoints(tuned->matrices.begin()->second));
    return Compare(blocks, *tuned);
  };
  const Difference norms = train(E2eTrainable::kScalesAndNorms, 0, "norms");
  EXPECT_EQ(norms.norms, 4) << "of two blocks; the last one stays";
  EXPECT_EQ(norms.scales, 14);
  EXPECT_EQ(norms.codes, 0);
  const Difference all = train(E2eTrainable::kAll, 0.12, "all");
  EXPECT_EQ(all.norms, 4);
  EXPECT_EQ(all.scales, 14);
  EXPECT_GT(all.codes, 7);
  const Difference frozen = train(E2eTrainable::kAll, 0, "frozen");
  EXPECT_EQ(frozen.scales, 14);
}

TEST_F(QuantizeTest, EndToEndTrainingBeginsAtItsFirstSample) {
  Task task = MakeTask(QuantMethod::kBlockApE2eQp, {.bits = 3});
  task.block_ap.epoch_count = 0;
  task.block_ap.sample_count = 4;
  task.block_ap.validation_sample_count = 0;
  task.e2e_qp.first_sample = 4;
  task.e2e_qp.sample_count = 6;
  ASSERT_OK(Run(task));
  // The source's states of those very sequences are what it is compared with: after a change to
  // sequence 9 alone, the steps before the one that has it are the same.
  const std::vector<double> losses = Losses(Stage::kE2eQp);
  ASSERT_EQ(losses.size(), 6u);
  calibration_[9] = calibration_[3];
  options_.work_directory = directory_ + "/changed";
  ASSERT_OK(Run(task));
  const std::vector<double> changed = Losses(Stage::kE2eQp);
  EXPECT_EQ(changed[0], losses[0]);
  EXPECT_EQ(changed[1], losses[1]);
  EXPECT_NE(changed[2], losses[2]);
  task.e2e_qp.sample_count = 7;
  options_.work_directory = directory_ + "/more";
  EXPECT_THAT(Run(task), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("wants 11")));
}

TEST_F(QuantizeTest, EveryStartTargetAndLossTrains) {
  const Task plain = MakeTask(QuantMethod::kBlockAp, {.bits = 3});
  const auto run = [&](const Task& task, const std::string& name) {
    options_.work_directory = directory_ + "/" + name;
    EXPECT_OK(Run(task)) << name;
    return Losses(Stage::kBlockAp);
  };
  const std::vector<double> base = run(plain, "plain");
  ASSERT_EQ(base.size(), 2u);
  Task task = plain;
  task.block_ap.start = QuantStart::kMinMax;
  EXPECT_GT(run(task, "min_max")[0], base[0]);
  task.block_ap.start = QuantStart::kGptq;
  EXPECT_LT(run(task, "gptq")[0], base[0]) << "a random block's outputs, too, are correlated";
  for (const BlockTarget target : {BlockTarget::kQuantizedStream, BlockTarget::kBoth}) {
    task = plain;
    task.block_ap.target = target;
    const std::vector<double> losses = run(task, "target" + std::to_string(int(target)));
    ASSERT_EQ(losses.size(), 2u);
    // Both streams begin with almost the same states; after a block they differ.
    EXPECT_NE(losses[1], base[1]);
  }
  task = plain;
  task.block_ap.loss = BlockLoss::kMeanSquares;
  EXPECT_NE(run(task, "squares")[0], base[0]);
  task = plain;
  task.block_ap.round_scales = false;
  EXPECT_NEAR(run(task, "free")[0], base[0], 0.05 * base[0]);
}

TEST_F(QuantizeTest, GptqGoesOnWhereItWasStopped) {
  const Task task = MakeTask(QuantMethod::kGptq, {.bits = 4});
  ASSERT_OK_AND_ASSIGN(const PackedModel whole, Run(task));
  ASSERT_EQ(Losses(Stage::kBlockAp).size(), 2u);
  // The stage is reported from its beginning on.
  EXPECT_EQ(progress_.front().completed, 0);
  EXPECT_EQ(progress_.back().completed, 2);
  options_.work_directory = directory_ + "/stopped";
  int left = 1;
  options_.cancelled = [&left] { return left-- == 0; };
  EXPECT_THAT(Run(task), StatusIs(absl::StatusCode::kCancelled, HasSubstr("before block 1")));
  options_.cancelled = {};
  ASSERT_OK_AND_ASSIGN(const PackedModel resumed, Run(task));
  EXPECT_EQ(progress_.front().completed, 1);
  ExpectSameBytes(whole, resumed);
}

// Stopping at any question whether to stop is what a kill between two steps leaves behind.
using TrainableParam = std::pair<E2eTrainable, ComputeDtype>;

class QuantizeTrainableTest : public QuantizeTest,
                              public testing::WithParamInterface<TrainableParam> {};

TEST_P(QuantizeTrainableTest, StoppedAndStartedAgainGivesTheSameBytes) {
  Task task = MakeTask(QuantMethod::kBlockApE2eQp, {.bits = 3});
  task.e2e_qp.trainable = GetParam().first;
  task.compute_dtype = GetParam().second;
  if (task.e2e_qp.trainable == E2eTrainable::kAll) task.e2e_qp.weight_learning_rate = 0.12;
  options_.num_threads = 2;
  options_.work_directory = directory_ + "/whole";
  int num_questions = 0;
  options_.cancelled = [&] { return ++num_questions < 0; };
  ASSERT_OK_AND_ASSIGN(const PackedModel whole, Run(task));
  ASSERT_GT(num_questions, 30);
  options_.work_directory = directory_ + "/stopped";
  for (int limit : {1, 7, 20, 5, 19, 4, 9, 2}) {
    int left = limit;
    options_.cancelled = [&left] { return left-- == 0; };
    const absl::StatusOr<PackedModel> stopped = Run(task);
    EXPECT_THAT(stopped, StatusIs(absl::StatusCode::kCancelled, HasSubstr("stopped")));
  }
  options_.cancelled = {};
  ASSERT_OK_AND_ASSIGN(const PackedModel resumed, Run(task));
  ExpectSameBytes(whole, resumed);
  // All is there: nothing is trained again, and the bytes are still the same.
  ASSERT_OK_AND_ASSIGN(const PackedModel again, Run(task));
  EXPECT_TRUE(Losses(Stage::kE2eQp).empty());
  ExpectSameBytes(whole, again);
}

INSTANTIATE_TEST_SUITE_P(
    Trainable, QuantizeTrainableTest,
    testing::Values(TrainableParam{E2eTrainable::kScales, ComputeDtype::kFloat32},
                    TrainableParam{E2eTrainable::kScalesAndNorms, ComputeDtype::kFloat32},
                    TrainableParam{E2eTrainable::kAll, ComputeDtype::kFloat32},
                    TrainableParam{E2eTrainable::kAll, ComputeDtype::kBfloat16}));

// Rounding factors to 8 bits moves the losses by little, and nothing else.
TEST_F(QuantizeTest, ProductsOfBfloat16TrainAsThoseOfFloats) {
  Task task = MakeTask(QuantMethod::kBlockApE2eQp, {.bits = 2, .symmetric = true});
  ASSERT_OK(Run(task));
  const std::vector<double> blocks = Losses(Stage::kBlockAp);
  const std::vector<double> end_to_end = Losses(Stage::kE2eQp);
  task.compute_dtype = ComputeDtype::kBfloat16;
  ASSERT_OK(Run(task));  // from its start, in the same directory
  const auto expect_near = [](const std::vector<double>& found, const std::vector<double>& wanted) {
    ASSERT_EQ(found.size(), wanted.size());
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_NEAR(found[i], wanted[i], 0.1 * wanted[i]) << i;
      EXPECT_NE(found[i], wanted[i]) << "the setting has no effect";
    }
  };
  expect_near(Losses(Stage::kBlockAp), blocks);
  expect_near(Losses(Stage::kE2eQp), end_to_end);
}

// With the source's stream, the quantized one and its copy for a second target: what fits first
// lies in memory, the rest in files.
TEST_F(QuantizeTest, WhereStatesLieChangesNothing) {
  Task task = MakeTask(QuantMethod::kBlockApE2eQp, {.bits = 3});
  task.block_ap.target = BlockTarget::kBoth;
  task.activation_dtype = ComputeDtype::kBfloat16;
  const int64_t stream_bytes = 10 * kLength * checkpoint_->config().hidden_size * 2;
  ASSERT_OK_AND_ASSIGN(const PackedModel in_memory, Run(task));
  for (const int64_t bytes : {int64_t{0}, stream_bytes, 2 * stream_bytes}) {
    options_.activation_memory_bytes = bytes;
    options_.work_directory = directory_ + "/spilled" + std::to_string(bytes);
    ASSERT_OK_AND_ASSIGN(const PackedModel spilled, Run(task));
    ExpectSameBytes(in_memory, spilled);
  }
  task = MakeTask(QuantMethod::kGptq, {.bits = 4});
  options_.work_directory = directory_ + "/gptq_spilled";
  ASSERT_OK_AND_ASSIGN(const PackedModel spilled, Run(task));
  options_.activation_memory_bytes = int64_t{1} << 40;
  options_.work_directory = directory_ + "/gptq";
  ASSERT_OK_AND_ASSIGN(const PackedModel kept, Run(task));
  ExpectSameBytes(kept, spilled);
}

TEST_F(QuantizeTest, StatesOfBfloat16TrainAsThoseOfFloats) {
  Task task = MakeTask(QuantMethod::kBlockAp, {.bits = 2});
  options_.work_directory = directory_ + "/floats";
  ASSERT_OK(Run(task));
  const std::vector<double> floats = Losses(Stage::kBlockAp);
  task.activation_dtype = ComputeDtype::kBfloat16;
  options_.work_directory = directory_ + "/bfloat16";
  ASSERT_OK(Run(task));
  const std::vector<double> rounded = Losses(Stage::kBlockAp);
  ASSERT_EQ(rounded.size(), floats.size());
  for (size_t i = 0; i < floats.size(); ++i) {
    EXPECT_NEAR(rounded[i], floats[i], 0.1 * floats[i]) << i;
    EXPECT_NE(rounded[i], floats[i]) << "the setting has no effect";
  }
}

// The first step of Adam moves each scale by the rate, whatever its gradient is.
TEST_F(QuantizeTest, AnAbsoluteRateIsTheStepItself) {
  Task task = MakeTask(QuantMethod::kBlockAp, {.bits = 4});
  task.block_ap.round_scales = true;
  ASSERT_OK_AND_ASSIGN(const PackedModel before, Run(task));
  task.method = QuantMethod::kBlockApE2eQp;
  task.e2e_qp = MakeTask(task.method, task.format).e2e_qp;
  task.e2e_qp.sample_count = 1;
  task.e2e_qp.epoch_count = 1;
  task.e2e_qp.batch_size = 1;
  task.e2e_qp.absolute_rate = true;
  constexpr double kRate = 1.0 / 512;
  task.e2e_qp.learning_rate = 2 * kRate;  // one step of warming up: half of it
  options_.work_directory = directory_ + "/e2e";
  ASSERT_OK_AND_ASSIGN(const PackedModel after, Run(task));
  int num_moved = 0;
  for (const auto& [name, matrix] : before.matrices) {
    if (name == kEmbeddingName || name == kHeadName) continue;
    const std::vector<float> old_scales = UnpackScales(matrix);
    const std::vector<float> new_scales = UnpackScales(after.matrices.at(name));
    for (size_t i = 0; i < old_scales.size(); ++i) {
      const double moved = std::abs(new_scales[i] - old_scales[i]);
      // Of a group whose scale nothing depends on there is no gradient.
      if (moved == 0) continue;
      ++num_moved;
      ASSERT_NEAR(moved, kRate, 1e-3 * kRate + old_scales[i] / 1024) << name << " " << i;
    }
  }
  EXPECT_GT(num_moved, 100);
}

TEST_F(QuantizeTest, ADamagedStateIsComputedAgain) {
  const Task task = MakeTask(QuantMethod::kBlockApE2eQp, {.bits = 4});
  ASSERT_OK_AND_ASSIGN(const PackedModel whole, Run(task));
  for (const char* name :
       {"block_0000.safetensors", "block_0001.safetensors", "e2e_0.safetensors"}) {
    const std::string path = options_.work_directory + "/" + name;
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    ASSERT_TRUE(file.good()) << path;
    file.seekp(-5, std::ios::end);
    file.put('\x7f');
    file.close();
    ASSERT_OK_AND_ASSIGN(const PackedModel again, Run(task));
    ExpectSameBytes(whole, again);
  }
}

TEST_F(QuantizeTest, StartsAgainWhereARunWithAnotherNumberOfThreadsLeftOff) {
  const Task task = MakeTask(QuantMethod::kBlockApE2eQp, {.bits = 4});
  ASSERT_OK(Run(task));
  options_.num_threads = 2;
  ASSERT_OK_AND_ASSIGN(const PackedModel again, Run(task));
  EXPECT_FALSE(Losses(Stage::kE2eQp).empty()) << "what one thread left was taken";
  options_.work_directory = directory_ + "/fresh";
  ASSERT_OK_AND_ASSIGN(const PackedModel fresh, Run(task));
  ExpectSameBytes(fresh, again);
}

TEST_F(QuantizeTest, DivergenceInABlockNamesBlockAndStep) {
  Task task = MakeTask(QuantMethod::kBlockAp, {.bits = 2, .symmetric = true});
  task.block_ap.weight_learning_rate = 1e4;
  task.block_ap.quant_learning_rate = 1e4;
  EXPECT_THAT(Run(task),
              StatusIs(absl::StatusCode::kAborted,
                       AllOf(HasSubstr("DIVERGED"), HasSubstr("block 0"), HasSubstr("step "))));
}

TEST_F(QuantizeTest, DivergenceEndToEndNamesTheStep) {
  Task task = MakeTask(QuantMethod::kBlockApE2eQp, {.bits = 4});
  task.e2e_qp.learning_rate = 1e30;
  EXPECT_THAT(Run(task), StatusIs(absl::StatusCode::kAborted,
                                  AllOf(HasSubstr("DIVERGED"), HasSubstr("E2E-QP, step "))));
}

TEST_F(QuantizeTest, OneRewindWithSmallerStepsSavesARun) {
  Task task = MakeTask(QuantMethod::kBlockAp, {.bits = 4});
  // Too large by a little: a tenth of it is not.
  task.block_ap.quant_learning_rate = 2.0;
  task.block_ap.weight_learning_rate = 0.0;
  const absl::StatusOr<PackedModel> model = Run(task);
  ASSERT_OK(model);
  for (double loss : Losses(Stage::kBlockAp)) EXPECT_LT(loss, 1);
}

TEST_F(QuantizeTest, RefusesCalibrationThatDoesNotFit) {
  const Task task = MakeTask(QuantMethod::kBlockAp, {.bits = 4});
  calibration_.resize(9);
  EXPECT_THAT(Run(task), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("9 sequences")));
  calibration_.resize(10, calibration_[0]);
  calibration_[4].pop_back();
  EXPECT_THAT(Run(task), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("sequence 4")));
  calibration_[4] = calibration_[0];
  calibration_[5][3] = 300;
  EXPECT_THAT(Run(task), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token 300")));
}

TEST_F(QuantizeTest, FrozenWeightsKeepTheirNorms) {
  Task task = MakeTask(QuantMethod::kBlockAp, {.bits = 4});
  task.block_ap.weight_learning_rate = 0.0;
  ASSERT_OK_AND_ASSIGN(const PackedModel model, Run(task));
  const auto weights = TinyModelWeights({});
  for (const auto& [name, values] : model.vectors) EXPECT_EQ(values, weights.at(name).values);
}

TEST(FindDeviceTest, KnowsTheCpuAndSaysWhatIsMissing) {
  ASSERT_OK_AND_ASSIGN(const DeviceInfo cpu, FindDevice("cpu"));
  EXPECT_EQ(cpu.name, "cpu");
  EXPECT_GT(cpu.memory_bytes, 0);
  EXPECT_THAT(FindDevice("tpu"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tpu")));
  const absl::StatusOr<DeviceInfo> cuda = FindDevice("cuda");
  if (!cuda.ok()) {
    EXPECT_THAT(cuda, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("device cuda")));
    ASSERT_OK_AND_ASSIGN(const DeviceInfo automatic, FindDevice("auto"));
    EXPECT_EQ(automatic.name, "cpu");
  }
}

}  // namespace
}  // namespace quern
