#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/reference/reference.h"
#include "tests/kernels/fixtures.h"

namespace quern::kernels {
namespace {

using Type = DenseMatrix::Type;

struct DenseFixture {
  DenseMatrix view;
  std::vector<uint8_t> memory;
};

// Elements lie at odd addresses, as those of a mapped file may.
DenseFixture RandomDense(Type type, int rows, int cols) {
  DenseFixture f;
  f.view = {.type = type, .rows = rows, .cols = cols};
  const int size = type == Type::kF32 ? 4 : 2;
  f.memory.resize(1 + size_t(rows) * cols * size);
  uint8_t* to = f.memory.data() + 1;
  std::mt19937 random(1);
  for (float value : RandomFloats(size_t(rows) * cols, 21)) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint16_t half = static_cast<uint16_t>(bits >> 16);
    // Halves around 1, of either sign, and one subnormal in a while.
    if (type == Type::kF16) half = random() & (random() % 16 == 0 ? 0x81ff : 0xbfff);
    if (type == Type::kF32) {
      std::memcpy(to, &value, 4);
    } else {
      std::memcpy(to, &half, 2);
    }
    to += size;
  }
  f.view.data = f.memory.data() + 1;
  return f;
}

class DenseMatmulTest : public testing::TestWithParam<std::tuple<const KernelTable*, Type>> {
 protected:
  const KernelTable& table() const { return *std::get<0>(GetParam()); }
  Type type() const { return std::get<1>(GetParam()); }

  std::vector<float> Run(const DenseFixture& w, const float* x, int64_t x_stride, int num_tokens,
                         int row_begin, int row_end, bool accumulate = false, float start = 0) {
    GuardedBuffer data(table().prepacked_dense_bytes(w.view));
    table().prepack_dense(w.view, 0, w.view.rows, data.data());
    GuardedBuffer y(size_t(num_tokens) * w.view.rows * sizeof(float));
    float* out = reinterpret_cast<float*>(y.data());
    std::fill(out, out + num_tokens * w.view.rows, start);
    table().matmul_dense(Describe(w.view, data.data()), x, x_stride, num_tokens, row_begin, row_end,
                         accumulate, out, w.view.rows);
    return std::vector<float>(out, out + num_tokens * w.view.rows);
  }
};

TEST_P(DenseMatmulTest, AgreesWithReference) {
  for (const auto& [rows, cols] : {std::pair{32, 64}, {1, 172}, {33, 40}, {50, 1100}, {7, 1}}) {
    const DenseFixture w = RandomDense(type(), rows, cols);
    const std::vector<double> weights = reference::Dequantize(w.view);
    for (int num_tokens : {1, 2, 3, 5, 8, 17, 33, 100}) {
      SCOPED_TRACE(testing::Message() << rows << "x" << cols << " tokens " << num_tokens);
      const std::vector<float> x = RandomFloats(size_t(num_tokens) * cols, 2);
      const std::vector<double> exact(x.begin(), x.end());
      const std::vector<float> y = Run(w, x.data(), cols, num_tokens, 0, rows);
      for (int t = 0; t < num_tokens; ++t) {
        for (int r = 0; r < rows; ++r) {
          const reference::Product want =
              reference::Dot(weights.data() + r * cols, exact.data() + t * cols, cols);
          // A chain of n sums errs by at most n * 2^-24 of the terms' magnitude, twice without FMA.
          ASSERT_NEAR(y[t * rows + r], want.value, (2 + cols) * 0x1p-23 * want.magnitude + 1e-30)
              << "token " << t << " row " << r;
        }
      }
    }
  }
}

TEST_P(DenseMatmulTest, ATokenHasTheSameBitsAloneAndAmongOthers) {
  // More tokens and columns than one pass of the blocked product takes.
  constexpr int kRows = 50, kCols = 1100, kTokens = 101;
  const DenseFixture w = RandomDense(type(), kRows, kCols);
  const std::vector<float> x = RandomFloats(size_t{kTokens} * kCols, 6);
  const std::vector<float> all = Run(w, x.data(), kCols, kTokens, 0, kRows);
  for (int cut : {1, 2, 3, 4, 5, 6, 7, 13, 32}) {
    for (int first = 0; first < kTokens; first += cut) {
      const int count = std::min(cut, kTokens - first);
      const std::vector<float> y = Run(w, x.data() + size_t(first) * kCols, kCols, count, 0, kRows);
      ASSERT_EQ(0, std::memcmp(y.data(), all.data() + first * kRows, y.size() * sizeof(float)))
          << "tokens " << first << " to " << first + count;
    }
  }
}

TEST_P(DenseMatmulTest, RowRangesStridesAndAccumulation) {
  constexpr int kRows = 70, kCols = 44, kTokens = 9, kStride = 60;
  const DenseFixture w = RandomDense(type(), kRows, kCols);
  const std::vector<float> x = RandomFloats(kTokens * kStride, 6);
  const std::vector<float> whole = Run(w, x.data(), kStride, kTokens, 0, kRows);
  for (const auto& [begin, end] : {std::pair{0, 32}, {32, 64}, {64, 70}}) {
    const std::vector<float> part = Run(w, x.data(), kStride, kTokens, begin, end);
    const std::vector<float> added =
        Run(w, x.data(), kStride, kTokens, begin, end, /*accumulate=*/true, /*start=*/1.5f);
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < kRows; ++r) {
        const bool inside = r >= begin && r < end;
        const int i = t * kRows + r;
        ASSERT_EQ(part[i], inside ? whole[i] : 0.0f);
        ASSERT_NEAR(added[i], part[i] + 1.5f, inside ? 1e-4f : 0.0f);
      }
    }
  }
}

TEST_P(DenseMatmulTest, PrepackRowRangesJoinAndGetRowIsExact) {
  const DenseFixture w = RandomDense(type(), 70, 44);
  const size_t size = table().prepacked_dense_bytes(w.view);
  GuardedBuffer whole(size), parts(size);
  table().prepack_dense(w.view, 0, 70, whole.data());
  table().prepack_dense(w.view, 32, 70, parts.data());
  table().prepack_dense(w.view, 0, 32, parts.data());
  EXPECT_EQ(0, std::memcmp(whole.data(), parts.data(), size));
  const std::vector<double> weights = reference::Dequantize(w.view);
  for (int r = 0; r < 70; ++r) {
    GuardedBuffer out(44 * sizeof(float));
    table().get_row(Describe(w.view, whole.data()), r, reinterpret_cast<float*>(out.data()));
    for (int k = 0; k < 44; ++k) {
      ASSERT_EQ(reinterpret_cast<float*>(out.data())[k], weights[r * 44 + k]);
    }
  }
}

std::string Name(const testing::TestParamInfo<DenseMatmulTest::ParamType>& info) {
  const auto& [table, type] = info.param;
  const char* name = type == Type::kF32 ? "F32" : type == Type::kF16 ? "F16" : "BF16";
  return std::string(table->name) + "_" + name;
}

INSTANTIATE_TEST_SUITE_P(All, DenseMatmulTest,
                         testing::Combine(testing::ValuesIn(AvailableKernels()),
                                          testing::Values(Type::kF32, Type::kF16, Type::kBF16)),
                         Name);

}  // namespace
}  // namespace quern::kernels
