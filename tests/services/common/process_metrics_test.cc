#include "services/common/process_metrics.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <vector>

#include "core/base/file.h"
#include "tests/services/common/http_client.h"
#include "tests/support/temp_directory.h"

namespace quern {
namespace {

class ProcessMetricsTest : public testing::Test {
 protected:
  double Value(const std::string& series) {
    metrics_.Update();
    return ScrapedValue(prometheus::TextSerializer().Serialize(registry_.Collect()), series);
  }
  static double CpuSeconds() {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
  }

  const TempDirectory directory_;
  prometheus::Registry registry_;
  ProcessMetrics metrics_{registry_, "data", directory_.path()};
};

TEST_F(ProcessMetricsTest, CpuTimeIsTheKernels) {
  const double until = CpuSeconds() + 0.1;
  while (CpuSeconds() < until) {
  }
  // The kernel's ticks are of 10 ms.
  EXPECT_NEAR(Value("process_cpu_seconds_total"), CpuSeconds(), 0.05);
  EXPECT_NEAR(Value("process_cpu_seconds_total"), CpuSeconds(), 0.05);
}

TEST_F(ProcessMetricsTest, MemoryGrowsWithWhatIsTouched) {
  const double before = Value("process_resident_memory_bytes");
  EXPECT_GT(before, 1 << 20);
  constexpr size_t kBytes = 64 << 20;
  const std::vector<char> touched(kBytes, 1);
  EXPECT_GT(Value("process_resident_memory_bytes"), before + 0.9 * touched.size());
  EXPECT_GE(Value("process_virtual_memory_bytes"), Value("process_resident_memory_bytes"));
}

TEST_F(ProcessMetricsTest, OpenFilesAreCounted) {
  const double before = Value("process_open_fds");
  EXPECT_GE(before, 3);
  std::vector<FileDescriptor> files;
  for (int i = 0; i < 10; ++i) files.emplace_back(open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(Value("process_open_fds"), before + 10);
  EXPECT_GE(Value("process_max_fds"), before + 10);
  EXPECT_GE(Value("process_threads"), 1);
}

TEST_F(ProcessMetricsTest, StartTimeIsPastAndStays) {
  const double start = Value("process_start_time_seconds");
  const double now = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch());
  EXPECT_LT(start, now + 2);
  EXPECT_GT(start, now - 3600);
  EXPECT_EQ(Value("process_start_time_seconds"), start);
}

TEST_F(ProcessMetricsTest, DiskIsTheDirectorys) {
  struct statvfs disk = {};
  ASSERT_EQ(statvfs(directory_.path().c_str(), &disk), 0);
  const auto block = static_cast<double>(disk.f_frsize);
  const double size = static_cast<double>(disk.f_blocks) * block;
  EXPECT_EQ(Value("quern_disk_size_bytes{directory=\"data\"}"), size);
  // Others write too.
  EXPECT_NEAR(Value("quern_disk_free_bytes{directory=\"data\"}"),
              static_cast<double>(disk.f_bavail) * block, 0.05 * size);
}

TEST_F(ProcessMetricsTest, DirectoryThatIsGoneHasNoRoom) {
  ProcessMetrics gone(registry_, "cache", directory_.Path("nowhere"));
  gone.Update();
  EXPECT_EQ(Value("quern_disk_free_bytes{directory=\"cache\"}"), 0);
}

TEST_F(ProcessMetricsTest, SaysItsVersion) {}

}  // namespace
}  // namespace quern
