#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/reference/reference.h"
#include "tests/kernels/fixtures.h"

namespace quern::kernels {
namespace {

class ElementwiseTest : public testing::TestWithParam<const KernelTable*> {
 protected:
  const KernelTable& table() const { return *GetParam(); }
};

constexpr int kLengths[] = {1, 7, 8, 9, 64, 100, 576};

float* Floats(GuardedBuffer& buffer) { return reinterpret_cast<float*>(buffer.data()); }

TEST_P(ElementwiseTest, RmsNorm) {
  for (int n : kLengths) {
    const std::vector<float> x = RandomFloats(n, 1, 3);
    const std::vector<float> weight = RandomFloats(n, 2);
    const std::vector<double> want = reference::RmsNorm(x.data(), weight.data(), n, 1e-5);
    GuardedBuffer out(n * sizeof(float));
    table().rms_norm(x.data(), weight.data(), n, 1e-5f, Floats(out));
    for (int i = 0; i < n; ++i) {
      ASSERT_NEAR(Floats(out)[i], want[i], 1e-6 * std::abs(want[i])) << n << " " << i;
    }
    GuardedBuffer in_place(n * sizeof(float));
    std::copy(x.begin(), x.end(), Floats(in_place));
    table().rms_norm(Floats(in_place), weight.data(), n, 1e-5f, Floats(in_place));
    EXPECT_EQ(0, std::memcmp(out.data(), in_place.data(), out.size()));
  }
}

TEST_P(ElementwiseTest, Rope) {
  for (int head_dim : {2, 6, 16, 44, 64, 128}) {
    constexpr int kHeads = 3;
    const std::vector<float> x = RandomFloats(kHeads * head_dim, 1);
    std::vector<float> cos_sin(head_dim);
    for (int i = 0; i < head_dim / 2; ++i) {
      cos_sin[i] = std::cos(0.3f * (i + 1));
      cos_sin[head_dim / 2 + i] = std::sin(0.3f * (i + 1));
    }
    GuardedBuffer heads(x.size() * sizeof(float));
    std::copy(x.begin(), x.end(), Floats(heads));
    table().rope(Floats(heads), kHeads, head_dim, cos_sin.data());
    for (int h = 0; h < kHeads; ++h) {
      const std::vector<double> want =
          reference::Rope(x.data() + h * head_dim, head_dim, cos_sin.data());
      for (int i = 0; i < head_dim; ++i) {
        ASSERT_NEAR(Floats(heads)[h * head_dim + i], want[i], 1e-6);
      }
    }
  }
}

TEST_P(ElementwiseTest, SiluMulOverTheWholeRange) {
  std::vector<float> gate;
  for (float g = -110; g <= 110; g += 0.0625f) gate.push_back(g);
  for (float g : {1e-30f, -1e-30f, 1e30f, -1e30f, 0.0f}) gate.push_back(g);
  const int n = static_cast<int>(gate.size());
  const std::vector<float> up = RandomFloats(n, 3);
  GuardedBuffer out(n * sizeof(float));
  table().silu_mul(gate.data(), up.data(), n, Floats(out));
  for (int i = 0; i < n; ++i) {
    const double want = reference::SiluMul(gate[i], up[i]);
    // Below -87 the true value is under 1e-36 and exp is held at its end.
    const double slack = gate[i] < -87 ? std::abs(gate[i]) * 1e-37 * std::abs(up[i]) : 0;
    ASSERT_NEAR(Floats(out)[i], want, 6e-7 * std::abs(want) + slack) << "gate " << gate[i];
  }
}

TEST_P(ElementwiseTest, SiluMulKeepsNotANumber) {
  const float gate = std::numeric_limits<float>::quiet_NaN(), up = 1;
  float out = 0;
  table().silu_mul(&gate, &up, 1, &out);
  EXPECT_TRUE(std::isnan(out));
}

TEST_P(ElementwiseTest, TailsEqualWholeVectors) {
  // A number's bits may not depend on whether it fell into a vector or into the tail.
  const std::vector<float> gate = RandomFloats(64, 1), up = RandomFloats(64, 2);
  std::vector<float> whole(64);
  table().silu_mul(gate.data(), up.data(), 64, whole.data());
  for (int n : {1, 5, 13, 63}) {
    std::vector<float> part(n);
    table().silu_mul(gate.data(), up.data(), n, part.data());
    EXPECT_EQ(0, std::memcmp(part.data(), whole.data(), n * sizeof(float)));
  }
}

TEST_P(ElementwiseTest, Add) {
  for (int n : kLengths) {
    const std::vector<float> x = RandomFloats(n, 1), y = RandomFloats(n, 2);
    GuardedBuffer out(n * sizeof(float));
    std::copy(y.begin(), y.end(), Floats(out));
    table().add(x.data(), n, Floats(out));
    for (int i = 0; i < n; ++i) ASSERT_EQ(Floats(out)[i], x[i] + y[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ElementwiseTest, testing::ValuesIn(AvailableKernels()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace quern::kernels
