// Rates of the kernels. Matrices of decode benchmarks are many copies of one, several times the
// cache, so that weights come from DRAM as they do in a large model; `read` is the pure read of as
// many bytes, the yardstick of the same minute. Rows are split over 1 or 2 threads.
//
//   kernels_bench --benchmark_filter=avx2/w4 --benchmark_repetitions=5

#include <benchmark/benchmark.h>

#include <algorithm>
#include <barrier>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu/tables.h"
#include "kernels/kernels.h"

namespace quern::kernels {
namespace {

// Above the last-level cache of the CPUs this runs on.
constexpr size_t kDramBytes = size_t{256} << 20;

struct Freer {
  void operator()(void* p) const { std::free(p); }
};
template <typename T>
using Aligned = std::unique_ptr<T[], Freer>;
template <typename T>
Aligned<T> Allocate(size_t count) {
  const size_t bytes = (count * sizeof(T) + 4095) / 4096 * 4096;
  T* memory = static_cast<T*>(std::aligned_alloc(4096, bytes));
  std::memset(memory, 0, bytes);
  return Aligned<T>(memory);
}

// Threads that run the same body together, again and again, for the time of a benchmark.
class Team {
 public:
  Team(int num_threads, std::function<void(int)> body)
      : body_(std::move(body)), start_(num_threads), end_(num_threads) {
    for (int i = 1; i < num_threads; ++i) {
      threads_.emplace_back([this, i] {
        for (;;) {
          start_.arrive_and_wait();
          if (done_) return;
          body_(i);
          end_.arrive_and_wait();
        }
      });
    }
  }
  ~Team() {
    done_ = true;
    start_.arrive_and_wait();
    for (std::thread& thread : threads_) thread.join();
  }
  void Run() {
    start_.arrive_and_wait();
    body_(0);
    end_.arrive_and_wait();
  }

