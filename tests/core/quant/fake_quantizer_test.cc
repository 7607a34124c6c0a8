#include "core/quant/fake_quantizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "core/artifact/pack.h"
#include "core/quant/gptq.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

const at::TensorOptions kDouble = at::TensorOptions().dtype(at::kDouble);

at::Tensor Random(at::IntArrayRef sizes, uint64_t seed, at::ScalarType type = at::kFloat) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kFloat).to(type);
}

// What one element, alone in its group, must give.
struct Golden {
  double w, dw, ds, dz;
  int code;
};

// Measured with PyTorch in fp64, scale 0.1, zero point 1, 2 bits. Rows 2 and 5 lie on the bounds
// of the codes, where the gradient must pass; row 3 rounds -0.5 to even.
constexpr Golden kGoldens[] = {{-0.30, 0, -1, -0.1, 0}, {-0.149, 1, 0.49, 0, 0},
                               {-0.05, 1, 0.5, 0, 1},   {0.049, 1, -0.49, 0, 1},
                               {0.151, 1, 0.49, 0, 3},  {0.30, 0, 2, -0.1, 3},
                               {0.60, 0, 2, -0.1, 3}};

TEST(FakeQuantizeTest, GradientsAreTheGoldenOnes) {
  for (const Golden& golden : kGoldens) {
    const GroupShape shape{1, 1, 1, 2};
    const at::Tensor w = at::full({1, 1}, golden.w, kDouble).requires_grad_();
    const at::Tensor scale = at::full({1, 1}, 0.1, kDouble).requires_grad_();
    const at::Tensor zero_point = at::full({1, 1}, 1.0, kDouble).requires_grad_();
    const at::Tensor fake = FakeQuantize(w, scale, zero_point, shape);
    EXPECT_NEAR(fake.item<double>(), (golden.code - 1) * 0.1, 1e-12) << golden.w;
    fake.sum().backward();
    EXPECT_NEAR(w.grad().item<double>(), golden.dw, 1e-9) << golden.w;
    EXPECT_NEAR(scale.grad().item<double>(), golden.ds, 1e-9) << golden.w;
    EXPECT_NEAR(zero_point.grad().item<double>(), golden.dz, 1e-9) << golden.w;
  }
}

using FormatParam = std::tuple<int, int, bool>;  // bits, group size, symmetric

class FakeQuantizeFormatTest : public testing::TestWithParam<FormatParam> {
 protected:
  static constexpr int kRows = 5;
  static constexpr int kCols = 172;  // ends in a shorter group for 32, 64 and 128

  QuantFormat format() const {
    const auto [bits, group_size, symmetric] = GetParam();
    return {.bits = bits, .group_size = group_size, .symmetric = symmetric};
  }
};

// Straight-through means: round(w / s) is w / s plus a constant, and an element is inside or
// clipped as it is now. The differences of that function are the gradients.
TEST_P(FakeQuantizeFormatTest, ScaleGradientsAreFiniteDifferences) {
  const at::Tensor w = Random({kRows, kCols}, 1, at::kDouble);
  const QuantParameters q = SearchQuantParameters(w.to(at::kFloat), at::ones({kCols}), format());
  const at::Tensor scale = (q.scale.to(at::kDouble) * 0.7).requires_grad_();  // clips many
  const at::Tensor zero_point = q.zero_point.to(at::kDouble);
  const at::Tensor upstream = Random({kRows, kCols}, 2, at::kDouble);
  (FakeQuantize(w, scale, zero_point, q.shape) * upstream).sum().backward();

  const at::NoGradGuard no_grad;
  const auto columns = [&](const at::Tensor& t) {
    return t.repeat_interleave(q.shape.group_size, 1).narrow(1, 0, kCols);
  };
  const at::Tensor rounding = (w / columns(scale)).round() - w / columns(scale);
  const at::Tensor u = (w / columns(scale)).round() + columns(zero_point);
  const at::Tensor bound = u.clamp(0, q.shape.max_code());
  const auto output = [&](const at::Tensor& s) {
    const at::Tensor inner = (w / columns(s) + rounding) * columns(s);
    const at::Tensor outer = (bound - columns(zero_point)) * columns(s);
    return (at::where(u == bound, inner, outer) * upstream).sum().item<double>();
  };
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t group = 0; group < q.shape.num_groups(); ++group) {
      constexpr double kStep = 1e-6;
      at::Tensor up = scale.detach().clone();
      at::Tensor down = scale.detach().clone();
      up[row][group] += kStep;
      down[row][group] -= kStep;
      EXPECT_NEAR(scale.grad()[row][group].item<double>(),
                  (output(up) - output(down)) / (2 * kStep), 1e-6);
    }
  }
}

