#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/reference/reference.h"
#include "tests/kernels/fixtures.h"

namespace quern::kernels {
namespace {

// Pages in an order that is not that of the positions.
class Pages {
 public:
  Pages(const AttentionShape& shape, int num_positions, int page_tokens)
      : num_pages_((num_positions + page_tokens - 1) / page_tokens),
        page_stride_(int64_t{page_tokens} * shape.num_kv_heads * shape.head_dim + 24),
        keys_(num_pages_ * page_stride_ * sizeof(uint16_t)),
        values_(num_pages_ * page_stride_ * sizeof(uint16_t)) {
    for (int p = 0; p < num_pages_; ++p) table_.push_back(num_pages_ - 1 - p);
    kv_ = {.keys = reinterpret_cast<uint16_t*>(keys_.data()),
           .values = reinterpret_cast<uint16_t*>(values_.data()),
           .page_table = table_.data(),
           .page_stride = page_stride_,
           .page_tokens = page_tokens};
  }
  const PagedKv& kv() const { return kv_; }

 private:
  int num_pages_;
  int64_t page_stride_;
  GuardedBuffer keys_;
  GuardedBuffer values_;
  std::vector<int32_t> table_;
  PagedKv kv_;
};

// Tokens [first, first + count) of `queries`, which start at position 0 and are dense.
AttentionQuery Query(const AttentionShape& shape, const std::vector<float>& queries, int first,
                     int count, int head_begin, int head_end, float* out) {
  const int64_t stride = int64_t{shape.num_heads} * shape.head_dim;
  return {.queries = queries.data() + first * stride,
          .query_stride = stride,
          .first_position = first,
          .num_tokens = count,
          .head_begin = head_begin,
          .head_end = head_end,
          .out = out + first * stride,
          .out_stride = stride};
}

class AttentionTest : public testing::TestWithParam<const KernelTable*> {
 protected:
  const KernelTable& table() const { return *GetParam(); }

  // One query token at `position`.
  void AttendOne(const Pages& pages, const AttentionShape& shape, int position,
                 const std::vector<float>& query, int head_begin, int head_end, float* out) {
    GuardedBuffer scratch(table().attention_scratch_floats(shape) * sizeof(float));
    table().attention(pages.kv(), shape,
                      {.queries = query.data(),
                       .first_position = position,
                       .num_tokens = 1,
                       .head_begin = head_begin,
                       .head_end = head_end,
                       .out = out},
                      reinterpret_cast<float*>(scratch.data()));
  }

