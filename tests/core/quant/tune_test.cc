#include "core/quant/tune.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "core/checkpoint/checkpoint.h"
#include "core/quant/block_ap.h"
#include "core/quant/e2e_qp.h"
#include "core/quant/fake_quantizer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::HasSubstr;

class TuneTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "/tune_" +
                 testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_OK(RemoveTree(directory_));
    ASSERT_OK(WriteTinyCheckpoint(directory_ + "/model"));
    ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(directory_ + "/model"));
    const Task rounded{.format = {.bits = 3, .group_size = 64}, .method = QuantMethod::kRtn};
    options_.work_directory = directory_ + "/work";
    options_.device = "cpu";
    options_.num_threads = 1;
    options_.on_progress = [this](const QuantizeProgress& progress) {
      if (progress.loss.has_value()) {
        losses_.push_back(*progress.loss);
      } else {
        beginnings_.push_back(progress.completed);
      }
    };
    ASSERT_OK_AND_ASSIGN(base_, Quantize(*checkpoint, rounded, {}, options_));
    // "After a, a + 1", in examples of different lengths.
    for (int i = 0; i < 12; ++i) {
      TuningExample example{.num_context_tokens = 2 + i % 3};
      for (int t = 0; t < 6 + i; ++t) example.ids.push_back(20 + (i + t) % 8);
      examples_.push_back(example);
    }
    settings_ = {.sample_count = 12,
                 .sequence_length_tokens = 32,
                 .epoch_count = 6,
                 .batch_size = 4,
                 .learning_rate = 0.02,
                 .loss = E2eLoss::kCrossEntropy,
                 .trainable = E2eTrainable::kScales,
                 .weight_learning_rate = 0.0,
                 .first_sample = 0,
                 .absolute_rate = false};
  }
  void TearDown() override { EXPECT_OK(RemoveTree(directory_)); }

  absl::StatusOr<PackedModel> TuneIt() {
    losses_.clear();
    beginnings_.clear();
    return Tune(base_, "base", settings_, compute_dtype_, examples_, options_);
  }

  static bool SameScales(const PackedTensor& a, const PackedTensor& b) {
    return std::memcmp(a.scales, b.scales, sizeof(uint16_t) * a.rows * a.num_groups()) == 0;
  }

  std::string directory_;
  PackedModel base_;
  std::vector<TuningExample> examples_;
  E2eQpSettings settings_;
  ComputeDtype compute_dtype_ = ComputeDtype::kFloat32;
  QuantizeOptions options_;
  std::vector<double> losses_;
  std::vector<int64_t> beginnings_;  // steps that were done before the first of a run
};

TEST_F(TuneTest, LearnsByScalesAlone) {
  ASSERT_OK_AND_ASSIGN(const PackedModel tuned, TuneIt());
  ASSERT_EQ(losses_.size(), 18u);
  EXPECT_EQ(beginnings_, std::vector<int64_t>{0}) << "the stage is said before its first step";
  EXPECT_LT(losses_.back(), losses_.front() - 0.3);
  int changed = 0;
  for (const auto& [name, matrix] : base_.matrices) {
    const PackedTensor& other = tuned.matrices.at(name);
    EXPECT_EQ(matrix.codes, other.codes) << name << ": codes are shared, not copied";
    EXPECT_EQ(matrix.zero_points, other.zero_points) << name;
    changed += SameScales(matrix, other) ? 0 : 1;
  }
  EXPECT_EQ(changed, 14) << "of two blocks, and not the embedding";
  EXPECT_EQ(base_.vectors, tuned.vectors);
}

TEST_F(TuneTest, TrainsNormsWhenAsked) {
  settings_.trainable = E2eTrainable::kScalesAndNorms;
  ASSERT_OK_AND_ASSIGN(const PackedModel tuned, TuneIt());
  int changed = 0;
  for (const auto& [name, vector] : base_.vectors) changed += tuned.vectors.at(name) != vector;
  EXPECT_EQ(changed, 4) << "two norms of two blocks";
}

