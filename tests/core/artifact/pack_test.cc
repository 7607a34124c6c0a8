#include "core/artifact/pack.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <tuple>

#include "core/base/half.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;

std::vector<uint8_t> RandomCodes(int64_t count, int bits, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> codes(count);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & ((1u << bits) - 1));
  return codes;
}

std::vector<float> RandomWeights(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> weights(count);
  for (float& weight : weights) weight = normal(random);
  return weights;
}

// One row of `cols` codes i % modulus, one group, and the words it packs to.
std::vector<uint32_t> WordsOf(int cols, int bits, int modulus) {
  std::vector<uint8_t> codes(cols);
  for (int i = 0; i < cols; ++i) codes[i] = static_cast<uint8_t>(i % modulus);
  auto tensor = Pack(1, cols, bits, cols, /*symmetric=*/true, codes, std::vector<float>{1.0f}, {});
  EXPECT_OK(tensor);
  if (!tensor.ok()) return {};
  return std::vector<uint32_t>(tensor->codes, tensor->codes + tensor->code_words());
}

TEST(PackTest, WordsAreGolden) {
  EXPECT_THAT(WordsOf(32, 2, 4), ElementsAre(0xe4e4e4e4, 0xe4e4e4e4));
  EXPECT_THAT(WordsOf(32, 3, 8), ElementsAre(0xe4e4e4e4, 0xe4e4e4e4, 0xf0f0f0f0));
  EXPECT_THAT(WordsOf(32, 4, 16), ElementsAre(0x76543210, 0xfedcba98, 0x76543210, 0xfedcba98));
  EXPECT_THAT(WordsOf(32, 4, 8), ElementsAre(0x76543210, 0x76543210, 0x76543210, 0x76543210));
  EXPECT_THAT(WordsOf(8, 8, 256), ElementsAre(0x03020100, 0x07060504, 0, 0, 0, 0, 0, 0));
}

TEST(PackTest, ZeroPointsAreOneFlatSequence) {
  // 3 rows x 2 groups: 0..5.
  const std::vector<uint8_t> codes(3 * 64, 0);
  const std::vector<uint8_t> zero_points = {0, 1, 2, 3, 0, 1};
  ASSERT_OK_AND_ASSIGN(const PackedTensor tensor,
                       Pack(3, 64, 2, 32, false, codes, std::vector<float>(6, 0.5f), zero_points));
  ASSERT_EQ(tensor.zero_point_words(), 2);
  EXPECT_EQ(tensor.zero_points[0], 0x4e4u);
  EXPECT_EQ(tensor.zero_points[1], 0u);
  EXPECT_THAT(UnpackZeroPoints(tensor), ElementsAreArray(zero_points));
}

class PackShapesTest
    : public testing::TestWithParam<std::tuple<int, int, std::pair<int, int>, bool>> {};

