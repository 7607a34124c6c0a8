#include <gtest/gtest.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/reference/reference.h"
#include "tests/kernels/fixtures.h"

namespace quern::kernels {
namespace {

constexpr int kPage = kQuantizedPageTokens;

const AttentionShape kQuantizedShapes[] = {{4, 2, 64}, {9, 3, 64},  {2, 2, 8},  {2, 1, 6},
                                           {3, 1, 80}, {2, 1, 128}, {2, 1, 20}, {70, 1, 16}};

// Keys and values of a sequence, its whole pages rounded in an order that is not that of the
// positions, and each page as half floats too.
class QuantizedSequence {
 public:
  QuantizedSequence(const KernelTable& table, int bits, const AttentionShape& shape,
                    const std::vector<float>& keys, const std::vector<float>& values)
      : num_positions_(static_cast<int>(keys.size()) / (shape.num_kv_heads * shape.head_dim)),
        head_bytes_(table.quantized_head_bytes(bits, shape.head_dim)),
        page_halves_(int64_t{kOpenTokens} * shape.num_kv_heads * shape.head_dim),
        pages_(num_pages() * page_stride(shape)),
        open_keys_(num_pages() * page_halves_ * sizeof(uint16_t)),
        open_values_(num_pages() * page_halves_ * sizeof(uint16_t)) {
    for (int page = 0; page < num_pages(); ++page) table_.push_back(num_pages() - 1 - page);
    const int n = shape.num_kv_heads * shape.head_dim;
    for (int page = 0; page < num_pages(); ++page) {
      views_.push_back({.bits = bits,
                        .pages = pages_.data(),
                        .page_table = table_.data(),
                        .page_stride = static_cast<int64_t>(page_stride(shape)),
                        .open = {.keys = open(open_keys_, page),
                                 .values = open(open_values_, page),
                                 .page_table = &kFirstPage,
                                 .page_tokens = kOpenTokens}});
      const int end = std::min(num_positions_, (page + 1) * kPage);
      for (int p = page * kPage; p < end; ++p) {
        table.store_kv(views_.back().open, shape, p % kPage, keys.data() + int64_t{p} * n,
                       values.data() + int64_t{p} * n);
      }
      if (end < (page + 1) * kPage) continue;
      // In two calls, as threads share it.
      table.quantize_kv(views_.back(), shape, page, 0, 1);
      table.quantize_kv(views_.back(), shape, page, 1, shape.num_kv_heads);
    }
  }

  // For tokens of `page`.
  const QuantizedKv& kv(int page) const { return views_[page]; }
  const uint8_t* head(int page, int kv_head) const {
    return views_[0].pages + table_[page] * views_[0].page_stride + kv_head * head_bytes_;
  }
  const uint16_t* open_keys(int page, const AttentionShape& shape, int kv_head) const {
    return views_[page].open.keys + int64_t{kv_head} * kOpenTokens * shape.head_dim;
  }
  const uint16_t* open_values(int page, const AttentionShape& shape, int kv_head) const {
    return views_[page].open.values + int64_t{kv_head} * kOpenTokens * shape.head_dim;
  }

 private:
  // More than a page, as rows of a step are.
  static constexpr int kOpenTokens = kPage + 5;
  static constexpr int32_t kFirstPage = 0;

  int num_pages() const { return (num_positions_ + kPage - 1) / kPage; }
  size_t page_stride(const AttentionShape& shape) const {
    return shape.num_kv_heads * head_bytes_ + 24;
  }
  uint16_t* open(GuardedBuffer& rows, int page) const {
    return reinterpret_cast<uint16_t*>(rows.data()) + page * page_halves_;
  }

  int num_positions_;
  size_t head_bytes_;
  int64_t page_halves_;
  GuardedBuffer pages_;
  GuardedBuffer open_keys_;
  GuardedBuffer open_values_;
  std::vector<int32_t> table_;
  std::vector<QuantizedKv> views_;
};

class QuantizedKvTest : public testing::TestWithParam<std::tuple<const KernelTable*, int>> {
 protected:
  const KernelTable& table() const { return *std::get<0>(GetParam()); }
  int bits() const { return std::get<1>(GetParam()); }

