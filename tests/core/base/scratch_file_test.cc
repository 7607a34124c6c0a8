#include "core/base/scratch_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <string>
#include <vector>

#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class ScratchFileTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_OK(RemoveTree(directory_)); }
  void TearDown() override { EXPECT_OK(RemoveTree(directory_)); }

  const std::string directory_ = testing::TempDir() + "/scratch_file_test";
};

TEST_F(ScratchFileTest, HoldsWhatIsWrittenAndHasNoName) {
  ASSERT_OK_AND_ASSIGN(ScratchFile file, ScratchFile::Create(directory_, 100'000));
  ASSERT_OK_AND_ASSIGN(const std::vector<std::string> names, ListDirectory(directory_));
  EXPECT_THAT(names, IsEmpty());
  const std::string first(30'000, 'a');
  const std::string second(70'000, 'b');
  EXPECT_OK(file.Write(30'000, second));
  EXPECT_OK(file.Write(0, first));
  file.Prefetch(0, 100'000);
  file.Prefetch(90'000, 100'000);  // beyond the end is no error
  std::string found(100'000, '?');
  EXPECT_OK(file.Read(0, absl::MakeSpan(found)));
  EXPECT_EQ(found, first + second);
  std::string middle(2, '?');
  EXPECT_OK(file.Read(29'999, absl::MakeSpan(middle)));
  EXPECT_EQ(middle, "ab");
}

TEST_F(ScratchFileTest, ReadingBeyondTheEndIsAnError) {
  ASSERT_OK_AND_ASSIGN(const ScratchFile file, ScratchFile::Create(directory_, 10));
  std::string bytes(11, '?');
  EXPECT_THAT(file.Read(0, absl::MakeSpan(bytes)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("ends at byte 10")));
}

// In a process of its own, whose limit does not hold for the others.
TEST_F(ScratchFileTest, ADiskWithoutRoomIsFoundAtOnce) {
  const auto create = [this] {
    const rlimit limit{1 << 20, 1 << 20};
    if (signal(SIGXFSZ, SIG_IGN) == SIG_ERR || setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(2);
    const auto file = ScratchFile::Create(directory_, 2 << 20);
    fputs(file.status().ToString().c_str(), stderr);
    const auto smaller = ScratchFile::Create(directory_, 1 << 20);
    _exit(absl::IsResourceExhausted(file.status()) && smaller.ok() ? 0 : 1);
  };
  EXPECT_EXIT(create(), testing::ExitedWithCode(0), "cannot take 2097152 bytes of disk");
}

}  // namespace
}  // namespace quern
