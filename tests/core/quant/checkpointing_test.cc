#include "core/quant/checkpointing.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "core/artifact/pack.h"
#include "core/base/file.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

const std::string kFingerprint(64, 'a');

PackedTensor Matrix(int seed, bool symmetric) {
  std::vector<float> weights(4 * 70);
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = static_cast<float>((static_cast<int>(i) * 7 + seed) % 23 - 11);
  }
  return *RoundToNearest(weights, 4, 70, 3, 32, symmetric);
}

TrainedBlock Block(int seed) {
  TrainedBlock block;
  block.matrices["model.layers.0.a.weight"] = Matrix(seed, false);
  block.matrices["model.layers.0.b.weight"] = Matrix(seed + 1, true);
  block.vectors["model.layers.0.norm.weight"] = {1.0f, 2.0f, static_cast<float>(seed)};
  block.loss = 0.1 * seed;
  return block;
}

void ExpectEqual(const TrainedBlock& a, const TrainedBlock& b) {
  EXPECT_EQ(a.loss, b.loss);
  EXPECT_EQ(a.vectors, b.vectors);
  ASSERT_EQ(a.matrices.size(), b.matrices.size());
  for (const auto& [name, matrix] : a.matrices) {
    const PackedTensor& other = b.matrices.at(name);
    EXPECT_EQ(UnpackCodes(matrix), UnpackCodes(other));
    EXPECT_EQ(UnpackScales(matrix), UnpackScales(other));
    EXPECT_EQ(UnpackZeroPoints(matrix), UnpackZeroPoints(other));
    EXPECT_EQ(matrix.symmetric, other.symmetric);
  }
}

class TrainingDirectoryTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "/training_directory";
    ASSERT_OK(RemoveTree(path_));
    Reopen();
  }
  void Reopen() {
    auto opened = TrainingDirectory::Open(path_, kFingerprint);
    ASSERT_OK(opened);
    directory_.emplace(*std::move(opened));
  }
  void SaveThree() {
    for (int layer = 0; layer < 3; ++layer) {
      ASSERT_OK(directory_->SaveBlock(layer, Block(layer)));
    }
    Reopen();
  }
  // Flips one bit at `share` of the file.
  void Damage(const std::string& name, double share) {
    std::fstream file(path_ + "/" + name, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(0, std::ios::end);
    const auto at = static_cast<std::streamoff>(share * static_cast<double>(file.tellg()));
    file.seekg(at);
    const char byte = static_cast<char>(file.get() ^ 4);
    file.seekp(at);
    file.put(byte);
  }

  std::string path_;
  std::optional<TrainingDirectory> directory_;
};

TEST_F(TrainingDirectoryTest, GivesBackTheBlocksSaved) {
  EXPECT_TRUE(directory_->LoadBlocks(3).empty());
  SaveThree();
  const std::vector<TrainedBlock> blocks = directory_->LoadBlocks(3);
  ASSERT_EQ(blocks.size(), 3u);
  for (int layer = 0; layer < 3; ++layer) ExpectEqual(blocks[layer], Block(layer));
}

TEST_F(TrainingDirectoryTest, ADamagedBlockAndThoseAfterItAreNotUsed) {
  SaveThree();
  for (double share : {0.3, 0.6, 0.99}) {
    Damage("block_0001.safetensors", share);
    EXPECT_EQ(directory_->LoadBlocks(3).size(), 1u) << share;
    Damage("block_0001.safetensors", share);
    EXPECT_EQ(directory_->LoadBlocks(3).size(), 3u) << share;
  }
  std::ofstream(path_ + "/block_0001.safetensors", std::ios::trunc) << "short";
  EXPECT_EQ(directory_->LoadBlocks(3).size(), 1u);
}

TEST_F(TrainingDirectoryTest, BlocksAfterAnEqualReplacementStayAndAfterAnotherOneDoNot) {
  SaveThree();
  Damage("block_0001.safetensors", 0.9);
  EXPECT_EQ(directory_->LoadBlocks(3).size(), 1u);
  ASSERT_OK(directory_->SaveBlock(1, Block(1)));
  EXPECT_EQ(directory_->LoadBlocks(3).size(), 3u);
  EXPECT_EQ(directory_->LoadBlocks(1).size(), 1u);
  ASSERT_OK(directory_->SaveBlock(1, Block(9)));
  EXPECT_EQ(directory_->LoadBlocks(3).size(), 2u);
}

TEST_F(TrainingDirectoryTest, ReplacesWhatAnotherRunLeft) {
  SaveThree();
  directory_->LoadBlocks(3);
  ASSERT_OK(directory_->SaveE2e({.num_steps_done = 5, .tensors = {{1}}}));
  ASSERT_OK_AND_ASSIGN(TrainingDirectory other,
                       TrainingDirectory::Open(path_, std::string(64, 'b')));
  EXPECT_TRUE(other.LoadBlocks(3).empty());
  EXPECT_FALSE(other.LoadE2e().has_value());
  ASSERT_OK(other.SaveBlock(0, Block(4)));
  EXPECT_EQ(other.LoadBlocks(3).size(), 1u);
  Reopen();
  EXPECT_TRUE(directory_->LoadBlocks(3).empty());
}

TEST_F(TrainingDirectoryTest, KeepsTwoGenerationsOfEndToEndState) {
  SaveThree();
  directory_->LoadBlocks(3);
  EXPECT_FALSE(directory_->LoadE2e().has_value());
  for (int64_t step = 1; step <= 3; ++step) {
    ASSERT_OK(directory_->SaveE2e({.num_steps_done = step,
                                   .rate_factor = 0.1,
                                   .first_loss = 0.7,
                                   .tensors = {{1.5f, static_cast<float>(step)}, {2.5f}}}));
  }
  Reopen();
  directory_->LoadBlocks(3);
  std::optional<E2eState> state = directory_->LoadE2e();
  ASSERT_TRUE(state.has_value());
  EXPECT_EQ(state->num_steps_done, 3);
  EXPECT_EQ(state->rate_factor, 0.1);
  EXPECT_EQ(state->first_loss, 0.7);
  EXPECT_EQ(state->tensors, (std::vector<std::vector<float>>{{1.5f, 3.0f}, {2.5f}}));

  // A write that died half-way has cost the older generation only.
  Damage("e2e_0.safetensors", 0.95);  // holds step 3
  state = directory_->LoadE2e();
  ASSERT_TRUE(state.has_value());
  EXPECT_EQ(state->num_steps_done, 2);
  ASSERT_OK(directory_->SaveE2e({.num_steps_done = 4}));
  Damage("e2e_1.safetensors", 0.95);
  state = directory_->LoadE2e();
  ASSERT_TRUE(state.has_value());
  EXPECT_EQ(state->num_steps_done, 4);
}

TEST_F(TrainingDirectoryTest, EndToEndStateOfOtherBlocksIsNotUsed) {
  SaveThree();
  directory_->LoadBlocks(3);
  ASSERT_OK(directory_->SaveE2e({.num_steps_done = 5, .tensors = {{1.0f}}}));
  directory_->LoadBlocks(2);
  EXPECT_FALSE(directory_->LoadE2e().has_value());
}

}  // namespace
}  // namespace quern
