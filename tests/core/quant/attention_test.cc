#include "core/quant/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace quern {
namespace {

struct Shape {
  int num_sequences;
  int heads;
  int key_heads;
  int num_tokens;
  int head_dim;
};

class AttentionTest : public testing::TestWithParam<Shape> {};

// LibTorch's by plain products, in doubles.
at::Tensor Oracle(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const int64_t share = q.size(1) / k.size(1);
  const at::Tensor keys = k.repeat_interleave(share, 1);
  const at::Tensor scores =
      at::matmul(q, keys.transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor future = at::ones({q.size(2), q.size(2)}, q.options()).triu(1).to(at::kBool);
  const at::Tensor out =
      at::matmul(scores.masked_fill(future, -INFINITY).softmax(-1), v.repeat_interleave(share, 1));
  return out.transpose(1, 2).flatten(2);
}

void ExpectNear(const at::Tensor& found, const at::Tensor& wanted, const std::string& what) {
  ASSERT_EQ(found.sizes(), wanted.sizes()) << what;
  const double error = (found.to(at::kDouble) - wanted).abs().max().item<double>();
  EXPECT_LT(error, 1e-5 * std::max(1.0, wanted.abs().max().item<double>())) << what;
}

TEST_P(AttentionTest, EqualsTheOracleBothWays) {
  const Shape shape = GetParam();
  at::manual_seed(shape.num_tokens);
  // As they come from the projections: heads of a token side by side.
  const auto random = [&](int num_heads, double size) {
    return (at::randn({shape.num_sequences, shape.num_tokens, num_heads, shape.head_dim},
                      at::kFloat) *
            size)
        .transpose(1, 2)
        .requires_grad_();
  };
  // Scores that are large against each other, as trained models have them.
  at::Tensor inputs[3] = {random(shape.heads, 3), random(shape.key_heads, 2),
                          random(shape.key_heads, 1)};
  at::Tensor doubles[3];
  for (int i = 0; i < 3; ++i) {
    inputs[i] = inputs[i].detach().requires_grad_();
    doubles[i] = inputs[i].detach().to(at::kDouble).requires_grad_();
  }
  const at::Tensor wanted = Oracle(doubles[0], doubles[1], doubles[2]);
  const at::Tensor grad = at::randn(wanted.sizes(), at::kFloat);
  wanted.backward(grad.to(at::kDouble));
  for (const AttentionLoops& loops : SupportedAttentionLoops()) {
    SCOPED_TRACE(loops.name);
    for (at::Tensor& input : inputs) input.mutable_grad() = at::Tensor();
    const at::Tensor out = CausalAttention(inputs[0], inputs[1], inputs[2], loops);
    ExpectNear(out, wanted, "output");
    out.backward(grad);
    const char* names[] = {"queries", "keys", "values"};
    for (int i = 0; i < 3; ++i) ExpectNear(inputs[i].grad(), doubles[i].grad(), names[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest,
                         testing::Values(Shape{1, 1, 1, 1, 8}, Shape{2, 3, 1, 5, 8},
                                         Shape{1, 2, 2, 47, 20}, Shape{1, 2, 1, 48, 16},
                                         Shape{3, 4, 2, 49, 64}, Shape{1, 9, 3, 130, 64},
                                         Shape{1, 4, 4, 97, 128}, Shape{1, 33, 33, 100, 16},
                                         Shape{2, 2, 1, 512, 64}));

// Threads share heads and rows; none of them adds to what another one adds to.
TEST(AttentionThreadsTest, ResultsDoNotDependOnThreads) {
  const int num_threads = at::get_num_threads();
  at::manual_seed(1);
  const at::Tensor q = at::randn({1, 5, 150, 32}, at::kFloat);
  const at::Tensor k = at::randn({1, 5, 150, 32}, at::kFloat);
  const at::Tensor v = at::randn({1, 5, 150, 32}, at::kFloat);
  const auto run = [&](int threads) {
    at::set_num_threads(threads);
    at::Tensor keys = k.detach().clone().requires_grad_();
    const at::Tensor out = CausalAttention(q, keys, v);
    out.sum().backward();
    return std::make_pair(out.detach(), keys.grad());
  };
  const auto [one_out, one_grad] = run(1);
  const auto [two_out, two_grad] = run(2);
  at::set_num_threads(num_threads);
  EXPECT_TRUE(at::equal(one_out, two_out));
  EXPECT_TRUE(at::equal(one_grad, two_grad));
}

// Training must see that it diverged.
TEST(AttentionNanTest, NanStaysNan) {
  at::Tensor q = at::ones({1, 1, 60, 16}, at::kFloat);
  const at::Tensor v = at::ones({1, 1, 60, 16}, at::kFloat);
  q[0][0][50][3] = NAN;
  const at::Tensor out = CausalAttention(q, v, v);
  EXPECT_TRUE(out[0][50].isnan().all().item<bool>());
  EXPECT_FALSE(out[0][49].isnan().any().item<bool>());
  q[0][0][50][3] = INFINITY;
  EXPECT_TRUE(CausalAttention(q, v, v)[0][50].isnan().all().item<bool>());
}

}  // namespace
}  // namespace quern
