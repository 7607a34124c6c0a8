#ifndef QUERN_CORE_BENCH_MACHINE_LIMITS_H_
#define QUERN_CORE_BENCH_MACHINE_LIMITS_H_

// What this machine can do at most: the limits that everything else is measured against.

#include <absl/status/statusor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/base/thread_pool.h"
#include "kernels/kernels.h"

namespace quern {

struct ReadRate {
  int64_t bytes = 0;  // working set of all threads together
  double gb_per_second = 0;
};

struct MachineLimits {
  std::string kernels;  // name of the table
  int num_threads = 0;
  std::vector<ReadRate> reads;  // ascending; the last is far larger than the caches
  // Operations per second of all threads, 2 a multiply-add.
  double byte_gops = 0;     // int8, as the low-bit products do them
  double float_gflops = 0;  // fp32
  double memory_gb_per_second() const { return reads.back().gb_per_second; }
};

// The upper one of an even number; at least one value.
double Median(std::vector<double> values);

// The median of `repetitions` (>= 1) runs of `body`, in seconds, after one that does not count. A
// run is as many calls as take about 20 ms.
double MedianSeconds(int repetitions, const std::function<void()>& body);

// Bytes that do not fit the last-level cache by far: four times its size, at least 512 MiB, at most
// an eighth of the memory.
int64_t UncachedBytes();

// Reads up to `memory_bytes` (at least 1 MiB). Takes seconds; every figure is a median of
// `repetitions`. RESOURCE_EXHAUSTED when there is no
// memory.
absl::StatusOr<MachineLimits> MeasureMachine(const kernels::KernelTable& table, ThreadPool& pool,
                                             int64_t memory_bytes, int repetitions);

// One run of KernelTable's loop of the name on all threads; returns operations.
int64_t MultiplyBytesOnAll(const kernels::KernelTable& table, ThreadPool& pool, int64_t rounds);
int64_t MultiplyFloatsOnAll(const kernels::KernelTable& table, ThreadPool& pool, int64_t rounds);

// Reads [data, data + bytes) once, each thread its share.
void ReadOnAll(const kernels::KernelTable& table, ThreadPool& pool, const uint8_t* data,
               int64_t bytes);

}  // namespace quern

#endif  // QUERN_CORE_BENCH_MACHINE_LIMITS_H_
