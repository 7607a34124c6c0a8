#include "core/quant/head_loss.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "core/quant/loss_loops.h"

namespace quern {
namespace {

using LossParam = std::tuple<int, at::ScalarType>;  // vocabulary, type of the logits

class HeadLossTest : public testing::TestWithParam<LossParam> {
 protected:
  at::Tensor Logits(double size) const {
    return (at::randn({3, std::get<0>(GetParam())}, at::kFloat) * size).to(std::get<1>(GetParam()));
  }
  LogitRow RowOf(at::Tensor& logits, int64_t row) const {
    return {.data = logits[row].data_ptr(), .bfloat16 = std::get<1>(GetParam()) == at::kBFloat16};
  }
  // Gradients are in [-1, 1]; bfloat16 has 8 bits.
  void ExpectGradients(const at::Tensor& found, const at::Tensor& wanted) const {
    const at::Tensor error = (found.to(at::kDouble) - wanted).abs();
    const double share = std::get<1>(GetParam()) == at::kBFloat16 ? 1.0 / 256 : 1e-6;
    EXPECT_TRUE((error <= share * wanted.abs() + 2e-7).all().item<bool>())
        << error.max().item<double>();
  }
};

TEST_P(HeadLossTest, DivergenceEqualsTheOracle) {
  at::manual_seed(2);
  const at::Tensor student = Logits(4);
  const at::Tensor teacher = Logits(5);
  const int64_t last = student.size(1) - 1;
  const at::Tensor tokens = at::tensor({last, int64_t{0}, last / 2}, at::kLong);
  const at::Tensor log_p = student.to(at::kDouble).log_softmax(1);
  const at::Tensor log_q = teacher.to(at::kDouble).log_softmax(1);
  std::vector<float> scratch(LossScratchFloats(student.size(1)));
  for (const double share : {0.0, 0.3, 1.0}) {
    SCOPED_TRACE(share);
    const at::Tensor losses = (1 - share) * (log_q.exp() * (log_q - log_p)).sum(1) -
                              share * log_p.gather(1, tokens.unsqueeze(1)).squeeze(1);
    at::Tensor grads = log_p.exp() - (1 - share) * log_q.exp();
    for (int64_t row = 0; row < 3; ++row) grads[row][tokens[row].item<int64_t>()] -= share;
    for (const LossLoops& loops : SupportedLossLoops()) {
      SCOPED_TRACE(loops.name);
      at::Tensor found = student.clone();
      at::Tensor same = teacher.clone();
      for (int64_t row = 0; row < 3; ++row) {
        const HardTarget target = {.token = tokens[row].item<int64_t>(),
                                   .share = static_cast<float>(share)};
        const double loss = loops.divergence(RowOf(found, row), RowOf(same, row), target,
                                             student.size(1), scratch.data());
        const double wanted = losses[row].item<double>();
        EXPECT_NEAR(loss, wanted, 1e-5 * std::max(1.0, wanted));
      }
      ExpectGradients(found, grads);
      EXPECT_TRUE(at::equal(same, teacher));
    }
    at::Tensor all = student.clone();
    EXPECT_NEAR(DivergenceToGradients(all, teacher, {.tokens = tokens, .share = share}),
                losses.sum().item<double>(), 1e-4);
    ExpectGradients(all, grads);
  }
}

TEST_P(HeadLossTest, CrossEntropyEqualsTheOracle) {
  at::manual_seed(3);
  const at::Tensor student = Logits(4);
  const int64_t last = student.size(1) - 1;
  const at::Tensor targets = at::tensor({int64_t{0}, last, last / 2}, at::kLong);
  const at::Tensor log_p = student.to(at::kDouble).log_softmax(1);
  const at::Tensor losses = -log_p.gather(1, targets.unsqueeze(1)).squeeze(1);
  at::Tensor grads = log_p.exp();
  for (int64_t row = 0; row < 3; ++row) grads[row][targets[row].item<int64_t>()] -= 1;
  std::vector<float> scratch(LossScratchFloats(student.size(1)));
  for (const LossLoops& loops : SupportedLossLoops()) {
    SCOPED_TRACE(loops.name);
    at::Tensor found = student.clone();
    for (int64_t row = 0; row < 3; ++row) {
      const double loss = loops.cross_entropy(RowOf(found, row), targets[row].item<int64_t>(),
                                              student.size(1), scratch.data());
      EXPECT_NEAR(loss, losses[row].item<double>(), 1e-5 * std::max(1.0, loss));
    }
    ExpectGradients(found, grads);
  }
  at::Tensor all = student.clone();
  EXPECT_NEAR(CrossEntropyToGradients(all, targets), losses.sum().item<double>(), 1e-4);
  ExpectGradients(all, grads);
}

TEST_P(HeadLossTest, NanIsSeen) {
  at::Tensor student = Logits(1);
  const at::Tensor teacher = Logits(1);
  student[1][0] = NAN;
  at::Tensor copy = student.clone();
  EXPECT_TRUE(std::isnan(DivergenceToGradients(copy, teacher)));
  copy = student.clone();
  EXPECT_TRUE(std::isnan(CrossEntropyToGradients(copy, at::zeros({3}, at::kLong))));
}

INSTANTIATE_TEST_SUITE_P(Logits, HeadLossTest,
                         testing::Combine(testing::Values(1, 15, 16, 333, 49152),
                                          testing::Values(at::kFloat, at::kBFloat16)));

}  // namespace
}  // namespace quern