TEST_P(FakeQuantizeFormatTest, FusedLoopsEqualTensorOperations) {
  const at::Tensor base = Random({kRows, kCols}, 3);
  QuantParameters q = SearchQuantParameters(base, at::ones({kCols}), format());
  const at::Tensor w = base.clone().requires_grad_();
  const at::Tensor scale = q.scale.clone().requires_grad_();
  const at::Tensor zero_point = q.zero_point.clone().requires_grad_();
  const at::Tensor upstream = Random({kRows, kCols}, 4);
  const at::Tensor fake = FakeQuantize(w, scale, zero_point, q.shape);
  (fake * upstream).sum().backward();

  const auto columns = [&](const at::Tensor& t) {
    return t.repeat_interleave(q.shape.group_size, 1).narrow(1, 0, kCols);
  };
  const auto sum_groups = [&](const at::Tensor& t) {
    std::vector<at::Tensor> sums;
    for (const at::Tensor& part : t.split(q.shape.group_size, 1)) sums.push_back(part.sum(1, true));
    return at::cat(sums, 1);
  };
  const at::NoGradGuard no_grad;
  const at::Tensor ratio = base / columns(q.scale);
  const at::Tensor u = ratio.round() + columns(q.zero_point);
  const at::Tensor code = u.clamp(0, q.shape.max_code());
  const at::Tensor inside = (u == code).to(at::kFloat);
  const at::Tensor centred = code - columns(q.zero_point);
  EXPECT_TRUE(at::equal(fake, centred * columns(q.scale)));
  EXPECT_TRUE(at::equal(w.grad(), upstream * inside));
  EXPECT_TRUE(
      at::allclose(scale.grad(), sum_groups(upstream * (centred - inside * ratio)), 1e-4, 1e-4));
  EXPECT_TRUE(
      at::allclose(zero_point.grad(), -q.scale * sum_groups(upstream * (1 - inside)), 1e-4, 1e-4));
}

TEST_P(FakeQuantizeFormatTest, PackedCodesAreThoseOfTheForwardPass) {
  const at::Tensor w = Random({kRows, kCols}, 5);
  QuantParameters q = SearchQuantParameters(w, at::rand({kCols}), format());
  q.scale *= 1.0003;  // no half float any more
  ASSERT_OK_AND_ASSIGN(const PackedTensor packed, PackTrained(w, q));
  EXPECT_TRUE(at::equal(ToDense(packed, at::kCPU), FakeQuantize(w, q)));
}

TEST_P(FakeQuantizeFormatTest, SearchBeatsRoundToNearestUnderItsOwnMeasure) {
  const at::Tensor w = Random({kRows, kCols}, 6);
  const at::Tensor importance = Random({kCols}, 7).square();
  const QuantParameters q = SearchQuantParameters(w, importance, format());
  ASSERT_OK_AND_ASSIGN(
      const PackedTensor rounded,
      RoundToNearest({w.data_ptr<float>(), static_cast<size_t>(w.numel())}, kRows, kCols,
                     q.shape.bits, static_cast<int>(q.shape.group_size), q.symmetric));
  const auto error = [&](const at::Tensor& fake) {
    return ((w - fake).square() * importance).sum().item<double>();
  };
  // At 8 bits there is hardly anything to gain.
  EXPECT_LT(error(FakeQuantize(w, q)),
            error(ToDense(rounded, at::kCPU)) * (q.shape.bits == 8 ? 1.02 : 0.97));
}

