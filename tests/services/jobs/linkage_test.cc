#include <absl/strings/match.h>
#include <absl/time/clock.h>

#include "core/base/subprocess.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

TEST(LinkageTest, JobsLinksNoLibTorch) {
  const char* bin = std::getenv("QUERN_BIN_DIR");
  if (bin == nullptr) GTEST_SKIP() << "QUERN_BIN_DIR is not set; ctest sets it";
  ASSERT_OK_AND_ASSIGN(
      auto ldd, Subprocess::Start({.argv = {"/usr/bin/ldd", std::string(bin) + "/quern-jobs"},
                                   .capture_output = true}));
  int num_lines = 0;
  bool grpc = false;
  while (true) {
    ASSERT_OK_AND_ASSIGN(const std::optional<std::string> line,
                         ldd->ReadLine(absl::Now() + absl::Seconds(20)));
    if (!line.has_value()) break;
    ++num_lines;
    grpc = grpc || absl::StrContains(*line, "libgrpc");
    EXPECT_FALSE(absl::StrContains(*line, "torch") || absl::StrContains(*line, "libc10")) << *line;
  }
  EXPECT_GT(num_lines, 5);
  EXPECT_TRUE(grpc);
}

}  // namespace
}  // namespace quern
