#include "core/base/machine.h"

#include <absl/algorithm/container.h>
#include <absl/status/status.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>
#include <sched.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace quern {
namespace {

// These files have one line; nothing when it cannot be read.
std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::optional<int> CpusOf(absl::string_view quota, absl::string_view period) {
  int64_t quota_us = 0;
  int64_t period_us = 0;
  if (!absl::SimpleAtoi(quota, &quota_us) || !absl::SimpleAtoi(period, &period_us)) return {};
  if (quota_us <= 0 || period_us <= 0) return {};  // "max" and -1: no limit
  return static_cast<int>(std::min<int64_t>((quota_us - 1) / period_us + 1, 1 << 20));
}

std::optional<int> CpusOfGroup(const std::string& directory, bool version_2) {
  if (!version_2) {
    return CpusOf(FirstLine(directory + "/cpu.cfs_quota_us"),
                  FirstLine(directory + "/cpu.cfs_period_us"));
  }
  const std::string line = FirstLine(directory + "/cpu.max");
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(line, ' ');
  return CpusOf(parts.first, parts.second);
}

std::optional<int64_t> MemoryOfGroup(const std::string& directory, bool version_2) {
  int64_t bytes = 0;
  const std::string line =
      FirstLine(directory + (version_2 ? "/memory.max" : "/memory.limit_in_bytes"));
  if (!absl::SimpleAtoi(line, &bytes) || bytes <= 0) return {};
  return bytes;
}

template <typename T>
void TakeLess(const std::optional<T>& value, std::optional<T>& least) {
  if (value.has_value()) least = std::min(least.value_or(*value), *value);
}

// `group` and all above it, down to the mount itself. A container that has no namespace for control
// groups names a path that it cannot see; the mount's root is then its own group.
template <typename Visit>
void ForEachGroup(const std::string& mount, absl::string_view path, const Visit& visit) {
  std::string group(absl::StripSuffix(path, "/"));
  while (!group.empty()) {
    visit(mount + group);
    const size_t slash = group.rfind('/');
    group.resize(slash == std::string::npos ? 0 : slash);
  }
  visit(mount);
}

CgroupLimits LimitsOfThisProcess() {
  return ReadCgroupLimits(ReadKernelFile("/proc/self/cgroup"), "/sys/fs/cgroup");
}

}  // namespace

CgroupLimits ReadCgroupLimits(absl::string_view proc_cgroup, absl::string_view root) {
  CgroupLimits limits;
  for (const absl::string_view line : absl::StrSplit(proc_cgroup, '\n')) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const bool version_2 = fields[1].empty();
    const std::vector<absl::string_view> controllers = absl::StrSplit(fields[1], ',');
    if (version_2 || absl::c_linear_search(controllers, "cpu")) {
      ForEachGroup(absl::StrCat(root, version_2 ? "" : "/cpu"), fields[2],
                   [&](const std::string& directory) {
                     TakeLess(CpusOfGroup(directory, version_2), limits.cpus);
                   });
    }
    if (version_2 || absl::c_linear_search(controllers, "memory")) {
      ForEachGroup(absl::StrCat(root, version_2 ? "" : "/memory"), fields[2],
                   [&](const std::string& directory) {
                     TakeLess(MemoryOfGroup(directory, version_2), limits.memory_bytes);
                   });
    }
  }
  return limits;
}

int AvailableCpus() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  // Fails on machines with more than 1,024 CPUs.
  const int scheduled = sched_getaffinity(0, sizeof(cpus), &cpus) == 0
                            ? CPU_COUNT(&cpus)
                            : static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, std::min(scheduled, LimitsOfThisProcess().cpus.value_or(scheduled)));
}

int64_t AvailableMemoryBytes() {
  const int64_t machine = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  return std::min(machine, LimitsOfThisProcess().memory_bytes.value_or(machine));
}

absl::StatusOr<int64_t> FreeDiskBytes(const std::string& path) {
  struct statvfs disk;
  if (statvfs(path.c_str(), &disk) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("asking for free space of ", path));
  }
  return static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
}

std::string ReadKernelFile(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string FindKernelValue(absl::string_view text, absl::string_view key) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 1));
    if (absl::StripAsciiWhitespace(parts.first) == key) {
      return std::string(absl::StripAsciiWhitespace(parts.second));
    }
  }
  return "";
}

int64_t FindKernelBytes(absl::string_view text, absl::string_view key) {
  const std::string value = FindKernelValue(text, key);
  absl::string_view kibibytes = value;
  int64_t count = 0;
  if (!absl::ConsumeSuffix(&kibibytes, " kB") || !absl::SimpleAtoi(kibibytes, &count)) return 0;
  return count > 0 && count < (int64_t{1} << 50) ? count * 1024 : 0;
}

}  // namespace quern