TEST_P(PackShapesTest, RoundTripsAndAgreesWithTheViewOfKernels) {
  const auto [bits, group_size, shape, symmetric] = GetParam();
  const auto [rows, cols] = shape;
  const int group = std::min(group_size, cols);
  const int64_t num_groups = (cols + group - 1) / group;
  const auto codes = RandomCodes(int64_t{rows} * cols, bits, 1);
  const auto zero_points =
      symmetric ? std::vector<uint8_t>() : RandomCodes(rows * num_groups, bits, 2);
  std::vector<float> scales(rows * num_groups);
  std::iota(scales.begin(), scales.end(), -3.0f);
  ASSERT_OK_AND_ASSIGN(const PackedTensor tensor,
                       Pack(rows, cols, bits, group, symmetric, codes, scales, zero_points));

  EXPECT_EQ(UnpackCodes(tensor), codes);
  EXPECT_EQ(UnpackScales(tensor), scales);
  const PackedMatrix view = tensor.view();
  const std::vector<float> weights = Dequantize(tensor);
  for (int row = 0; row < rows; ++row) {
    for (int col = 0; col < cols; ++col) {
      const int64_t g = row * num_groups + col / group;
      const uint32_t code = UnpackCode(view.codes + row * view.words_per_row(), bits, col);
      ASSERT_EQ(code, codes[row * cols + col]);
      const int zero_point = symmetric ? 1 << (bits - 1) : zero_points[g];
      ASSERT_EQ(weights[row * cols + col],
                static_cast<float>(static_cast<int>(code) - zero_point) * scales[g]);
    }
    // The filling of the last run is zero.
    for (int64_t col = cols; col < (cols + 31) / 32 * 32; ++col) {
      ASSERT_EQ(UnpackCode(view.codes + row * view.words_per_row(), bits, col), 0u);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, PackShapesTest,
                         testing::Combine(testing::Values(2, 3, 4, 8),
                                          testing::Values(32, 64, 128, 1 << 20),
                                          testing::Values(std::pair(1, 1), std::pair(3, 31),
                                                          std::pair(5, 100), std::pair(7, 172)),
                                          testing::Bool()));

TEST(PackTest, FieldsThatAreTooWideAreRefusedWithTheirPlace) {
  std::vector<uint8_t> codes(2 * 32, 3);
  const std::vector<float> scales = {1, 1};
  codes[40] = 4;
  EXPECT_THAT(Pack(2, 32, 2, 32, true, codes, scales, {}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "code at row 1, column 8 is 4, wanted at most 3"));
  codes[40] = 3;
  EXPECT_THAT(Pack(2, 32, 2, 32, false, codes, scales, std::vector<uint8_t>{0, 200}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "zero point at row 1, group 0 is 200, wanted at most 3"));
}

TEST(PackTest, ScalesThatAreNoHalfFloatsAreRefusedWithTheirPlace) {
  const std::vector<uint8_t> codes(2 * 32, 0);
  for (float scale : {std::numeric_limits<float>::quiet_NaN(),
                      std::numeric_limits<float>::infinity(), 65520.0f, -1e30f}) {
    EXPECT_THAT(Pack(2, 32, 4, 32, true, codes, std::vector<float>{1, scale}, {}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("scale at row 1, group 0")));
  }
}

TEST(PackTest, CountsAndShapesAreChecked) {
  const std::vector<uint8_t> codes(64, 0);
  const std::vector<float> scales = {1, 1};
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(Pack(2, 33, 4, 32, true, codes, scales, {}), StatusIs(kInvalid, HasSubstr("codes")));
  EXPECT_THAT(Pack(2, 32, 4, 16, true, codes, scales, {}), StatusIs(kInvalid, HasSubstr("scales")));
  EXPECT_THAT(Pack(2, 32, 4, 32, false, codes, scales, {}),
              StatusIs(kInvalid, HasSubstr("zero points")));
  EXPECT_THAT(Pack(2, 32, 5, 32, true, codes, scales, {}), StatusIs(kInvalid, HasSubstr("bits")));
  EXPECT_THAT(Pack(0, 32, 4, 32, true, {}, {}, {}), StatusIs(kInvalid, HasSubstr("0 x 32")));
  EXPECT_THAT(Pack(2, 32, 4, 33, true, codes, scales, {}),
              StatusIs(kInvalid, HasSubstr("groups of 33")));
  EXPECT_THAT(Pack(2, 32, 4, 0, true, codes, scales, {}),
              StatusIs(kInvalid, HasSubstr("groups of 0")));
}

TEST(PackTest, WithScalesSharesTheCodesAndOutlivesTheOriginal) {
  const auto codes = RandomCodes(4 * 64, 3, 5);
  const auto zero_points = RandomCodes(8, 3, 6);
  PackedTensor changed;
  const uint32_t* shared = nullptr;
  {
    ASSERT_OK_AND_ASSIGN(const PackedTensor tensor, Pack(4, 64, 3, 32, false, codes,
                                                         std::vector<float>(8, 1.0f), zero_points));
    shared = tensor.codes;
    ASSERT_OK_AND_ASSIGN(changed, WithScales(tensor, std::vector<float>(8, 0.25f)));
    EXPECT_THAT(WithScales(tensor, std::vector<float>(7, 0.25f)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("got 7 scales, wanted 8")));
  }
  EXPECT_EQ(changed.codes, shared);
  EXPECT_EQ(UnpackCodes(changed), codes);
  EXPECT_EQ(UnpackZeroPoints(changed), zero_points);
  EXPECT_EQ(UnpackScales(changed), std::vector<float>(8, 0.25f));
}

class RoundToNearestTest : public testing::TestWithParam<std::tuple<int, bool>> {};

TEST_P(RoundToNearestTest, ErrorIsAtMostHalfAStepAndZeroStaysZero) {
  const auto [bits, symmetric] = GetParam();
  const int rows = 5, cols = 100, group = 64;
  std::vector<float> weights = RandomWeights(rows * cols, 9);
  weights[7] = 0;
  for (int i = 0; i < group; ++i) weights[cols + i] = std::abs(weights[cols + i]);  // positive
  for (int i = 0; i < group; ++i) weights[2 * cols + i] = -std::abs(weights[2 * cols + i]);
  for (int i = 0; i < group; ++i) weights[3 * cols + i] = 0;
  ASSERT_OK_AND_ASSIGN(const PackedTensor tensor,
                       RoundToNearest(weights, rows, cols, bits, group, symmetric));
  const auto result = Dequantize(tensor);
  const auto scales = UnpackScales(tensor);
  EXPECT_EQ(result[7], 0);
  for (int row = 0; row < rows; ++row) {
    for (int col = 0; col < cols; ++col) {
      const float scale = std::abs(scales[row * 2 + col / group]);
      // Symmetric: the side away from the largest value lacks its last code. Half rounding of the
      // scale moves the last code by up to qmax * 2^-11 steps.
      const float steps = symmetric ? 1.0f : 0.5f + static_cast<float>(1 << bits) / 2048;
      EXPECT_LE(std::abs(result[row * cols + col] - weights[row * cols + col]),
                steps * scale * 1.0001f)
          << "row " << row << " col " << col;
    }
  }
  for (int i = 0; i < group; ++i) EXPECT_EQ(result[3 * cols + i], 0);
}

INSTANTIATE_TEST_SUITE_P(Widths, RoundToNearestTest,
                         testing::Combine(testing::Values(2, 3, 4, 8), testing::Bool()));

TEST(RoundToNearestTest, KnownGroups) {
  // (max - min) / 3 = 0.5: zero point 1, codes 0, 1, 2, 3.
  ASSERT_OK_AND_ASSIGN(PackedTensor tensor,
                       RoundToNearest(std::vector<float>{-0.5f, 0, 0.5f, 1}, 1, 4, 2, 4, false));
  EXPECT_THAT(UnpackCodes(tensor), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(UnpackZeroPoints(tensor), ElementsAre(1));
  EXPECT_THAT(UnpackScales(tensor), ElementsAre(0.5f));
  // The largest magnitude, +1, takes code 0 under a negative scale.
  ASSERT_OK_AND_ASSIGN(tensor,
                       RoundToNearest(std::vector<float>{-0.5f, 0, 0.5f, 1}, 1, 4, 2, 4, true));
  EXPECT_THAT(UnpackCodes(tensor), ElementsAre(3, 2, 1, 0));
  EXPECT_THAT(UnpackScales(tensor), ElementsAre(-0.5f));
  EXPECT_EQ(tensor.zero_points, nullptr);
}

TEST(RoundToNearestTest, TinyWeightsKeepAScaleThatDivides) {
  ASSERT_OK_AND_ASSIGN(
      const PackedTensor tensor,
      RoundToNearest(std::vector<float>{1e-20f, -1e-20f, 0, 0}, 1, 4, 4, 4, false));
  EXPECT_THAT(UnpackScales(tensor), ElementsAre(0x1p-24f));
  EXPECT_THAT(Dequantize(tensor), ElementsAre(0, 0, 0, 0));
}

TEST(RoundToNearestTest, WhatIsNotFiniteIsRefusedWithItsPlace) {
  std::vector<float> weights(2 * 40, 1.0f);
  weights[75] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(RoundToNearest(weights, 2, 40, 4, 32, false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("row 1, column 35 is nan")));
  weights[75] = 1e30f;
  EXPECT_THAT(RoundToNearest(weights, 2, 40, 4, 32, false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("scale at row 1, group 1")));
  EXPECT_THAT(RoundToNearest(weights, 2, 39, 4, 32, false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("got 80 weights")));
}

}  // namespace
}  // namespace quern
