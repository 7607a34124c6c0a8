#include "services/common/process_metrics.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>
#include <absl/strings/string_view.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "core/base/file.h"
#include "core/base/machine.h"

namespace quern {
namespace {

// Fields of /proc/self/stat after the program's name, which may hold spaces: proc(5) counts from 1,
// and the first here is its third.
enum StatField {
  kUserTicks = 11,
  kSystemTicks = 12,
  kThreads = 17,
  kStartTicks = 19,
  kVirtualBytes = 20,
  kResidentPages = 21,
  kNumFields = 22
};

// Unix time at which the machine started, in seconds; 0 when the kernel does not say.
double BootTimeSeconds() {
  const std::string stat = ReadKernelFile("/proc/stat");
  for (const absl::string_view line : absl::StrSplit(stat, '\n')) {
    double seconds = 0;
    if (line.substr(0, 6) == "btime " && absl::SimpleAtod(line.substr(6), &seconds)) return seconds;
  }
  return 0;
}

prometheus::Gauge& MakeGauge(prometheus::Registry& registry, const char* name, const char* help,
                             const prometheus::Labels& labels = {}) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
}

}  // namespace

ProcessMetrics::ProcessMetrics(prometheus::Registry& registry, const std::string& label,
                               std::string directory)
    : directory_(std::move(directory)),
      cpu_seconds_total_(prometheus::BuildCounter()
                             .Name("process_cpu_seconds_total")
                             .Help("User and system CPU time of this process.")
                             .Register(registry)
                             .Add({})),
      resident_bytes_(
          MakeGauge(registry, "process_resident_memory_bytes", "Memory of this process in RAM.")),
      virtual_bytes_(
          MakeGauge(registry, "process_virtual_memory_bytes", "Address space of this process.")),
      start_time_(MakeGauge(registry, "process_start_time_seconds",
                            "When this process started, Unix time.")),
      open_fds_(MakeGauge(registry, "process_open_fds", "File descriptors in use.")),
      max_fds_(MakeGauge(registry, "process_max_fds", "File descriptors that may be in use.")),
      threads_(MakeGauge(registry, "process_threads", "Threads of this process.")),
      disk_free_(MakeGauge(registry, "quern_disk_free_bytes",
                           "Bytes that this service may still write where its directory lies; 0 "
                           "when the directory cannot be reached.",
                           {{"directory", label}})),
      disk_size_(MakeGauge(registry, "quern_disk_size_bytes",
                           "Size of the file system that the service's directory lies on.",
                           {{"directory", label}})) {}

void ProcessMetrics::Update() {
  const std::string stat = ReadKernelFile("/proc/self/stat");
  const size_t name_end = stat.rfind(')');
  std::vector<double> fields;
  if (name_end != std::string::npos) {
    for (const absl::string_view text :
         absl::StrSplit(absl::string_view(stat).substr(name_end + 1), ' ', absl::SkipEmpty())) {
      // The first is a letter.
      double value = 0;
      if (!absl::SimpleAtod(text, &value)) value = 0;
      fields.push_back(value);
    }
  }
  if (fields.size() >= kNumFields) {
    const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
    const double cpu = (fields[kUserTicks] + fields[kSystemTicks]) / ticks;
    cpu_seconds_total_.Increment(std::max(0.0, cpu - cpu_seconds_total_.Value()));
    resident_bytes_.Set(fields[kResidentPages] * static_cast<double>(sysconf(_SC_PAGESIZE)));
    virtual_bytes_.Set(fields[kVirtualBytes]);
    threads_.Set(fields[kThreads]);
    if (start_time_.Value() == 0) start_time_.Set(BootTimeSeconds() + fields[kStartTicks] / ticks);
  }
  // The descriptor that lists them is not counted.
  const auto open = ListDirectory("/proc/self/fd");
  if (open.ok()) open_fds_.Set(static_cast<double>(open->size()) - 1);
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) max_fds_.Set(static_cast<double>(limit.rlim_cur));

  struct statvfs disk = {};
  const bool reached = statvfs(directory_.c_str(), &disk) == 0;
  const auto block_bytes = static_cast<double>(disk.f_frsize);
  disk_free_.Set(reached ? static_cast<double>(disk.f_bavail) * block_bytes : 0);
  disk_size_.Set(reached ? static_cast<double>(disk.f_blocks) * block_bytes : 0);
}

}  // namespace quern
