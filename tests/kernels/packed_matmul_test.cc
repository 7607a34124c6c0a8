#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/cpu/tables.h"
#include "kernels/kernels.h"
#include "kernels/reference/reference.h"
#include "tests/kernels/fixtures.h"

namespace quern::kernels {
namespace {

// Sums of a group are exact; what is left are a few float roundings per group.
constexpr double kTolerance = 2e-6;

struct Shape {
  int rows;
  int cols;
  int group_size;
};

constexpr Shape kShapes[] = {
    {32, 64, 64},  {1, 64, 32},    {33, 172, 64},    {40, 172, 172}, {31, 128, 128},
    {64, 576, 64}, {96, 200, 128}, {33, 1000, 1000}, {7, 50, 48},    {32, 33, 7},
};

#define QUERN_LIST(bits) bits,
constexpr int kWidths[] = {QUERN_FOR_EACH_WIDTH(QUERN_LIST)};
#undef QUERN_LIST

ActivationFormat FormatOf(const PackedFixture& w, ActivationPrecision precision) {
  return {.cols = w.view.cols, .group_size = w.view.group_size, .precision = precision};
}

// A matrix and activations on one table.
class Multiplication {
 public:
  Multiplication(const KernelTable& table, const PackedFixture& w, ActivationPrecision precision,
                 const std::vector<float>& x, int num_tokens)
      : table_(table),
        precision_(precision),
        num_tokens_(num_tokens),
        data_(table.prepacked_bytes(w.view)),
        activations_(table.activation_bytes(FormatOf(w, precision), num_tokens)) {
    table.prepack(w.view, 0, w.view.rows, data_.data());
    table.quantize_activations(FormatOf(w, precision), x.data(), w.view.cols, 0, num_tokens,
                               activations_.data());
    matrix_ = Describe(w.view, data_.data());
  }

  // [num_tokens][rows]; the buffer has room between the tokens that must stay as it was.
  std::vector<float> Run(int row_begin, int row_end, bool accumulate = false, float start = 0) {
    const int64_t stride = matrix_.rows + 5;
    GuardedBuffer y(static_cast<size_t>(num_tokens_) * stride * sizeof(float));
    float* out = reinterpret_cast<float*>(y.data());
    for (int64_t i = 0; i < num_tokens_ * stride; ++i) out[i] = start;
    table_.matmul(matrix_, activations_.data(), precision_, num_tokens_, row_begin, row_end,
                  accumulate, out, stride);
    std::vector<float> result;
    for (int t = 0; t < num_tokens_; ++t) {
      for (int r = 0; r < stride; ++r) {
        const float value = out[t * stride + r];
        if (r < matrix_.rows) {
          result.push_back(value);
        }
        if (r < row_begin || r >= row_end) {
          EXPECT_EQ(value, start) << "token " << t << " row " << r << " is not asked for";
        }
      }
    }
    return result;
  }
  std::vector<float> Run() { return Run(0, matrix_.rows); }

  const PrepackedMatrix& matrix() const { return matrix_; }

