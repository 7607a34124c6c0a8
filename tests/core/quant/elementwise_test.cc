#include "core/quant/elementwise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace quern {
namespace {

using Operation = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

// That the values and gradients of `found` equal, relatively to the largest of each, those that
// LibTorch's own operations give in doubles.
void ExpectEqualBothWays(const Operation& found, const Operation& wanted,
                         const std::vector<at::Tensor>& inputs, double tolerance) {
  std::vector<at::Tensor> ours;
  std::vector<at::Tensor> doubles;
  for (const at::Tensor& input : inputs) {
    ours.push_back(input.detach().clone().requires_grad_());
    doubles.push_back(input.detach().to(at::kDouble).requires_grad_());
  }
  const auto expect_near = [&](const at::Tensor& a, const at::Tensor& b, const std::string& what) {
    ASSERT_EQ(a.sizes(), b.sizes()) << what;
    const double error = (a.to(at::kDouble) - b).abs().max().item<double>();
    EXPECT_LE(error, tolerance * std::max(1e-3, b.abs().max().item<double>())) << what;
  };
  const at::Tensor out = found(ours);
  const at::Tensor out_wanted = wanted(doubles);
  expect_near(out, out_wanted, "output");
  const at::Tensor grad = at::randn(out.sizes(), at::kFloat).to(out.scalar_type());
  out.backward(grad);
  out_wanted.backward(grad.to(at::kDouble));
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_EQ(ours[i].grad().scalar_type(), inputs[i].scalar_type());
    expect_near(ours[i].grad(), doubles[i].grad(), "gradient of input " + std::to_string(i));
  }
}

// One rounding of the result, and one of each gradient.
constexpr double kBfloat16Tolerance = 1.0 / 256;

TEST(GatedSiluTest, EqualsTheOracleBothWays) {
  const Operation found = [](const auto& in) { return GatedSilu(in[0], in[1]); };
  const Operation wanted = [](const auto& in) { return at::silu(in[0]) * in[1]; };
  for (const int64_t cols : {1, 15, 16, 33, 1536}) {
    SCOPED_TRACE(cols);
    at::manual_seed(cols);
    const at::Tensor gate = at::randn({2, 37, cols}, at::kFloat) * 4;
    const at::Tensor up = at::randn({2, 37, cols}, at::kFloat);
    ExpectEqualBothWays(found, wanted, {gate, up}, 2e-6);
    ExpectEqualBothWays(found, wanted, {gate.to(at::kBFloat16), up.to(at::kBFloat16)},
                        kBfloat16Tolerance);
    // Not as it lies in memory.
    ExpectEqualBothWays(found, wanted, {gate.transpose(0, 1), up.transpose(0, 1)}, 2e-6);
  }
}

TEST(GatedSiluTest, ExtremesAreThoseOfTheFormula) {
  const at::Tensor gate = at::tensor({-1e30f, -100.0f, -87.0f, 0.0f, 87.0f, 100.0f, 1e30f});
  const at::Tensor found = GatedSilu(gate, at::ones_like(gate));
  const at::Tensor wanted = at::silu(gate.to(at::kDouble));
  EXPECT_LE((found - wanted).abs().div(wanted.abs().clamp_min(1)).max().item<double>(), 1e-6);
  // Training must see that it diverged.
  const at::Tensor bad = at::tensor({NAN, 1.0f, -INFINITY});
  const at::Tensor out = GatedSilu(bad, at::tensor({1.0f, NAN, 1.0f}));
  EXPECT_FALSE(at::isfinite(out).any().item<bool>());
}

TEST(RmsNormTest, EqualsTheOracleBothWays) {
  constexpr double kEpsilon = 1e-5;
  const Operation found = [](const auto& in) { return RmsNorm(in[0], in[1], kEpsilon); };
  const Operation wanted = [](const auto& in) {
    return in[0] * (in[0].square().mean(-1, true) + kEpsilon).rsqrt() * in[1];
  };
  for (const int64_t cols : {1, 8, 64, 65, 576, 5000}) {
    SCOPED_TRACE(cols);
    at::manual_seed(cols);
    at::Tensor x = at::randn({3, 50, cols}, at::kFloat);
    x[0][0] *= 1e-4;  // the epsilon counts
    x[0][1][0] = 1000;
    const at::Tensor weight = at::randn({cols}, at::kFloat);
    ExpectEqualBothWays(found, wanted, {x, weight}, 4e-6);
  }
}