  QuantizedSequence Sequence(const AttentionShape& shape, int num_positions) const {
    const size_t n = size_t(num_positions) * shape.num_kv_heads * shape.head_dim;
    return {table(), bits(), shape, RandomFloats(n, 31), RandomFloats(n, 32)};
  }

  // Tokens [first, first + count), all of one page; `queries` and `out` start at position 0.
  void Attend(const QuantizedSequence& sequence, const AttentionShape& shape,
              const std::vector<float>& queries, int first, int count, int head_begin, int head_end,
              float* out) const {
    const int64_t stride = int64_t{shape.num_heads} * shape.head_dim;
    GuardedBuffer scratch(table().attention_scratch_floats(shape) * sizeof(float));
    table().attention_quantized(sequence.kv(first / kPage), shape,
                                {.queries = queries.data() + first * stride,
                                 .query_stride = stride,
                                 .first_position = first,
                                 .num_tokens = count,
                                 .head_begin = head_begin,
                                 .head_end = head_end,
                                 .out = out + first * stride,
                                 .out_stride = stride},
                                reinterpret_cast<float*>(scratch.data()));
  }
};

TEST_P(QuantizedKvTest, RoundsAsTheReference) {
  for (const AttentionShape& shape : kQuantizedShapes) {
    SCOPED_TRACE(testing::Message() << "head_dim " << shape.head_dim);
    const QuantizedSequence sequence = Sequence(shape, 2 * kPage);
    for (int page = 0; page < 2; ++page) {
      for (int head = 0; head < shape.num_kv_heads; ++head) {
        const reference::KvHead want =
            reference::RoundKv(bits(), shape.head_dim, sequence.open_keys(page, shape, head),
                               sequence.open_values(page, shape, head));
        const reference::KvHead got =
            reference::DequantizeKv(bits(), shape.head_dim, sequence.head(page, head));
        ASSERT_EQ(got.keys, want.keys);
        ASSERT_EQ(got.values, want.values);
      }
    }
  }
}

// Groups whose scale is 0, below the least half float, or the largest there is.
TEST_P(QuantizedKvTest, RoundsGroupsOfAnyRange) {
  const AttentionShape shape{2, 1, 16};
  std::vector<float> keys(kPage * 16), values(kPage * 16);
  for (int t = 0; t < kPage; ++t) {
    for (int i = 0; i < 16; ++i) {
      const float sign = (t + i) % 2 == 0 ? 1 : -1;
      const float magnitudes[] = {0, 3, 0x1p-24f, 0x1p-14f, 1e-3f, 1, 1000, 65504};
      // Key channels and value positions are groups.
      keys[t * 16 + i] = i == 1 ? 3 : sign * magnitudes[i % 8];
      values[t * 16 + i] = t == 1 ? 3 : sign * magnitudes[t % 8];
    }
  }
  const QuantizedSequence sequence(table(), bits(), shape, keys, values);
  const reference::KvHead got = reference::DequantizeKv(bits(), 16, sequence.head(0, 0));
  const double levels = (1 << bits()) - 1;
  for (int t = 0; t < kPage; ++t) {
    for (int i = 0; i < 16; ++i) {
      const auto close = [&](double x, double y, double largest) {
        // Half a step, and what rounding of the scale to a half float makes of `levels` steps.
        const double step = 2 * largest / levels;
        return std::fabs(x - y) <= step / 2 + levels * std::max(step * 0x1p-11, 0x1p-25);
      };
      ASSERT_TRUE(close(got.keys[t * 16 + i], keys[t * 16 + i], std::fabs(keys[t * 16 + i]))) << i;
      ASSERT_TRUE(close(got.values[t * 16 + i], values[t * 16 + i], std::fabs(values[t * 16 + i])))
          << t;
    }
  }
}

TEST_P(QuantizedKvTest, AgreesWithReference) {
  for (const AttentionShape& shape : kQuantizedShapes) {
    for (const int positions : {1, 63, 64, 65, 97, 128, 300}) {
      SCOPED_TRACE(testing::Message()
                   << "head_dim " << shape.head_dim << " positions " << positions);
      const QuantizedSequence sequence = Sequence(shape, positions);
      const size_t n = size_t(shape.num_heads) * shape.head_dim;
      const std::vector<float> queries = RandomFloats(n * positions, 33, 2);
      std::vector<float> out(n * positions);
      const int last = positions - 1;
      Attend(sequence, shape, queries, last, 1, 0, shape.num_heads, out.data());
      const std::vector<double> want =
          reference::Attention(sequence.kv(last / kPage), shape, last, queries.data() + last * n);
      for (size_t i = 0; i < n; ++i) ASSERT_NEAR(out[last * n + i], want[i], 5e-6) << i;
    }
  }
}

TEST_P(QuantizedKvTest, ATokenHasTheSameBitsAloneAndAmongOthers) {
  for (const AttentionShape& shape : kQuantizedShapes) {
    constexpr int kTokens = 150;
    const QuantizedSequence sequence = Sequence(shape, kTokens);
    const size_t n = size_t(shape.num_heads) * shape.head_dim;
    const std::vector<float> queries = RandomFloats(kTokens * n, 33, 2);
    std::vector<float> wanted(kTokens * n);
    for (int t = 0; t < kTokens; ++t) {
      Attend(sequence, shape, queries, t, 1, 0, shape.num_heads, wanted.data());
    }
    for (const int cut : {2, 7, 16, kPage}) {
      GuardedBuffer out(kTokens * n * sizeof(float));
      for (int t = 0; t < kTokens;) {
        const int count = std::min({cut, kTokens - t, kPage - t % kPage});
        const int middle = shape.num_heads / 2;
        for (const auto& [begin, end] : {std::pair{0, middle}, {middle, shape.num_heads}}) {
          Attend(sequence, shape, queries, t, count, begin, end,
                 reinterpret_cast<float*>(out.data()));
        }
        t += count;
      }
      ASSERT_EQ(0, std::memcmp(out.data(), wanted.data(), out.size()))
          << "head_dim " << shape.head_dim << ", " << cut << " tokens at a time";
    }
  }
}

// In the open page those after it see it; later, the scales of its groups do not hide it.
TEST_P(QuantizedKvTest, NotANumberReachesThoseWhoSeeIt) {
  for (const float bad : {std::nanf(""), 1e9f}) {
    const AttentionShape shape{2, 1, 16};
    constexpr int kTokens = 100, kBad = 33;
    std::vector<float> keys = RandomFloats(kTokens * 16, 31);
    std::vector<float> values = RandomFloats(kTokens * 16, 32);
    keys[kBad * 16 + 5] = bad;
    std::fill_n(values.begin() + kBad * 16, 16, bad);
    const QuantizedSequence sequence(table(), bits(), shape, keys, values);
    const std::vector<float> queries = RandomFloats(kTokens * 32, 33);
    std::vector<float> out(kTokens * 32);
    for (int t = 0; t < kTokens; ++t) Attend(sequence, shape, queries, t, 1, 0, 2, out.data());
    for (int t = 0; t < kTokens; ++t) {
      if (t < kBad) {
        for (int i = 0; i < 32; ++i) ASSERT_TRUE(std::isfinite(out[t * 32 + i])) << t;
      } else if (t >= kPage || std::isnan(bad)) {
        for (int i = 0; i < 32; ++i) ASSERT_TRUE(std::isnan(out[t * 32 + i])) << t;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedKvTest,
                         testing::Combine(testing::ValuesIn(AvailableKernels()),
                                          testing::Values(4, 8)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)->name) + "_int" +
                                  std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace quern::kernels
