#include "core/base/machine.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/support/scratch_directory.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"

namespace quern {
namespace {

class MachineTest : public testing::Test {
 protected:
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = scratch_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  CgroupLimits Limits(absl::string_view proc_cgroup) {
    return ReadCgroupLimits(proc_cgroup, scratch_.path());
  }

  ScratchDirectory scratch_;
};

TEST_F(MachineTest, TheLeastOfAGroupAndThoseAboveItCounts) {
  Write("cpu.max", "max 100000\n");
  Write("a/cpu.max", "250000 100000\n");
  Write("a/b/cpu.max", "400000 100000\n");
  Write("a/memory.max", "max\n");
  Write("a/b/memory.max", "1073741824\n");
  const CgroupLimits limits = Limits("0::/a/b\n");
  EXPECT_EQ(limits.cpus, 3);  // 2.5 CPUs keep three threads busy in part
  EXPECT_EQ(limits.memory_bytes, 1 << 30);
}

TEST_F(MachineTest, AContainersOwnGroupIsTheMountsRoot) {
  Write("cpu.max", "50000 100000\n");
  Write("memory.max", "1000000\n");
  EXPECT_EQ(Limits("0::/docker/0123/not/visible\n").cpus, 1);
  EXPECT_EQ(Limits("0::/\n").memory_bytes, 1000000);
}

TEST_F(MachineTest, VersionOneHasAMountForEachController) {
  Write("cpu/x/cpu.cfs_quota_us", "200000\n");
  Write("cpu/x/cpu.cfs_period_us", "100000\n");
  Write("cpu/cpu.cfs_quota_us", "-1\n");
  Write("cpu/cpu.cfs_period_us", "100000\n");
  Write("memory/y/memory.limit_in_bytes", "4096\n");
  const CgroupLimits limits = Limits("4:memory:/y\n3:cpu,cpuacct:/x\n0::/elsewhere\n");
  EXPECT_EQ(limits.cpus, 2);
  EXPECT_EQ(limits.memory_bytes, 4096);
}

TEST_F(MachineTest, WhatCannotBeReadIsNoLimit) {
  Write("cpu.max", "nonsense\n");
  for (const char* text : {"", "\n\n", "0::/", "::::", "0:cpu", "0::"}) {
    EXPECT_FALSE(Limits(text).cpus.has_value()) << text;
    EXPECT_FALSE(Limits(text).memory_bytes.has_value()) << text;
  }
}

constexpr char kMeminfo[] =
    "MemTotal:       24684332 kB\nMemAvailable:   22643000 kB\nHugePages_Total:       7\n";

TEST(KernelFileTest, ValuesOfKernelFiles) {
  EXPECT_EQ(FindKernelValue("model name\t: Grinder 9000\nflags\t\t: a b\n", "model name"),
            "Grinder 9000");
  EXPECT_EQ(FindKernelValue("a: b\n", "c"), "");
  EXPECT_EQ(FindKernelBytes(kMeminfo, "MemAvailable"), int64_t{22643000} * 1024);
  EXPECT_EQ(FindKernelBytes(kMeminfo, "HugePages_Total"), 0);
  EXPECT_EQ(FindKernelBytes("MemTotal: 99999999999999999 kB", "MemTotal"), 0);
  EXPECT_EQ(FindKernelBytes("MemTotal: -4 kB", "MemTotal"), 0);
}

TEST(KernelFileTest, ThisMachine) {
  EXPECT_GE(AvailableCpus(), 1);
  EXPECT_GT(AvailableMemoryBytes(), 1 << 20);
  EXPECT_GT(FindKernelBytes(ReadKernelFile("/proc/meminfo"), "MemTotal"), 1 << 20);
  EXPECT_EQ(ReadKernelFile("/proc/no-such-file"), "");
  const TempDirectory directory;
  ASSERT_OK_AND_ASSIGN(const int64_t free_bytes, FreeDiskBytes(directory.path()));
  EXPECT_GT(free_bytes, 0);
  EXPECT_EQ(FreeDiskBytes(directory.Path("none")).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace quern