  void Fill(const Pages& pages, const AttentionShape& shape, int num_positions,
            float deviation = 1) {
    const int n = shape.num_kv_heads * shape.head_dim;
    const std::vector<float> keys = RandomFloats(size_t(num_positions) * n, 31, deviation);
    const std::vector<float> values = RandomFloats(size_t(num_positions) * n, 32);
    for (int p = 0; p < num_positions; ++p) {
      table().store_kv(pages.kv(), shape, p, keys.data() + p * n, values.data() + p * n);
    }
  }
};

TEST_P(AttentionTest, AgreesWithReference) {
  for (const AttentionShape& shape : {AttentionShape{4, 2, 64},
                                      {9, 3, 64},
                                      {2, 2, 8},
                                      {2, 1, 6},
                                      {3, 1, 80},
                                      {2, 1, 128},
                                      {2, 1, 20}}) {
    for (const auto& [positions, page_tokens] :
         {std::pair{1, 16}, {2, 16}, {9, 4}, {40, 16}, {64, 16}, {70, 1}, {300, 16}}) {
      SCOPED_TRACE(testing::Message() << "head_dim " << shape.head_dim << " positions " << positions
                                      << " page " << page_tokens);
      Pages pages(shape, positions, page_tokens);
      Fill(pages, shape, positions);
      const size_t n = size_t(shape.num_heads) * shape.head_dim;
      const std::vector<float> query = RandomFloats(n, 33, 2);
      GuardedBuffer out(n * sizeof(float));
      const float* y = reinterpret_cast<float*>(out.data());
      AttendOne(pages, shape, positions - 1, query, 0, shape.num_heads,
                reinterpret_cast<float*>(out.data()));
      const std::vector<double> want =
          reference::Attention(pages.kv(), shape, positions - 1, query.data());
      for (size_t i = 0; i < n; ++i) ASSERT_NEAR(y[i], want[i], 5e-6) << i;
    }
  }
}

TEST_P(AttentionTest, ATokenHasTheSameBitsAloneAndAmongOthers) {
  // The last has more heads on a key/value head than a pass holds.
  for (const AttentionShape& shape :
       {AttentionShape{9, 3, 64}, {2, 2, 20}, {4, 1, 128}, {70, 1, 8}}) {
    constexpr int kTokens = 100;
    Pages pages(shape, kTokens, 16);
    Fill(pages, shape, kTokens);
    const size_t n = size_t(shape.num_heads) * shape.head_dim;
    const std::vector<float> queries = RandomFloats(kTokens * n, 33, 2);
    GuardedBuffer scratch(table().attention_scratch_floats(shape) * sizeof(float));
    std::vector<float> wanted(kTokens * n);
    for (int t = 0; t < kTokens; ++t) {
      table().attention(pages.kv(), shape,
                        Query(shape, queries, t, 1, 0, shape.num_heads, wanted.data()),
                        reinterpret_cast<float*>(scratch.data()));
    }
    for (int cut : {2, 5, 16, 32, 100}) {
      GuardedBuffer out(kTokens * n * sizeof(float));
      for (int t = 0; t < kTokens; t += cut) {
        const int middle = shape.num_heads / 2;
        for (const auto& [begin, end] : {std::pair{0, middle}, {middle, shape.num_heads}}) {
          table().attention(pages.kv(), shape,
                            Query(shape, queries, t, std::min(cut, kTokens - t), begin, end,
                                  reinterpret_cast<float*>(out.data())),
                            reinterpret_cast<float*>(scratch.data()));
        }
      }
      ASSERT_EQ(0, std::memcmp(out.data(), wanted.data(), out.size()))
          << "head_dim " << shape.head_dim << ", " << cut << " tokens at a time";
    }
  }
}

// A broken key or value must show in those that see it, and in nobody else.
TEST_P(AttentionTest, NotANumberReachesThoseWhoSeeIt) {
  const AttentionShape shape{2, 1, 16};
  constexpr int kTokens = 50, kBad = 33;
  Pages pages(shape, kTokens, 16);
  Fill(pages, shape, kTokens);
  const float nan = std::nanf("");
  const std::vector<float> bad(16, nan);
  table().store_kv(pages.kv(), shape, kBad, bad.data(), bad.data());
  const std::vector<float> queries = RandomFloats(kTokens * 32, 33);
  std::vector<float> out(kTokens * 32);
  GuardedBuffer scratch(table().attention_scratch_floats(shape) * sizeof(float));
  table().attention(pages.kv(), shape, Query(shape, queries, 0, kTokens, 0, 2, out.data()),
                    reinterpret_cast<float*>(scratch.data()));
  for (int t = 0; t < kTokens; ++t) {
    for (int i = 0; i < 32; ++i) ASSERT_EQ(std::isnan(out[t * 32 + i]), t >= kBad) << t;
  }
}

TEST_P(AttentionTest, HeadRangesJoinToTheWhole) {
  const AttentionShape shape{6, 2, 32};
  Pages pages(shape, 20, 8);
  Fill(pages, shape, 20);
  const std::vector<float> query = RandomFloats(6 * 32, 3);
  std::vector<float> whole(6 * 32), parts(6 * 32, -7.0f);
  AttendOne(pages, shape, 19, query, 0, 6, whole.data());
  AttendOne(pages, shape, 19, query, 1, 4, parts.data());
  for (int i = 0; i < 6 * 32; ++i) {
    ASSERT_EQ(parts[i], i / 32 >= 1 && i / 32 < 4 ? whole[i] : -7.0f);
  }
}

TEST_P(AttentionTest, TheSizeOfPagesDoesNotChangeBits) {
  const AttentionShape shape{2, 1, 64};
  const std::vector<float> query = RandomFloats(2 * 64, 3);
  std::vector<float> first;
  for (int page_tokens : {1, 3, 16, 64}) {
    Pages pages(shape, 37, page_tokens);
    Fill(pages, shape, 37);
    std::vector<float> out(2 * 64);
    AttendOne(pages, shape, 36, query, 0, 2, out.data());
    if (first.empty()) first = out;
    EXPECT_EQ(0, std::memcmp(out.data(), first.data(), out.size() * sizeof(float)));
  }
}

TEST_P(AttentionTest, LargeScoresStayFinite) {
  const AttentionShape shape{2, 1, 64};
  Pages pages(shape, 30, 16);
  Fill(pages, shape, 30, /*deviation=*/200);
  const std::vector<float> query = RandomFloats(2 * 64, 3, 200);
  std::vector<float> out(2 * 64);
  AttendOne(pages, shape, 29, query, 0, 2, out.data());
  const std::vector<double> want = reference::Attention(pages.kv(), shape, 29, query.data());
  for (int i = 0; i < 2 * 64; ++i) ASSERT_NEAR(out[i], want[i], 1e-3);
}

TEST_P(AttentionTest, StoreKvRoundsToTheNearestHalf) {
  const AttentionShape shape{1, 1, 12};
  Pages pages(shape, 1, 1);
  const std::vector<float> x = {0.0f,     -0.0f,     1.0f,     1.0f + 0x1p-11f, 1.0f + 0x1.8p-10f,
                                65504.0f, 65519.0f,  65520.0f, -1e9f,           0x1p-24f,
                                0x1p-25f, 0x1.8p-24f};
  const std::vector<uint16_t> want = {0x0000, 0x8000, 0x3c00, 0x3c00, 0x3c02, 0x7bff,
                                      0x7bff, 0x7c00, 0xfc00, 0x0001, 0x0000, 0x0002};
  table().store_kv(pages.kv(), shape, 0, x.data(), x.data());
  for (int i = 0; i < 12; ++i) {
    EXPECT_EQ(pages.kv().keys[i], want[i]) << x[i];
    EXPECT_EQ(pages.kv().values[i], want[i]) << x[i];
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionTest, testing::ValuesIn(AvailableKernels()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace quern::kernels