TEST_P(FakeQuantizeFormatTest, OneSidedZeroAndConstantGroupsStayInRange) {
  at::Tensor w = Random({kRows, kCols}, 8);
  w[0] = w[0].abs() + 3;     // all positive
  w[1] = -(w[1].abs() + 3);  // all negative
  w[2].zero_();              // nothing there
  w[3].fill_(0.25);          // constant
  w[4] *= 1e-9;              // below the smallest scale
  const QuantParameters q = SearchQuantParameters(w, at::zeros({kCols}), format());
  ASSERT_OK_AND_ASSIGN(const PackedTensor packed, PackTrained(w, q));
  const at::Tensor dense = ToDense(packed, at::kCPU);
  EXPECT_TRUE(at::isfinite(dense).all().item<bool>());
  EXPECT_TRUE(at::equal(dense[2], w[2]));
  EXPECT_LT((dense[3] - w[3]).abs().max().item<float>(), 2e-3);
  EXPECT_LT((dense - w).abs().max().item<float>(),
            6 * w.abs().max().item<float>() / q.shape.max_code());
}

TEST_P(FakeQuantizeFormatTest, FreeScalesKeepTheirSigns) {
  const at::Tensor w = Random({kRows, kCols}, 30);
  QuantParameters q = SearchQuantParameters(w, at::ones({kCols}), format());
  const at::Tensor rounded = FakeQuantize(w, q);
  q.round_scale = false;  // the search gives half floats: nothing is to round
  EXPECT_TRUE(at::allclose(FakeQuantize(w, q), rounded, 1e-6, 1e-4));
}

// Outputs' squared error for inputs that are correlated, as a block's are.
TEST_P(FakeQuantizeFormatTest, GptqLosesLessOfTheOutputsThanTheSearch) {
  const at::Tensor mixing = Random({kCols / 4, kCols}, 20) + 0.3 * Random({1, kCols}, 21);
  const at::Tensor x = Random({500, kCols / 4}, 22).mm(mixing) + 0.3 * Random({500, kCols}, 23);
  const at::Tensor h = x.t().mm(x);
  const at::Tensor w = Random({kRows, kCols}, 24);
  const auto error = [&](const at::Tensor& weight, const QuantParameters& q) {
    return x.mm((w - FakeQuantize(weight, q)).t()).square().sum().item<double>();
  };
  const QuantParameters searched = SearchQuantParameters(w, h.diagonal(), format());
  at::Tensor values = w;
  ASSERT_OK_AND_ASSIGN(const QuantParameters q, GptqQuantParameters(values, h, format()));
  EXPECT_LT(error(values, q), 0.3 * error(w, searched));
  // At most half a step beyond the outermost code: training can still move every code.
  const at::Tensor ratio = (values - FakeQuantize(values, q)).abs().view({-1});
  EXPECT_LE(ratio.max().item<double>(), 0.5001 * q.scale.abs().max().item<double>());
}

TEST_P(FakeQuantizeFormatTest, CodedLinearHasTheGradientsOfTheDenseProduct) {
  const at::Tensor w = Random({kRows, kCols}, 9);
  const QuantParameters q = SearchQuantParameters(w, at::ones({kCols}), format());
  ASSERT_OK_AND_ASSIGN(const PackedTensor packed, PackTrained(w, q));
  const CodedMatrix coded = ToCodedMatrix(packed, at::kFloat, at::kCPU);
  const at::Tensor scale = q.scale.clone().requires_grad_();
  const at::Tensor x = Random({2, 7, kCols}, 10).requires_grad_();
  const at::Tensor bias = Random({kRows}, 11);
  const at::Tensor upstream = Random({2, 7, kRows}, 12);
  const at::Tensor y = CodedLinear(x, scale, coded, bias);
  (y * upstream).sum().backward();

  const auto columns = [&](const at::Tensor& t) {
    return t.repeat_interleave(q.shape.group_size, 1).narrow(1, 0, kCols);
  };
  const at::Tensor plain_scale = q.scale.clone().requires_grad_();
  const at::Tensor plain_x = x.detach().clone().requires_grad_();
  const at::Tensor dense =
      (coded.codes.to(at::kFloat) - columns(coded.zero_point)) * columns(plain_scale);
  const at::Tensor plain_y = at::linear(plain_x, dense, bias);
  (plain_y * upstream).sum().backward();
  EXPECT_TRUE(at::allclose(y, plain_y, 1e-5, 1e-5));
  EXPECT_TRUE(at::allclose(x.grad(), plain_x.grad(), 1e-5, 1e-5));
  EXPECT_TRUE(at::allclose(scale.grad(), plain_scale.grad(), 1e-4, 1e-3));
}

