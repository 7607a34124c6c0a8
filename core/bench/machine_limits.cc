#include "core/bench/machine_limits.h"

#include <absl/time/clock.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "core/base/machine.h"
#include "core/base/status_macros.h"
#include "core/engine/aligned_buffer.h"

namespace quern {
namespace {

constexpr int64_t kReadUnit = 256;  // KernelTable::read
// What a benchmark computes goes here, or the compiler could leave it out.
std::atomic<uint64_t> sink{0};

double Seconds(const std::function<void()>& body, int64_t calls) {
  const absl::Time start = absl::Now();
  for (int64_t i = 0; i < calls; ++i) body();
  return absl::ToDoubleSeconds(absl::Now() - start) / static_cast<double>(calls);
}

}  // namespace

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

double MedianSeconds(int repetitions, const std::function<void()>& body) {
  constexpr double kRun = 0.02;
  const auto calls = std::max<int64_t>(1, static_cast<int64_t>(kRun / (Seconds(body, 1) + 1e-9)));
  std::vector<double> seconds(repetitions);
  for (double& s : seconds) s = Seconds(body, calls);
  return Median(std::move(seconds));
}

int64_t UncachedBytes() {
  const int64_t cache = std::max<int64_t>(0, sysconf(_SC_LEVEL3_CACHE_SIZE));
  const int64_t wanted = std::max<int64_t>(4 * cache, int64_t{512} << 20);
  return std::min(wanted, AvailableMemoryBytes() / 8) / kReadUnit * kReadUnit;
}

void ReadOnAll(const kernels::KernelTable& table, ThreadPool& pool, const uint8_t* data,
               int64_t bytes) {
  pool.ParallelFor(bytes, kReadUnit, [&](int64_t begin, int64_t end) {
    sink.fetch_add(table.read(data + begin, static_cast<size_t>(end - begin)),
                   std::memory_order_relaxed);
  });
}

int64_t MultiplyBytesOnAll(const kernels::KernelTable& table, ThreadPool& pool, int64_t rounds) {
  alignas(64) static constexpr uint8_t kOperands[kernels::kPeakOperandBytes] = {};
  std::atomic<int64_t> operations{0};
  pool.ParallelFor(pool.num_threads(), 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) operations += table.multiply_bytes(kOperands, rounds);
  });
  return operations;
}

int64_t MultiplyFloatsOnAll(const kernels::KernelTable& table, ThreadPool& pool, int64_t rounds) {
  std::atomic<int64_t> operations{0};
  pool.ParallelFor(pool.num_threads(), 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) operations += table.multiply_floats(rounds);
  });
  return operations;
}

absl::StatusOr<MachineLimits> MeasureMachine(const kernels::KernelTable& table, ThreadPool& pool,
                                             int64_t memory_bytes, int repetitions) {
  MachineLimits limits{.kernels = table.name, .num_threads = pool.num_threads()};
  const int64_t largest = memory_bytes / kReadUnit * kReadUnit;
  ASSIGN_OR_RETURN(const AlignedBuffer memory,
                   AlignedBuffer::Allocate(largest, "the memory to read"));
  // Memory that was never written is one page of zeros, read from the cache.
  std::memset(memory.data(), 1, largest);
  for (int64_t bytes = int64_t{32 << 10} * pool.num_threads();; bytes *= 4) {
    bytes = std::min(bytes, largest) / kReadUnit * kReadUnit;
    const double seconds =
        MedianSeconds(repetitions, [&] { ReadOnAll(table, pool, memory.data(), bytes); });
    limits.reads.push_back({bytes, static_cast<double>(bytes) / seconds * 1e-9});
    if (bytes == largest) break;
  }
  const auto rate = [&](auto multiply) {
    int64_t operations = 0;
    const double seconds =
        MedianSeconds(repetitions, [&] { operations = multiply(table, pool, 1000); });
    return static_cast<double>(operations) / seconds * 1e-9;
  };
  limits.byte_gops = rate(MultiplyBytesOnAll);
  limits.float_gflops = rate(MultiplyFloatsOnAll);
  return limits;
}

}  // namespace quern
