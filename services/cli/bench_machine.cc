// `quern bench machine` and `quern bench kernels`: what this machine can do at most, and what the
// kernels make of it.

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>

#include <iostream>
#include <memory>
#include <string>
#include <utility>

#include "core/base/machine.h"
#include "core/base/status_macros.h"
#include "core/bench/kernel_rates.h"
#include "core/bench/machine_limits.h"
#include "services/cli/bench_commands.h"
#include "services/cli/bench_table.h"
#include "services/cli/format.h"

namespace quern::cli {
namespace {

struct MachineOptions {
  std::string kernels;
  int threads = 0;
  int memory_mib = 0;
  int repeat = 5;

  int64_t memory_bytes() const {
    return memory_mib > 0 ? int64_t{memory_mib} << 20 : UncachedBytes();
  }
};

struct KernelsOptions {
  MachineOptions machine;
  KernelRateOptions rates;
  std::string compare;
};

absl::StatusOr<const kernels::KernelTable*> FindTable(const std::string& name) {
  if (name.empty()) return &kernels::BestKernels();
  if (const kernels::KernelTable* table = kernels::FindKernels(name)) return table;
  return absl::InvalidArgumentError(absl::StrCat(
      "--kernels ", name, ": this processor runs ",
      absl::StrJoin(
          kernels::AvailableKernels(), ", ",
          [](std::string* out, const kernels::KernelTable* table) { out->append(table->name); })));
}

ThreadPool MakePool(int threads) { return ThreadPool(threads > 0 ? threads : AvailableCpus()); }

std::string Threads(int threads) {
  return absl::StrCat(threads, threads == 1 ? " thread" : " threads");
}

absl::Status RunMachine(const MachineOptions& options, const Context& context) {
  ASSIGN_OR_RETURN(const kernels::KernelTable* table, FindTable(options.kernels));
  ThreadPool pool = MakePool(options.threads);
  ASSIGN_OR_RETURN(const MachineLimits limits,
                   MeasureMachine(*table, pool, options.memory_bytes(), options.repeat));
  ASSIGN_OR_RETURN(BenchTable out, BenchTable::Create(context, {"working set", "read"},
                                                      {true, true}, {"bytes"}, "gbPerSecond", ""));
  for (const ReadRate& read : limits.reads) {
    out.Add({FormatBytes(read.bytes), absl::StrFormat("%.1f GB/s", read.gb_per_second)},
            {{"bytes", read.bytes}, {"gbPerSecond", read.gb_per_second}});
  }
  out.Finish({{"kernels", limits.kernels},
              {"threads", limits.num_threads},
              {"memoryGbPerSecond", limits.memory_gb_per_second()},
              {"int8Gops", limits.byte_gops},
              {"floatGflops", limits.float_gflops}},
             absl::StrFormat("int8 products %.0f GOPS, fp32 products %.0f GFLOPS\n"
                             "%s, the %s kernels, median of %d\n",
                             limits.byte_gops, limits.float_gflops, Threads(limits.num_threads),
                             limits.kernels, options.repeat));
  return absl::OkStatus();
}

absl::Status RunKernels(const KernelsOptions& options, const Context& context) {
  ASSIGN_OR_RETURN(const kernels::KernelTable* table, FindTable(options.machine.kernels));
  ThreadPool pool = MakePool(options.machine.threads);
  ASSIGN_OR_RETURN(
      BenchTable out,
      BenchTable::Create(context,
                         {"kernel", "shape", "tokens", "time", "read", "rate", "of its limit"},
                         {false, false, true, true, true, true, true},
                         {"kernel", "shape", "tokens"}, "operationsPerSecond", options.compare));
  KernelRateOptions rates = options.rates;
  rates.memory_bytes = options.machine.memory_bytes();
  rates.repetitions = options.machine.repeat;
  RETURN_IF_ERROR(MeasureKernels(*table, pool, rates, [&](const KernelRate& rate) {
    out.Add(
        {rate.name, rate.shape, absl::StrCat(rate.num_tokens),
         absl::StrFormat("%.1f us", rate.seconds * 1e6),
         absl::StrFormat("%.1f GB/s", rate.gb_per_second), absl::StrFormat("%.0f GOPS", rate.gops),
         absl::StrFormat("%.0f %% of the %s", rate.share_of_limit * 100,
                         rate.bound_by_memory ? "read" : "peak")},
        {{"kernel", rate.name},
         {"shape", rate.shape},
         {"tokens", rate.num_tokens},
         {"seconds", rate.seconds},
         {"gbPerSecond", rate.gb_per_second},
         {"operationsPerSecond", rate.gops * 1e9},
         {"shareOfLimit", rate.share_of_limit},
         {"limit", rate.bound_by_memory ? "memory" : "products"}});
  }));
  out.Finish({{"kernels", table->name}, {"threads", pool.num_threads()}},
             absl::StrFormat("%s, the %s kernels, median of %d\n", Threads(pool.num_threads()),
                             table->name, rates.repetitions));
  return absl::OkStatus();
}

void AddMachineOptions(CLI::App& sub, MachineOptions& options) {
  sub.add_option("--kernels", options.kernels,
                 "table of an instruction set, such as avx2 or scalar (the best there is)");
  sub.add_option("--threads", options.threads, "0: one for each CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  sub.add_option("--memory-mib", options.memory_mib, "to read; 0: so much that no cache holds it")
      ->check(CLI::Range(0, 1048576))
      ->capture_default_str();
  sub.add_option("--repeat", options.repeat, "runs; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
}

}  // namespace

void AddBenchMachine(CLI::App& bench, Command& command) {
  auto options = std::make_shared<MachineOptions>();
  CLI::App* sub = bench.add_subcommand(
      "machine", "Read bandwidth and peak rates: the limits of everything else");
  AddMachineOptions(*sub, *options);
  sub->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return RunMachine(*options, context); };
  });
}

void AddBenchKernels(CLI::App& bench, Command& command) {
  auto options = std::make_shared<KernelsOptions>();
  CLI::App* sub =
      bench.add_subcommand("kernels", "Rates of the kernels and their share of the limit");
  AddMachineOptions(*sub, options->machine);
  sub->add_option("--filter", options->rates.filter, "only kernels whose name contains it");
  sub->add_option("--tokens", options->rates.tokens, "that share a call of products")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  sub->add_option("--rows", options->rates.rows, "outputs of the matrices, in multiples of 32")
      ->check(CLI::Range(32, 1048576))
      ->capture_default_str();
  sub->add_option("--cols", options->rates.cols, "inputs of the matrices")
      ->check(CLI::Range(128, 1048576))
      ->capture_default_str();
  sub->add_option("--compare", options->compare, "output of an earlier run with --json");
  sub->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return RunKernels(*options, context); };
  });
}

}  // namespace quern::cli