TEST_F(TuneTest, StoppedAnywhereItGoesOnToTheSameBytes) {
  ASSERT_OK_AND_ASSIGN(const PackedModel whole, TuneIt());
  ASSERT_OK(RemoveTree(options_.work_directory));
  // The state is saved every few seconds at most, so this starts from the beginning; E2eDataTest
  // goes on from a state.
  options_.cancelled = [this] { return losses_.size() >= 5; };
  EXPECT_TRUE(absl::IsCancelled(TuneIt().status()));
  options_.cancelled = nullptr;
  ASSERT_OK_AND_ASSIGN(const PackedModel again, TuneIt());
  for (const auto& [name, matrix] : whole.matrices) {
    EXPECT_TRUE(SameScales(matrix, again.matrices.at(name))) << name;
  }
}

TEST_F(TuneTest, AnotherTasksStateIsNotTaken) {
  ASSERT_OK(TuneIt());  // its end leaves its state
  examples_[3].ids[1] += 1;
  ASSERT_OK_AND_ASSIGN(const PackedModel after, TuneIt());
  EXPECT_EQ(losses_.size(), 18u) << "every step was done again";
  ASSERT_OK(RemoveTree(options_.work_directory));
  ASSERT_OK_AND_ASSIGN(const PackedModel fresh, TuneIt());
  for (const auto& [name, matrix] : fresh.matrices) {
    EXPECT_TRUE(SameScales(matrix, after.matrices.at(name))) << name;
  }
}

