#ifndef QUERN_CORE_BENCH_KERNEL_RATES_H_
#define QUERN_CORE_BENCH_KERNEL_RATES_H_

// How fast each kernel runs, beside the limit that holds for it, measured in turns.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/base/thread_pool.h"
#include "kernels/kernels.h"

namespace quern {

struct KernelRate {
  std::string name;  // "w4g64", "f16", "attention"
  // "2048x2048"; of attention "32/8x64 at 512": heads / key-value heads x channels at positions.
  std::string shape;
  int num_tokens = 0;  // that share one call
  double seconds = 0;  // of a call, on all threads
  // Bytes of weights (keys and values) read. One token reads copies that no cache holds, more read
  // one matrix again and again.
  double gb_per_second = 0;
  double gops = 0;  // 2 a multiply-add
  // Of what bounds it: the pure read of the same bytes for one token, else the int8 or fp32 peak.
  double share_of_limit = 0;
  bool bound_by_memory = false;
};

struct KernelRateOptions {
  int rows = 2048;
  int cols = 2048;
  int64_t memory_bytes = 0;  // of copies that one token reads; 0: UncachedBytes()
  int repetitions = 5;
  std::string filter;                     // kernels whose name contains it
  std::vector<int> tokens = {1, 8, 512};  // that share a call of products; each at least 1
};

// Calls `on_rate` after each. INVALID_ARGUMENT when the filter names no kernel; RESOURCE_EXHAUSTED
// when there is no memory.
absl::Status MeasureKernels(const kernels::KernelTable& table, ThreadPool& pool,
                            const KernelRateOptions& options,
                            const std::function<void(const KernelRate&)>& on_rate);

}  // namespace quern

#endif  // QUERN_CORE_BENCH_KERNEL_RATES_H_
