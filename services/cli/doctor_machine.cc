#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/time/clock.h>
#include <sys/resource.h>
#include <sys/timex.h>
#include <time.h>

#include <algorithm>
#include <filesystem>

#include "core/base/machine.h"
#include "kernels/kernels.h"
#include "services/cli/doctor.h"
#include "services/cli/format.h"

namespace quern::cli {
namespace {

// The quantizer with LibTorch alone, or quern-inference with a small model.
constexpr int64_t kMinMemoryBytes = int64_t{1} << 30;
// quern-jobs refuses artifacts that would leave less.
constexpr int64_t kDiskReserveBytes = int64_t{1} << 30;
// Two for each client and room for files: what Debian gives by default.
constexpr rlim_t kMinOpenFiles = 1024;
// A clock before it has never been set: this program is younger.
constexpr absl::CivilDay kEarliest(2026, 1, 1);

void CheckKernels(Findings& findings) {
  const std::string name = kernels::BestKernels().name;
  if (name != "scalar") return findings.Ok("kernels", absl::StrCat("the ", name, " table"));
  findings.Warn("kernels", "the scalar table: this processor has no AVX2 with FMA and F16C",
                "AVX2, FMA and F16C",
                "use a newer processor, or let the virtual machine pass the host's on; everything "
                "works, many times slower");
}

void CheckCores(Findings& findings) {
  const int cpus = AvailableCpus();
  findings.Ok("cores", absl::StrCat(cpus, cpus == 1 ? " CPU" : " CPUs", " for this process"));
}

void CheckMemory(const Needs& needs, Findings& findings) {
  const std::string meminfo = ReadKernelFile("/proc/meminfo");
  const int64_t total = FindKernelBytes(meminfo, "MemTotal");
  if (total == 0) return findings.Skip("memory", "/proc/meminfo says nothing about it");
  const int64_t usable = AvailableMemoryBytes();
  const bool limited = usable < total;
  const int64_t available = std::min(usable, FindKernelBytes(meminfo, "MemAvailable"));
  const std::string found =
      absl::StrCat(FormatBytes(usable), limited ? " by the control group's limit" : "", ", ",
                   FormatBytes(available), " available");
  const bool known = needs.memory_bytes > kMinMemoryBytes;
  const int64_t wanted = known ? needs.memory_bytes : kMinMemoryBytes;
  const std::string reason =
      absl::StrCat(FormatBytes(wanted),
                   known ? absl::StrCat(" to quantize ", needs.checkpoint) : " for the services");
  if (usable < wanted) {
    return findings.Warn("memory", found, reason,
                         limited ? "raise the limit of the container or unit"
                                 : "use a machine with more memory, or a smaller checkpoint");
  }
  if (available < wanted) {
    return findings.Warn("memory", found, reason, "stop other programs before such a job");
  }
  findings.Ok("memory", found);
}

void CheckDisk(const Needs& needs, const std::string& data_directory, Findings& findings) {
  // What is there of its path: the directory itself may be made later.
  std::error_code error;
  std::filesystem::path path = std::filesystem::absolute(data_directory, error);
  while (!error && path.has_relative_path() && !std::filesystem::exists(path, error)) {
    path = path.parent_path();
  }
  const absl::StatusOr<int64_t> free_bytes = FreeDiskBytes(path);
  if (!free_bytes.ok()) {
    return findings.Problem("disk", std::string(free_bytes.status().message()),
                            "a file system that can be asked", "check the path and its mount");
  }
  const std::string found = absl::StrCat(FormatBytes(*free_bytes), " free for ", data_directory);
  const std::string advice = "free some, or put the data directory on a larger disk";
  if (*free_bytes < kDiskReserveBytes) {
    return findings.Problem(
        "disk", found,
        absl::StrCat(FormatBytes(kDiskReserveBytes), ": below it quern-jobs takes no artifact"),
        advice);
  }
  if (*free_bytes < kDiskReserveBytes + needs.disk_bytes) {
    return findings.Warn("disk", found,
                         absl::StrCat(FormatBytes(kDiskReserveBytes + needs.disk_bytes),
                                      " to quantize ", needs.checkpoint, " and keep the reserve"),
                         advice);
  }
  findings.Ok("disk", found);
}

void CheckOpenFiles(Findings& findings) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const std::string found = limit.rlim_cur == RLIM_INFINITY
                                ? "no limit"
                                : absl::StrCat(limit.rlim_cur, " may be open at once");
  if (limit.rlim_cur >= kMinOpenFiles) return findings.Ok("open files", found);
  findings.Warn("open files", found, absl::StrCat("at least ", kMinOpenFiles),
                "raise it: `ulimit -n 65536` in a shell, LimitNOFILE=65536 in a unit, `--ulimit "
                "nofile=65536` for a container");
}

void CheckClock(Findings& findings) {
  const std::string now =
      absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::Now(), absl::UTCTimeZone());
  if (absl::ToCivilDay(absl::Now(), absl::UTCTimeZone()) < kEarliest) {
    return findings.Problem("clock", now, "a time after this version was made",
                            "set the clock: deadlines and timestamps of jobs depend on it");
  }
  timex state{};
  const int answer = adjtimex(&state);
  if (answer < 0) return findings.Ok("clock", absl::StrCat(now, "; synchronisation unknown"));
  if (answer == TIME_ERROR || (state.status & STA_UNSYNC) != 0) {
    return findings.Warn("clock", absl::StrCat(now, ", not synchronised"),
                         "a clock that NTP keeps right",
                         "run chrony or systemd-timesyncd on the host; needed once services are on "
                         "several machines");
  }
  findings.Ok("clock", absl::StrFormat("%s, synchronised to %.0f ms", now,
                                       static_cast<double>(state.maxerror) / 1000));
}

absl::Duration OffsetToBootClock() {
  timespec boot{};
  clock_gettime(CLOCK_BOOTTIME, &boot);
  return absl::Now() - absl::UnixEpoch() - absl::DurationFromTimespec(boot);
}

}  // namespace

void CheckMachine(const Needs& needs, const std::string& data_directory, Findings& findings) {
  CheckKernels(findings);
  CheckCores(findings);
  CheckMemory(needs, findings);
  CheckDisk(needs, data_directory, findings);
  CheckOpenFiles(findings);
  CheckClock(findings);
}

ClockWatch::ClockWatch() : offset_(OffsetToBootClock()) {}

void ClockWatch::Check(Findings& findings) const {
  const absl::Duration jump = OffsetToBootClock() - offset_;
  if (absl::AbsDuration(jump) < absl::Milliseconds(100)) return;
  findings.Warn("clock jump",
                absl::StrCat("the clock jumped by ",
                             absl::FormatDuration(absl::Trunc(jump, absl::Milliseconds(1))),
                             " while the doctor looked"),
                "a clock that only drifts",
                "let one NTP client slew the clock; look for a second one, or for a host that sets "
                "its guests' time");
}

}  // namespace quern::cli
