#include "core/model/rope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace quern {
namespace {

using testing::FloatNear;
using testing::Pointwise;

ModelConfig WithHeadDim8() {
  ModelConfig config;
  config.head_dim = 8;
  config.rope_theta = 100;
  return config;
}

// Expected values: transformers 5.24, ROPE_INIT_FUNCTIONS.
TEST(RopeTest, DefaultFrequencies) {
  const std::vector<float> expected = {1.0f, 0.31622776f, 0.1f, 0.031622775f};
  EXPECT_THAT(RopeFrequencies(WithHeadDim8()), Pointwise(FloatNear(1e-7f), expected));
}

TEST(RopeTest, LinearScalingDividesAll) {
  ModelConfig config = WithHeadDim8();
  config.rope_scaling.type = RopeScaling::Type::kLinear;
  config.rope_scaling.factor = 4;
  const std::vector<float> expected = {0.25f, 0.07905694f, 0.025f, 0.0079056937f};
  EXPECT_THAT(RopeFrequencies(config), Pointwise(FloatNear(1e-7f), expected));
}

TEST(RopeTest, Llama3KeepsBlendsAndDivides) {
  ModelConfig config = WithHeadDim8();
  config.rope_scaling = {RopeScaling::Type::kLlama3, 8, 1, 4, 32};
  const std::vector<float> expected = {1.0f, 0.0958399773f, 0.0125000002f, 0.00395284733f};
  EXPECT_THAT(RopeFrequencies(config), Pointwise(FloatNear(1e-7f), expected));
}

}  // namespace
}  // namespace quern
