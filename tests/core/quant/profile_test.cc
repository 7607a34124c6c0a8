#include "core/quant/profile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/quant/fake_quantizer.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;

const ProfileRow* Find(const std::vector<ProfileRow>& rows, const std::string& name) {
  const auto it = std::find_if(rows.begin(), rows.end(),
                               [&](const ProfileRow& row) { return row.name == name; });
  return it == rows.end() ? nullptr : &*it;
}

TEST(ProfileTest, CountsProductsAndOwnLoops) {
  const at::Tensor a = at::ones({40, 30});
  const at::Tensor b = at::ones({30, 50});
  at::mm(a, b);  // before
  StartProfile();
  at::mm(a, b);
  at::mm(a, b);
  at::bmm(a.view({2, 20, 30}), b.view({1, 30, 50}).expand({2, 30, 50}).contiguous());
  const auto packed = QuantParameters{
      .shape = {4, 64, 64, 4}, .scale = at::ones({4, 1}), .zero_point = at::zeros({4, 1})};
  at::Tensor weight = at::ones({4, 64}).requires_grad_();
  FakeQuantize(weight, packed).sum().backward();
  const std::vector<ProfileRow> rows = StopProfile();
  at::mm(a, b);  // after

  const ProfileRow* mm = Find(rows, "aten::mm");
  ASSERT_NE(mm, nullptr);
  EXPECT_EQ(mm->num_calls, 2);
  EXPECT_EQ(mm->flop, 2 * 2.0 * 40 * 30 * 50);
  const ProfileRow* bmm = Find(rows, "aten::bmm");
  ASSERT_NE(bmm, nullptr);
  EXPECT_EQ(bmm->flop, 2 * 2.0 * 20 * 30 * 50);
  EXPECT_NE(Find(rows, "quern::fake_quantize"), nullptr);
  EXPECT_NE(Find(rows, "quern::fake_quantize backward"), nullptr);
  for (const ProfileRow& row : rows) EXPECT_GE(row.seconds, 0) << row.name;
  EXPECT_TRUE(std::is_sorted(rows.begin(), rows.end(),
                             [](const auto& x, const auto& y) { return x.seconds > y.seconds; }));
}

TEST(ProfileTest, SaysHowNearProductsCame) {
  const std::vector<ProfileRow> rows = {
      {.name = "aten::mm", .num_calls = 3, .seconds = 2, .flop = 100e9},
      {.name = "aten::mm bfloat16", .bfloat16 = true, .num_calls = 3, .seconds = 0.5, .flop = 80e9},
      {.name = "quern::adam", .num_calls = 1, .seconds = 1}};
  const std::string text = FormatProfile(rows, 4, {.float32 = 100, .bfloat16 = 400});
  EXPECT_THAT(text, HasSubstr("aten::mm"));
  EXPECT_THAT(text, HasSubstr("outside LibTorch"));
  EXPECT_THAT(text, HasSubstr("products of floats: 50.0 % of 4.0 s, 50 GFLOP/s (50 % of this "
                              "machine's 100)"));
  EXPECT_THAT(text, HasSubstr("products of bfloat16: 12.5 % of 4.0 s, 160 GFLOP/s (40 % of this "
                              "machine's 400)"));
  EXPECT_THAT(text, HasSubstr("would take 1.2 s, 30 % of the time"));
}

}  // namespace
}  // namespace quern