// A token of nothing but zeros has no direction: the epsilon keeps it from one.
TEST(RmsNormTest, ZerosStayZeros) {
  at::Tensor x = at::zeros({2, 8}, at::kFloat).requires_grad_();
  const at::Tensor out = RmsNorm(x, at::ones({8}), 1e-5);
  out.sum().backward();
  EXPECT_TRUE(at::equal(out, at::zeros({2, 8})));
  EXPECT_TRUE(at::isfinite(x.grad()).all().item<bool>());
}

TEST(RowErrorTest, EqualsTheOracleBothWays) {
  for (const int64_t cols : {1, 17, 576, 3000}) {
    SCOPED_TRACE(cols);
    at::manual_seed(cols);
    const at::Tensor x = at::randn({2, 33, cols}, at::kFloat);
    at::Tensor target = x + 0.1 * at::randn_like(x);
    target[0][1] = 0;
    const Operation squares = [&](const auto& in) { return MeanSquareError(in[0], target) * 3; };
    const Operation squares_wanted = [&](const auto& in) {
      return (in[0] - target).square().mean() * 3;
    };
    ExpectEqualBothWays(squares, squares_wanted, {x}, 2e-6);
    const Operation relative = [&](const auto& in) { return MeanRelativeError(in[0], target) * 3; };
    const Operation relative_wanted = [&](const auto& in) {
      const at::Tensor doubles = target.to(at::kDouble);
      const at::Tensor sizes = doubles.square().sum(-1).clamp_min(1e-12);
      return ((in[0] - doubles).square().sum(-1) / sizes).mean() * 3;
    };
    ExpectEqualBothWays(relative, relative_wanted, {x}, 2e-6);
  }
  at::Tensor bad = at::ones({2, 4});
  bad[1][2] = NAN;
  EXPECT_TRUE(std::isnan(MeanRelativeError(bad, at::ones({2, 4})).item<double>()));
}

TEST(SplitHeadsTest, EqualsTheOracleBothWays) {
  struct Shape {
    int64_t num_sequences, num_tokens, heads, head_dim;
  };
  for (const Shape& shape :
       {Shape{1, 1, 1, 2}, Shape{2, 5, 3, 8}, Shape{3, 130, 9, 64}, Shape{1, 70, 4, 20}}) {
    SCOPED_TRACE(shape.head_dim);
    at::manual_seed(shape.num_tokens);
    const at::Tensor x =
        at::randn({shape.num_sequences, shape.num_tokens, shape.heads, shape.head_dim}, at::kFloat);
    const at::Tensor angle = at::randn({shape.num_tokens, 1, shape.head_dim / 2}, at::kFloat);
    const RotaryTables rotary = {angle.cos(), angle.sin()};
    const Operation turned = [&](const auto& in) { return SplitHeads(in[0], &rotary); };
    // Pairs as complex numbers, turned by e^(i angle).
    const Operation wanted = [&](const auto& in) {
      const at::Tensor pairs =
          at::complex(in[0].narrow(3, 0, shape.head_dim / 2),
                      in[0].narrow(3, shape.head_dim / 2, shape.head_dim / 2)) *
          at::complex(rotary.cosines.to(at::kDouble), rotary.sines.to(at::kDouble));
      return at::cat({at::real(pairs), at::imag(pairs)}, 3).transpose(1, 2);
    };
    const Operation split = [](const auto& in) { return SplitHeads(in[0], nullptr); };
    const Operation transposed = [](const auto& in) { return in[0].transpose(1, 2); };
    ExpectEqualBothWays(turned, wanted, {x}, 1e-6);
    ExpectEqualBothWays(split, transposed, {x}, 0);
    const at::Tensor half = x.to(at::kBFloat16);
    ExpectEqualBothWays(turned, wanted, {half}, kBfloat16Tolerance);
    ExpectEqualBothWays(split, transposed, {half}, kBfloat16Tolerance);
  }
}

TEST(ElementwiseThreadsTest, ResultsDoNotDependOnThreads) {
  const int num_threads = at::get_num_threads();
  at::manual_seed(1);
  const at::Tensor x = at::randn({2, 300, 576}, at::kFloat);
  const at::Tensor w = at::randn({576}, at::kFloat);
  const auto run = [&](int threads) {
    at::set_num_threads(threads);
    at::Tensor weight = w.clone().requires_grad_();
    at::Tensor in = x.clone().requires_grad_();
    GatedSilu(RmsNorm(in, weight, 1e-5), in).square().sum().backward();
    return std::make_pair(in.grad(), weight.grad());
  };
  const auto [one_x, one_weight] = run(1);
  const auto [two_x, two_weight] = run(2);
  at::set_num_threads(num_threads);
  EXPECT_TRUE(at::equal(one_x, two_x));
  EXPECT_TRUE(at::equal(one_weight, two_weight));
}

}  // namespace
}  // namespace quern