 private:
  const KernelTable& table_;
  ActivationPrecision precision_;
  int num_tokens_;
  GuardedBuffer data_;
  GuardedBuffer activations_;
  PrepackedMatrix matrix_;
};

class PackedMatmulTest : public testing::TestWithParam<
                             std::tuple<const KernelTable*, int, bool, ActivationPrecision>> {
 protected:
  const KernelTable& table() const { return *std::get<0>(GetParam()); }
  int bits() const { return std::get<1>(GetParam()); }
  bool symmetric() const { return std::get<2>(GetParam()); }
  ActivationPrecision precision() const { return std::get<3>(GetParam()); }

  Multiplication Make(const PackedFixture& w, const std::vector<float>& x, int num_tokens) {
    return Multiplication(table(), w, precision(), x, num_tokens);
  }
};

TEST_P(PackedMatmulTest, AgreesWithReference) {
  for (const Shape& shape : kShapes) {
    const PackedFixture w =
        RandomPacked(bits(), shape.rows, shape.cols, shape.group_size, symmetric(), 7);
    const std::vector<double> weights = reference::Dequantize(w.view);
    for (int num_tokens : {1, 2, 3, 5, 8, 17, 33}) {
      SCOPED_TRACE(testing::Message() << shape.rows << "x" << shape.cols << " group "
                                      << shape.group_size << " tokens " << num_tokens);
      const std::vector<float> x = RandomFloats(size_t(num_tokens) * shape.cols, 11);
      const std::vector<float> y = Make(w, x, num_tokens).Run();
      for (int t = 0; t < num_tokens; ++t) {
        const std::vector<double> rounded =
            reference::RoundActivations(FormatOf(w, precision()), x.data() + t * shape.cols);
        for (int r = 0; r < shape.rows; ++r) {
          const reference::Product want =
              reference::Dot(weights.data() + r * shape.cols, rounded.data(), shape.cols);
          ASSERT_NEAR(y[t * shape.rows + r], want.value, kTolerance * want.magnitude)
              << "token " << t << " row " << r;
        }
      }
    }
  }
}

// The bound that kernel_table.h states, against products with the floats themselves.
TEST_P(PackedMatmulTest, ErrorOfRoundedActivationsKeepsItsBound) {
  constexpr int kRows = 40, kCols = 576, kGroup = 64;
  const PackedFixture w = RandomPacked(bits(), kRows, kCols, kGroup, symmetric(), 5);
  const std::vector<double> weights = reference::Dequantize(w.view);
  std::vector<float> x = RandomFloats(kCols, 6);
  for (int k = 0; k < kCols; k += 100) x[k] *= 20;  // outliers coarsen their group
  const std::vector<double> exact(x.begin(), x.end());
  const std::vector<float> y = Make(w, x, 1).Run();
  const double largest = precision() == ActivationPrecision::kInt16 ? 32512 : 127;
  for (int r = 0; r < kRows; ++r) {
    double bound = 0;
    for (int begin = 0; begin < kCols; begin += kGroup) {
      double max = 0, magnitude = 0;
      for (int k = begin; k < begin + kGroup; ++k) {
        max = std::max(max, std::abs(exact[k]));
        magnitude += std::abs(weights[r * kCols + k]);
      }
      bound += max / largest / 2 * magnitude;
    }
    const reference::Product want = reference::Dot(weights.data() + r * kCols, exact.data(), kCols);
    ASSERT_NEAR(y[r], want.value, bound + kTolerance * want.magnitude) << "row " << r;
  }
}

TEST_P(PackedMatmulTest, ATokenHasTheSameBitsAloneAndAmongOthers) {
  constexpr int kTokens = 33;
  for (const Shape& shape : {Shape{64, 576, 64}, Shape{33, 172, 64}, Shape{40, 200, 200}}) {
    const PackedFixture w =
        RandomPacked(bits(), shape.rows, shape.cols, shape.group_size, symmetric(), 3);
    const std::vector<float> x = RandomFloats(size_t{kTokens} * shape.cols, 5);
    const std::vector<float> all = Make(w, x, kTokens).Run();
    for (int cut : {1, 2, 3, 4, 5, 6, 7, 9, 16}) {
      for (int first = 0; first < kTokens; first += cut) {
        const int count = std::min(cut, kTokens - first);
        const std::vector<float> part(x.begin() + first * shape.cols,
                                      x.begin() + (first + count) * shape.cols);
        const std::vector<float> y = Make(w, part, count).Run();
        ASSERT_EQ(0,
                  std::memcmp(y.data(), all.data() + first * shape.rows, y.size() * sizeof(float)))
            << "tokens " << first << " to " << first + count;
      }
    }
  }
}

TEST_P(PackedMatmulTest, RowRangesJoinToTheWhole) {
  const PackedFixture w = RandomPacked(bits(), 100, 172, 64, symmetric(), 9);
  const std::vector<float> x = RandomFloats(3 * 172, 2);
  Multiplication m = Make(w, x, 3);
  const std::vector<float> whole = m.Run();
  for (const auto& [begin, end] : {std::pair{0, 32}, {32, 96}, {96, 100}}) {
    const std::vector<float> part = m.Run(begin, end);
    for (int t = 0; t < 3; ++t) {
      for (int r = begin; r < end; ++r) ASSERT_EQ(part[t * 100 + r], whole[t * 100 + r]);
    }
  }
}

TEST_P(PackedMatmulTest, PrepackRowRangesJoinToTheWhole) {
  const PackedFixture w = RandomPacked(bits(), 100, 172, 64, symmetric(), 9);
  const size_t size = table().prepacked_bytes(w.view);
  GuardedBuffer whole(size);
  table().prepack(w.view, 0, 100, whole.data());
  GuardedBuffer parts(size);
  table().prepack(w.view, 64, 100, parts.data());
  table().prepack(w.view, 0, 32, parts.data());
  table().prepack(w.view, 32, 64, parts.data());
  EXPECT_EQ(0, std::memcmp(whole.data(), parts.data(), size));
}

TEST_P(PackedMatmulTest, AccumulateAddsToWhatIsThere) {
  const PackedFixture w = RandomPacked(bits(), 33, 96, 32, symmetric(), 1);
  const std::vector<float> x = RandomFloats(5 * 96, 4);
  Multiplication m = Make(w, x, 5);
  const std::vector<float> plain = m.Run();
  const std::vector<float> added = m.Run(0, 33, /*accumulate=*/true, /*start=*/2.5f);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_NEAR(added[i], plain[i] + 2.5f, 1e-4f);
}

TEST_P(PackedMatmulTest, GetRowIsExact) {
  for (const Shape& shape : kShapes) {
    const PackedFixture w =
        RandomPacked(bits(), shape.rows, shape.cols, shape.group_size, symmetric(), 13);
    const std::vector<double> weights = reference::Dequantize(w.view);
    Multiplication m = Make(w, RandomFloats(shape.cols, 1), 1);
    for (int r = 0; r < shape.rows; ++r) {
      GuardedBuffer out(shape.cols * sizeof(float));
      table().get_row(m.matrix(), r, reinterpret_cast<float*>(out.data()));
      for (int k = 0; k < shape.cols; ++k) {
        ASSERT_EQ(reinterpret_cast<float*>(out.data())[k], weights[r * shape.cols + k]);
      }
    }
  }
}

// The largest sums a format can hold: no lane may overflow.
TEST_P(PackedMatmulTest, ExtremeCodesAndActivationsDoNotOverflow) {
  for (const int cols : {64, 128, 512, kMaxGroupSize}) {
    const int rows = cols > 512 ? 1 : 33;
    PackedFixture w = RandomPacked(bits(), rows, cols, cols, symmetric(), 1);
    std::fill(w.codes.begin(), w.codes.end(), ~0u);
    std::fill(w.zero_points.begin(), w.zero_points.end(), 0u);
    const std::vector<double> weights = reference::Dequantize(w.view);
    for (float sign : {1.0f, -1.0f}) {
      const std::vector<float> x(size_t{4} * cols, sign);
      for (int num_tokens : {1, 2, 4}) {
        const std::vector<float> y = Make(w, x, num_tokens).Run();
        for (int r = 0; r < rows; ++r) {
          const double want = weights[size_t(r) * cols] * cols * sign;
          ASSERT_NEAR(y[r], want, std::abs(want) * 1e-6) << cols << " cols, row " << r;
        }
      }
    }
  }
}

TEST_P(PackedMatmulTest, ActivationsAreTheSameInAnySplit) {
  constexpr int kTokens = 5, kCols = 172;
  const std::vector<float> x = RandomFloats(kTokens * kCols, 8);
  const ActivationFormat format{.cols = kCols, .group_size = 64, .precision = precision()};
  const size_t size = table().activation_bytes(format, kTokens);
  GuardedBuffer whole(size), parts(size);
  table().quantize_activations(format, x.data(), kCols, 0, kTokens, whole.data());
  table().quantize_activations(format, x.data(), kCols, 3, 5, parts.data());
  table().quantize_activations(format, x.data(), kCols, 0, 3, parts.data());
  EXPECT_EQ(0, std::memcmp(whole.data(), parts.data(), size));
}

TEST_P(PackedMatmulTest, ZeroTokensAndZeroActivationsGiveZero) {
  const PackedFixture w = RandomPacked(bits(), 33, 96, 32, symmetric(), 1);
  for (float y : Make(w, std::vector<float>(3 * 96), 3).Run()) {
    ASSERT_EQ(y, 0.0f);
  }
  EXPECT_TRUE(Make(w, {}, 0).Run().empty());
}

// A broken model must show, not turn into plausible zeros, and must not touch other tokens.
TEST_P(PackedMatmulTest, NotANumberReachesItsTokenAlone) {
  const PackedFixture w = RandomPacked(bits(), 33, 96, 32, symmetric(), 1);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                    -std::numeric_limits<float>::infinity()}) {
    std::vector<float> x = RandomFloats(3 * 96, 4);
    const std::vector<float> good = Make(w, x, 3).Run();
    x[96 + 40] = bad;
    const std::vector<float> y = Make(w, x, 3).Run();
    for (int r = 0; r < 33; ++r) {
      EXPECT_EQ(y[r], good[r]);
      EXPECT_TRUE(std::isnan(y[33 + r]));
      EXPECT_EQ(y[66 + r], good[66 + r]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, PackedMatmulTest,
    testing::Combine(testing::ValuesIn(AvailableKernels()), testing::ValuesIn(kWidths),
                     testing::Bool(),
                     testing::Values(ActivationPrecision::kInt8, ActivationPrecision::kInt16)),
    [](const auto& info) {
      return std::string(std::get<0>(info.param)->name) + "_w" +
             std::to_string(std::get<1>(info.param)) +
             (std::get<2>(info.param) ? "_symmetric" : "_asymmetric") +
             (std::get<3>(info.param) == ActivationPrecision::kInt16 ? "_int16" : "_int8");
    });

TEST(SelectTest, ScalarIsAlwaysThereAndTheBestCanBeFoundByName) {
  ASSERT_NE(FindKernels("scalar"), nullptr);
  EXPECT_EQ(FindKernels(BestKernels().name), &BestKernels());
  EXPECT_EQ(FindKernels("no such table"), nullptr);
}

}  // namespace
}  // namespace quern::kernels