TEST_F(TuneTest, RefusesWrongExamples) {
  const auto expect = [&](TuningExample example, const std::string& message) {
    const auto kept = examples_;
    examples_[5] = std::move(example);
    EXPECT_THAT(TuneIt(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
    examples_ = kept;
  };
  expect({.ids = {1, 2, 3}, .num_context_tokens = 0}, "example 5 has 3 tokens with a context of 0");
  expect({.ids = {1, 2, 3}, .num_context_tokens = 3}, "example 5 has 3 tokens with a context of 3");
  expect({.ids = {1, 300}, .num_context_tokens = 1}, "example 5 has token 300, wanted 0 to 299");
  expect({.ids = {1, -1}, .num_context_tokens = 1}, "example 5 has token -1");
  expect({.ids = std::vector<int32_t>(257, 1), .num_context_tokens = 1},
         "example 5 has 257 tokens, the model's context is 256");
  examples_.clear();
  EXPECT_THAT(TuneIt(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no example")));
}

// End-to-end training itself, with the knobs that Tune does not have.
class E2eDataTest : public TuneTest {
 protected:
  // Sequences of 24 tokens, all predicted but the first; `padded_` more behind their end.
  class Data final : public E2eData {
   public:
    explicit Data(int64_t count, int64_t length) : count_(count), length_(length) {}
    int64_t num_sequences() const override { return count_; }
    int64_t Length(int64_t) const override { return length_; }
    at::Tensor TokenIds(int64_t begin, int64_t count) const override {
      const at::Tensor ids = at::arange(begin * 7, begin * 7 + count * kTokens, at::kLong);
      return at::constant_pad_nd(ids.remainder(50).view({count, kTokens}), {0, length_ - kTokens});
    }
    double Weight(int64_t, int64_t count) const override { return static_cast<double>(count); }
    at::Tensor Loss(int64_t begin, int64_t count, const at::Tensor& hidden,
                    const at::Tensor& head) const override {
      const at::Tensor targets = TokenIds(begin, count).narrow(1, 1, kTokens - 1).flatten();
      return CrossEntropyLoss(hidden.narrow(1, 0, kTokens - 1).flatten(0, 1), head, targets);
    }

   private:
    static constexpr int64_t kTokens = 24;
    const int64_t count_;
    const int64_t length_;
  };

  // The scales after training on `data`.
  // `stop_after` steps (0: never) it is stopped, and goes on from its state.
  std::vector<float> Train(const Data& data, int64_t max_graph_bytes, E2eTrainable trainable,
                           int stop_after = 0) {
    const std::string work = directory_ + "/e2e";
    EXPECT_OK(RemoveTree(work));
    auto directory = TrainingDirectory::Open(work, std::string(64, '0'));
    EXPECT_OK(directory);
    settings_.trainable = trainable;
    settings_.weight_learning_rate = trainable == E2eTrainable::kAll ? 0.1 : 0.0;
    const RotaryTables rotary = MakeRotaryTables(base_.config, 64, at::kCPU);
    E2eQpContext context{.config = base_.config,
                         .rotary = rotary,
                         .settings = settings_,
                         .directory = *directory,
                         .save_interval = absl::ZeroDuration(),
                         .max_graph_bytes = max_graph_bytes};
    num_steps_ = 0;
    context.on_step = [this](int64_t, int64_t, std::optional<double> loss) {
      num_steps_ += loss.has_value() ? 1 : 0;
    };
    OuterTensors outer{.embedding = ServedMatrix(base_, "model.embed_tokens.weight", at::kCPU),
                       .final_norm = at::tensor(base_.vectors.at("model.norm.weight"))};
    outer.head = outer.embedding;
    std::vector<TrainedBlock> blocks(2);
    for (const auto& [name, matrix] : base_.matrices) {
      if (name.starts_with("model.layers.")) blocks[name[13] - '0'].matrices[name] = matrix;
    }
    for (const auto& [name, vector] : base_.vectors) {
      if (name.starts_with("model.layers.")) blocks[name[13] - '0'].vectors[name] = vector;
    }
    if (stop_after > 0) {
      context.cancelled = [&] { return num_steps_ == stop_after; };
      EXPECT_TRUE(absl::IsCancelled(TrainScales(context, data, outer, blocks)));
      context.cancelled = nullptr;
    }
    EXPECT_OK(TrainScales(context, data, outer, blocks));
    std::vector<float> values;
    for (const TrainedBlock& block : blocks) {
      for (const auto& [name, matrix] : block.matrices) {
        const at::Tensor dense = ToDense(matrix, at::kCPU).contiguous();
        const float* data_of = dense.const_data_ptr<float>();
        values.insert(values.end(), data_of, data_of + dense.numel());
      }
    }
    return values;
  }

  int num_steps_ = 0;
};

TEST_F(E2eDataTest, ComputingBlocksAgainGivesTheSameBits) {
  const Data data(8, 24);
  for (const auto trainable :
       {E2eTrainable::kScales, E2eTrainable::kScalesAndNorms, E2eTrainable::kAll}) {
    EXPECT_EQ(Train(data, 0, trainable), Train(data, int64_t{1} << 40, trainable));
  }
}

TEST_F(E2eDataTest, GoesOnFromItsState) {
  const Data data(8, 24);
  const std::vector<float> whole = Train(data, int64_t{1} << 40, E2eTrainable::kScales);
  EXPECT_EQ(num_steps_, 12);
  // The state is written after every step or, where writing takes long, after some.
  EXPECT_EQ(Train(data, int64_t{1} << 40, E2eTrainable::kScales, 7), whole);
  EXPECT_LT(num_steps_, 7 + 12) << "nothing was gone on from";
}

TEST_F(E2eDataTest, WhatFillsUpShorterSequencesHasNoEffect) {
  const std::vector<float> alone = Train(Data(8, 24), int64_t{1} << 40, E2eTrainable::kScales);
  const std::vector<float> padded = Train(Data(8, 40), int64_t{1} << 40, E2eTrainable::kScales);
  ASSERT_EQ(alone.size(), padded.size());
  double difference = 0;
  double size = 0;
  for (size_t i = 0; i < alone.size(); ++i) {
    difference += std::abs(alone[i] - padded[i]);
    size += std::abs(alone[i]);
  }
  EXPECT_LT(difference / size, 1e-4) << "products of other shapes round otherwise, no more";
}

}  // namespace
}  // namespace quern