TEST_P(FakeQuantizeFormatTest, CodedLinearInBfloat16IsNearTheOneInFloats) {
  const at::Tensor w = Random({kRows, kCols}, 9);
  const QuantParameters q = SearchQuantParameters(w, at::ones({kCols}), format());
  ASSERT_OK_AND_ASSIGN(const PackedTensor packed, PackTrained(w, q));
  const at::Tensor upstream = Random({2, 7, kRows}, 12);
  at::Tensor results[2][3];
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor scale = q.scale.clone().requires_grad_();
    const at::Tensor x = Random({2, 7, kCols}, 10).requires_grad_();
    const at::Tensor y =
        CodedLinear(x.to(type), scale, ToCodedMatrix(packed, type, at::kCPU), at::Tensor());
    EXPECT_EQ(y.scalar_type(), type);
    (y * upstream).sum().backward();
    at::Tensor* result = results[type == at::kBFloat16];
    result[0] = y.detach().to(at::kFloat);
    result[1] = x.grad();
    result[2] = scale.grad();
    EXPECT_EQ(scale.grad().scalar_type(), at::kFloat);
  }
  for (int i = 0; i < 3; ++i) {
    const double error = (results[1][i] - results[0][i]).norm().item<double>();
    EXPECT_LT(error, 0.01 * results[0][i].norm().item<double>()) << i;
    EXPECT_GT(error, 0) << i;
  }
}

std::string FormatName(const testing::TestParamInfo<FormatParam>& info) {
  const auto [bits, group_size, symmetric] = info.param;
  return "w" + std::to_string(bits) + "g" + std::to_string(group_size) +
         (symmetric ? "symmetric" : "asymmetric");
}

INSTANTIATE_TEST_SUITE_P(Formats, FakeQuantizeFormatTest,
                         testing::Combine(testing::Values(2, 3, 4, 8),
                                          testing::Values(32, 64, 128, 0), testing::Bool()),
                         FormatName);

TEST(RoundScaleTest, IsAHalfFloatThatIsNotZeroAndPassesGradients) {
  const at::Tensor scale = at::tensor({0.1f, -0.1f, 0.0f, -1e-9f, 3.0f}).requires_grad_();
  const at::Tensor rounded = RoundScale(scale);
  EXPECT_TRUE(at::equal(rounded, rounded.to(at::kHalf).to(at::kFloat)));
  EXPECT_TRUE((rounded != 0).all().item<bool>());
  EXPECT_LT(rounded[3].item<float>(), 0);
  EXPECT_NEAR(rounded[1].item<float>(), -0.1f, 1e-4);
  rounded.sum().backward();
  EXPECT_TRUE(at::equal(scale.grad(), at::ones({5})));
}

TEST(PackTrainedTest, RefusesWhatIsNotFinite) {
  at::Tensor w = Random({2, 64}, 13);
  QuantParameters q = SearchQuantParameters(w, at::ones({64}), QuantFormat{});
  w[1][3] = std::nan("");
  EXPECT_THAT(PackTrained(w, q),
              StatusIs(absl::StatusCode::kAborted, testing::HasSubstr("not finite")));
}

}  // namespace
}  // namespace quern