 private:
  std::function<void(int)> body_;
  std::barrier<> start_, end_;
  bool done_ = false;  // written before a barrier, read after it
  std::vector<std::thread> threads_;
};

// Rows of thread `index`, in whole blocks.
std::pair<int, int> Share(int rows, int index, int num_threads) {
  const int blocks = rows / kRowBlock;
  return {blocks * index / num_threads * kRowBlock, blocks * (index + 1) / num_threads * kRowBlock};
}

void SetRates(benchmark::State& state, double bytes, double operations) {
  using benchmark::Counter;
  if (bytes > 0) {
    state.counters["GB/s"] = Counter(bytes * 1e-9, Counter::kIsIterationInvariantRate);
  }
  if (operations > 0) {
    state.counters["GOPS"] = Counter(operations * 1e-9, Counter::kIsIterationInvariantRate);
  }
}

std::vector<float> RandomFloats(size_t n) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

struct Case {
  const KernelTable* table;
  int rows;
  int cols;
  int num_tokens;
  int num_threads;
};

// `copies` copies of one prepacked matrix, one after the other.
struct Weights {
  Aligned<uint8_t> data;
  size_t bytes_each;
  int copies;
};
Weights Repeat(size_t bytes, int num_tokens, const std::function<void(uint8_t*)>& prepack) {
  Weights w;
  w.bytes_each = (bytes + 63) / 64 * 64;
  w.copies = num_tokens == 1 ? static_cast<int>(kDramBytes / w.bytes_each) + 1 : 1;
  w.data = Allocate<uint8_t>(w.bytes_each * w.copies);
  prepack(w.data.get());
  for (int i = 1; i < w.copies; ++i) {
    std::memcpy(w.data.get() + i * w.bytes_each, w.data.get(), w.bytes_each);
  }
  return w;
}

void BenchPacked(benchmark::State& state, const Case& c, int bits, int group_size) {
  const int64_t num_groups = int64_t{c.rows} * (c.cols / group_size);
  std::mt19937 random(1);
  std::vector<uint32_t> codes(size_t(c.rows) * PackedWords(c.cols, bits));
  for (uint32_t& word : codes) word = random();
  std::vector<uint32_t> zero_points(PackedWords(num_groups, bits), 0x55555555u);
  const std::vector<uint16_t> scales(num_groups, 0x2000);
  const PackedMatrix w{.rows = c.rows,
                       .cols = c.cols,
                       .bits = bits,
                       .group_size = group_size,
                       .codes = codes.data(),
                       .scales = scales.data(),
                       .zero_points = zero_points.data()};
  const Weights weights = Repeat(c.table->prepacked_bytes(w), c.num_tokens,
                                 [&](uint8_t* out) { c.table->prepack(w, 0, c.rows, out); });
  const std::vector<float> x = RandomFloats(size_t(c.num_tokens) * c.cols);
  auto activations = Allocate<uint8_t>(c.table->activation_bytes(c.num_tokens, c.cols, group_size));
  c.table->quantize_activations(x.data(), c.cols, 0, c.num_tokens, c.num_tokens, c.cols, group_size,
                                activations.get());
  auto y = Allocate<float>(size_t(c.num_tokens) * c.rows);
  Team team(c.num_threads, [&](int thread) {
    const auto [begin, end] = Share(c.rows, thread, c.num_threads);
    for (int i = 0; i < weights.copies; ++i) {
      const PrepackedMatrix m{.rows = c.rows,
                              .cols = c.cols,
                              .bits = bits,
                              .group_size = group_size,
                              .data = weights.data.get() + i * weights.bytes_each};
      c.table->matmul(m, activations.get(), c.num_tokens, begin, end, false, y.get(), c.rows);
    }
  });
  for (auto _ : state) {
    team.Run();
    benchmark::DoNotOptimize(y[0]);
  }
  SetRates(state, c.num_tokens == 1 ? double(weights.bytes_each) * weights.copies : 0,
           2.0 * c.rows * c.cols * c.num_tokens * weights.copies);
}

void BenchDense(benchmark::State& state, const Case& c, DenseMatrix::Type type) {
  const std::vector<float> values = RandomFloats(size_t(c.rows) * c.cols);
  const std::vector<uint16_t> halves(values.size(), 0x3c00);
  const bool wide = type == DenseMatrix::Type::kF32;
  const DenseMatrix w{.type = type,
                      .rows = c.rows,
                      .cols = c.cols,
                      .data = wide ? static_cast<const void*>(values.data()) : halves.data()};
  const Weights weights = Repeat(c.table->prepacked_dense_bytes(w), c.num_tokens,
                                 [&](uint8_t* out) { c.table->prepack_dense(w, 0, c.rows, out); });
  const std::vector<float> x = RandomFloats(size_t(c.num_tokens) * c.cols);
  auto y = Allocate<float>(size_t(c.num_tokens) * c.rows);
  Team team(c.num_threads, [&](int thread) {
    const auto [begin, end] = Share(c.rows, thread, c.num_threads);
    for (int i = 0; i < weights.copies; ++i) {
      const PrepackedMatrix m{.rows = c.rows,
                              .cols = c.cols,
                              .dense_type = type,
                              .data = weights.data.get() + i * weights.bytes_each};
      c.table->matmul_dense(m, x.data(), c.cols, c.num_tokens, begin, end, false, y.get(), c.rows);
    }
  });
  for (auto _ : state) {
    team.Run();
    benchmark::DoNotOptimize(y[0]);
  }
  SetRates(state, c.num_tokens == 1 ? double(weights.bytes_each) * weights.copies : 0,
           2.0 * c.rows * c.cols * c.num_tokens * weights.copies);
}

// One query against `positions` positions of 9 heads on 3 key/value heads of 64 channels.
void BenchAttention(benchmark::State& state, const KernelTable* table, int positions) {
  const AttentionShape shape{.num_heads = 9, .num_kv_heads = 3, .head_dim = 64};
  const int64_t row = shape.num_kv_heads * shape.head_dim;
  auto keys = Allocate<uint16_t>(size_t(positions) * row);
  auto values = Allocate<uint16_t>(size_t(positions) * row);
  constexpr int kPageTokens = 16;
  std::vector<int32_t> pages;
  for (int p = 0; p < positions / kPageTokens; ++p) pages.push_back(p);
  const PagedKv kv{.keys = keys.get(),
                   .values = values.get(),
                   .page_table = pages.data(),
                   .page_stride = kPageTokens * row,
                   .page_tokens = kPageTokens};
  const std::vector<float> query = RandomFloats(9 * 64);
  for (int p = 0; p < positions; ++p) {
    table->store_kv(kv, shape, p, query.data() + p % 64, query.data() + p % 128);
  }
  std::vector<float> scratch(positions), out(9 * 64);
  for (auto _ : state) {
    table->attention(kv, shape, positions - 1, query.data(), 0, 9, scratch.data(), out.data());
    benchmark::DoNotOptimize(out[0]);
  }
  SetRates(state, 0, 4.0 * 9 * 64 * positions);
}

void BenchElementwise(benchmark::State& state, const std::function<void(float*)>& kernel, int n) {
  std::vector<float> out = RandomFloats(n);
  for (auto _ : state) {
    kernel(out.data());
    benchmark::DoNotOptimize(out[0]);
  }
  state.counters["Gfloats/s"] =
      benchmark::Counter(n * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

void BenchRead(benchmark::State& state, int num_threads) {
  const auto memory = Allocate<uint64_t>(kDramBytes / 8);
  Team team(num_threads, [&](int thread) {
    const size_t words = kDramBytes / 8 / num_threads;
    const uint64_t* p = memory.get() + words * thread;
    uint64_t sum[8] = {};
    for (size_t i = 0; i < words; i += 8) {
      __builtin_prefetch(p + i + 2048, 0, 2);
      __builtin_prefetch(p + i + 256, 0, 3);
      for (int j = 0; j < 8; ++j) sum[j] |= p[i + j];
    }
    benchmark::DoNotOptimize(sum);
  });
  for (auto _ : state) team.Run();
  SetRates(state, kDramBytes, 0);
}

void Register(const std::string& name, const std::function<void(benchmark::State&)>& body) {
  benchmark::RegisterBenchmark(name.c_str(), [body](benchmark::State& state) {
    body(state);
  })->UseRealTime();
}

void RegisterMatrices(const KernelTable* table, int num_threads) {
  const std::string prefix = table->name;
  const std::string threads = "/threads:" + std::to_string(num_threads);
  for (const int num_tokens : {1, 2, 4, 8, 32, 512}) {
    const std::string suffix = "/tokens:" + std::to_string(num_tokens) + threads;
#define QUERN_REGISTER(bits)                                                                       \
  for (const int group_size : {64, 128}) {                                                         \
    Register(prefix + "/w" #bits "g" + std::to_string(group_size) + "/2048x2048" + suffix,         \
             [=](benchmark::State& state) {                                                        \
               BenchPacked(state, {table, 2048, 2048, num_tokens, num_threads}, bits, group_size); \
             });                                                                                   \
  }
    QUERN_FOR_EACH_WIDTH(QUERN_REGISTER)
#undef QUERN_REGISTER
    using Type = DenseMatrix::Type;
    for (const auto& [type_name, type] :
         {std::pair{"f32", Type::kF32}, {"f16", Type::kF16}, {"bf16", Type::kBF16}}) {
      Register(prefix + "/" + type_name + "/1536x576" + suffix,
               [=, type = type](benchmark::State& state) {
                 BenchDense(state, {table, 1536, 576, num_tokens, num_threads}, type);
               });
    }
  }
}

void RegisterRest(const KernelTable* table) {
  const std::string prefix = table->name;
  for (const int positions : {64, 512, 2048}) {
    Register(prefix + "/attention/positions:" + std::to_string(positions),
             [=](benchmark::State& state) { BenchAttention(state, table, positions); });
  }
  const auto elementwise = [&](const char* name, const std::function<void(float*)>& kernel) {
    Register(prefix + "/" + name,
             [=](benchmark::State& state) { BenchElementwise(state, kernel, 2048); });
  };
  const auto x = std::make_shared<std::vector<float>>(RandomFloats(2048));
  elementwise("rms_norm",
              [=](float* out) { table->rms_norm(x->data(), x->data(), 2048, 1e-5f, out); });
  elementwise("silu_mul", [=](float* out) { table->silu_mul(x->data(), x->data(), 2048, out); });
  const auto record = std::make_shared<std::vector<uint64_t>>(1024);
  elementwise("quantize_activations", [=](float*) {
    table->quantize_activations(x->data(), 2048, 0, 1, 1, 2048, 64,
                                reinterpret_cast<uint8_t*>(record->data()));
    benchmark::DoNotOptimize(record->data()[0]);
  });
}

}  // namespace
}  // namespace quern::kernels

int main(int argc, char** argv) {
  using namespace quern::kernels;
  for (const int num_threads : {1, 2}) {
    Register("read/threads:" + std::to_string(num_threads),
             [=](benchmark::State& state) { BenchRead(state, num_threads); });
  }
  for (const char* name : {"avx2", "scalar"}) {
    const KernelTable* table = FindKernels(name);
    if (table == nullptr) continue;
    for (const int num_threads : {1, 2}) RegisterMatrices(table, num_threads);
    RegisterRest(table);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
