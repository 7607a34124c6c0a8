// Fixed kernel calls of the avx2 table for instruction_counts.py, which counts their instructions
// under callgrind: a kernel that became slower shows without a clock.

#include <valgrind/callgrind.h>

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/fixtures.h"

namespace quern::kernels {
namespace {

void Count(const std::string& name, const std::function<void()>& call) {
  call();  // resolves what is bound at the first call
  CALLGRIND_ZERO_STATS;
  call();
  CALLGRIND_DUMP_STATS_AT(name.c_str());
}

void CountPacked(const KernelTable& table, int bits, ActivationPrecision precision,
                 int num_tokens) {
  constexpr int kRows = 64, kCols = 512, kGroup = 64;
  const PackedFixture w = RandomPacked(bits, kRows, kCols, kGroup, /*symmetric=*/false, 1);
  const ActivationFormat format{.cols = kCols, .group_size = kGroup, .precision = precision};
  GuardedBuffer data(table.prepacked_bytes(w.view));
  GuardedBuffer activations(table.activation_bytes(format, num_tokens));
  const std::vector<float> x = RandomFloats(size_t(num_tokens) * kCols, 2);
  std::vector<float> y(size_t(num_tokens) * kRows);
  const std::string name = "w" + std::to_string(bits) +
                           (precision == ActivationPrecision::kInt16 ? " int16, " : ", ") +
                           std::to_string(num_tokens) + " tokens";
  if (num_tokens == 1 && precision == ActivationPrecision::kInt8) {
    Count("prepack w" + std::to_string(bits),
          [&] { table.prepack(w.view, 0, kRows, data.data()); });
  }
  table.prepack(w.view, 0, kRows, data.data());
  table.quantize_activations(format, x.data(), kCols, 0, num_tokens, activations.data());
  const PrepackedMatrix matrix = Describe(w.view, data.data());
  Count(name, [&] {
    table.matmul(matrix, activations.data(), precision, num_tokens, 0, kRows, false, y.data(),
                 kRows);
  });
}

void CountDense(const KernelTable& table, int num_tokens) {
  constexpr int kRows = 64, kCols = 512;
  const std::vector<float> values = RandomFloats(kRows * kCols, 1);
  const DenseMatrix w{
      .type = DenseMatrix::Type::kF32, .rows = kRows, .cols = kCols, .data = values.data()};
  GuardedBuffer data(table.prepacked_dense_bytes(w));
  table.prepack_dense(w, 0, kRows, data.data());
  const std::vector<float> x = RandomFloats(size_t(num_tokens) * kCols, 2);
  std::vector<float> y(size_t(num_tokens) * kRows);
  const PrepackedMatrix matrix = Describe(w, data.data());
  Count("f32, " + std::to_string(num_tokens) + " tokens", [&] {
    table.matmul_dense(matrix, x.data(), kCols, num_tokens, 0, kRows, false, y.data(), kRows);
  });
}

void CountAttention(const KernelTable& table, int num_tokens) {
  constexpr AttentionShape kShape{.num_heads = 9, .num_kv_heads = 3, .head_dim = 64};
  constexpr int kPositions = 256, kPageTokens = 16, kWidth = 9 * 64;
  const int64_t page = int64_t{kPageTokens} * kShape.num_kv_heads * kShape.head_dim;
  std::vector<uint16_t> keys(kPositions / kPageTokens * page), values(keys.size());
  std::vector<int32_t> pages;
  for (int p = 0; p < kPositions / kPageTokens; ++p) pages.push_back(p);
  const PagedKv kv{.keys = keys.data(),
                   .values = values.data(),
                   .page_table = pages.data(),
                   .page_stride = page,
                   .page_tokens = kPageTokens};
  const std::vector<float> queries = RandomFloats(size_t(num_tokens) * kWidth, 3);
  for (int p = 0; p < kPositions; ++p) {
    table.store_kv(kv, kShape, p, queries.data(), queries.data() + 64);
  }
  std::vector<float> scratch(table.attention_scratch_floats(kShape)), out(queries.size());
  Count("attention, " + std::to_string(num_tokens) + " tokens", [&] {
    table.attention(kv, kShape,
                    {.queries = queries.data(),
                     .query_stride = kWidth,
                     .first_position = kPositions - num_tokens,
                     .num_tokens = num_tokens,
                     .head_end = kShape.num_heads,
                     .out = out.data(),
                     .out_stride = kWidth},
                    scratch.data());
  });
}

// Whole pages as integers, and half a page that is being filled.
void CountQuantizedAttention(const KernelTable& table, int bits) {
  constexpr AttentionShape kShape{.num_heads = 9, .num_kv_heads = 3, .head_dim = 64};
  constexpr int kNumPages = 4, kOpenTokens = kQuantizedPageTokens / 2, kWidth = 9 * 64;
  const auto stride =
      static_cast<int64_t>(table.quantized_head_bytes(bits, kShape.head_dim) * kShape.num_kv_heads);
  std::vector<uint8_t> pages(kNumPages * stride);
  std::vector<uint16_t> open(2 * kQuantizedPageTokens * kShape.num_kv_heads * kShape.head_dim);
  const int32_t page_table[kNumPages] = {0, 1, 2, 3};
  const QuantizedKv kv{.bits = bits,
                       .pages = pages.data(),
                       .page_table = page_table,
                       .page_stride = stride,
                       .open = {.keys = open.data(),
                                .values = open.data() + open.size() / 2,
                                .page_table = page_table,
                                .page_tokens = kQuantizedPageTokens}};
  const std::vector<float> query = RandomFloats(kWidth, 3);
  for (int p = 0; p < kQuantizedPageTokens; ++p) {
    table.store_kv(kv.open, kShape, p, query.data() + p, query.data() + 64 + p);
  }
  const std::string name = "kv of " + std::to_string(bits) + " bits";
  Count("quantize " + name, [&] { table.quantize_kv(kv, kShape, 0, 0, kShape.num_kv_heads); });
  for (int page = 1; page < kNumPages; ++page) {
    table.quantize_kv(kv, kShape, page, 0, kShape.num_kv_heads);
  }
  std::vector<float> scratch(table.attention_scratch_floats(kShape)), out(query.size());
  Count("attention, " + name, [&] {
    table.attention_quantized(kv, kShape,
                              {.queries = query.data(),
                               .query_stride = kWidth,
                               .first_position = kNumPages * kQuantizedPageTokens + kOpenTokens - 1,
                               .num_tokens = 1,
                               .head_end = kShape.num_heads,
                               .out = out.data(),
                               .out_stride = kWidth},
                              scratch.data());
  });
}

void CountElementwise(const KernelTable& table) {
  constexpr int kSize = 2048;
  std::vector<float> x = RandomFloats(kSize, 4), y(kSize);
  const ActivationFormat format{.cols = kSize, .group_size = 64};
  GuardedBuffer activations(table.activation_bytes(format, 1));
  Count("quantize_activations",
        [&] { table.quantize_activations(format, x.data(), kSize, 0, 1, activations.data()); });
  Count("rms_norm", [&] { table.rms_norm(x.data(), x.data(), kSize, 1e-5f, y.data()); });
  Count("silu_mul", [&] { table.silu_mul(x.data(), x.data(), kSize, y.data()); });
}

int Run() {
  const KernelTable* table = FindKernels("avx2");
  if (table == nullptr) {
    std::printf("this processor has no AVX2 with FMA and F16C\n");
    return 77;
  }
  for (const int bits : {2, 3, 4, 8}) {
    for (const int num_tokens : {1, 4, 16}) {
      CountPacked(*table, bits, ActivationPrecision::kInt8, num_tokens);
    }
  }
  CountPacked(*table, 4, ActivationPrecision::kInt16, 1);
  for (const int num_tokens : {1, 6}) CountDense(*table, num_tokens);
  for (const int num_tokens : {1, 16}) CountAttention(*table, num_tokens);
  for (const int bits : {4, 8}) CountQuantizedAttention(*table, bits);
  CountElementwise(*table);
  return 0;
}

}  // namespace
}  // namespace quern::kernels

int main() { return quern::kernels::Run(); }
