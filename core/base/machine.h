#ifndef QUERN_CORE_BASE_MACHINE_H_
#define QUERN_CORE_BASE_MACHINE_H_

// What this process may use of the machine. Containers with limits still see every CPU and all
// memory of their host, and are throttled or killed when they believe it.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <optional>
#include <string>

namespace quern {

// How many threads can run at once: the CPUs that the process may be scheduled on, and no more than
// the CPU time that its control groups grant. At least 1.
int AvailableCpus();

// Memory of the machine, or less when a control group grants less.
int64_t AvailableMemoryBytes();

// Limits of a process's control group and all groups above it, whichever is least; nothing where
// there is none or it cannot be read. See cgroups(7) and Linux's cgroup-v1 and -v2 documents.
struct CgroupLimits {
  std::optional<int> cpus;  // cpu.max, or cpu.cfs_quota_us / cpu.cfs_period_us; rounded up
  std::optional<int64_t> memory_bytes;  // memory.max, or memory.limit_in_bytes
};

// `proc_cgroup` is the text of /proc/self/cgroup; `root` is where control groups are mounted.
CgroupLimits ReadCgroupLimits(absl::string_view proc_cgroup, absl::string_view root);

// Bytes that this user may still write on the file system of `path`, which must be there.
absl::StatusOr<int64_t> FreeDiskBytes(const std::string& path);

// The text of a small file below /proc or /sys, whose size ReadFile cannot know. Empty when it
// cannot be read.
std::string ReadKernelFile(const std::string& path);

// The value of the first line "key<blanks>:<blanks>value" of `text`; empty when there is none.
std::string FindKernelValue(absl::string_view text, absl::string_view key);

// The value of a line "key: N kB" in bytes; 0 when there is none that makes sense.
int64_t FindKernelBytes(absl::string_view text, absl::string_view key);

}  // namespace quern

#endif  // QUERN_CORE_BASE_MACHINE_H_
