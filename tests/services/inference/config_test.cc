#include "services/inference/config.h"

#include <absl/strings/match.h>
#include <absl/time/clock.h>

#include <signal.h>

#include <cstdlib>
#include <optional>
#include <string>

#include "core/base/subprocess.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"

namespace quern {
namespace {

using testing::HasSubstr;

TEST(InferenceConfigTest, EachFieldIsChecked) {
  EXPECT_OK(InferenceConfig().Validate());
  const auto expect = [](const char* flag, auto spoil) {
    InferenceConfig config;
    spoil(config);
    const absl::Status status = config.Validate();
    EXPECT_FALSE(status.ok()) << flag;
    EXPECT_THAT(std::string(status.message()), HasSubstr(flag));
  };
  expect("--listen", [](auto& config) { config.listen = "nowhere"; });
  expect("--listen", [](auto& config) { config.listen = "0.0.0.0:0"; });
  expect("--http-listen", [](auto& config) { config.http_listen = "0.0.0.0:80"; });
  expect("--metrics-listen", [](auto& config) { config.metrics_listen = "127.0.0.1:99999"; });
  expect("--jobs", [](auto& config) { config.jobs = "jobs"; });
  expect("--cache-directory", [](auto& config) { config.cache_directory = ""; });
  expect("--threads", [](auto& config) { config.threads = -1; });
  expect("--kv-cache-mib", [](auto& config) { config.kv_cache_mib = 0; });
}

class InferenceBinaryTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* bin = std::getenv("QUERN_BIN_DIR");
    if (bin == nullptr) GTEST_SKIP() << "QUERN_BIN_DIR is not set; ctest sets it";
    bin_ = bin;
  }
  std::string bin_;
};

TEST_F(InferenceBinaryTest, LinksNoLibTorch) {
  for (const char* name : {"quern-inference", "quern"}) {
    ASSERT_OK_AND_ASSIGN(auto ldd, Subprocess::Start({.argv = {"/usr/bin/ldd", bin_ + "/" + name},
                                                      .capture_output = true}));
    bool grpc = false;
    while (true) {
      ASSERT_OK_AND_ASSIGN(const std::optional<std::string> line,
                           ldd->ReadLine(absl::Now() + absl::Seconds(20)));
      if (!line.has_value()) break;
      grpc = grpc || absl::StrContains(*line, "libgrpc");
      EXPECT_FALSE(absl::StrContains(*line, "torch") || absl::StrContains(*line, "libc10"))
          << name << ": " << *line;
    }
    EXPECT_TRUE(grpc) << name;
  }
}

TEST_F(InferenceBinaryTest, RefusesOtherMachinesWithoutLeave) {
  const TempDirectory directory;
  ASSERT_OK_AND_ASSIGN(auto process,
                       Subprocess::Start({.argv = {bin_ + "/quern-inference", "--listen=0.0.0.0:0",
                                                   "--cache-directory=" + directory.Path("cache")},
                                          .capture_error = true}));
  ASSERT_OK_AND_ASSIGN(const auto line, process->ReadErrorLine(absl::Now() + absl::Seconds(20)));
  EXPECT_THAT(line.value_or(""), HasSubstr("--allow-insecure-network"));
  ASSERT_OK_AND_ASSIGN(const ExitStatus status, process->Wait(absl::Now() + absl::Seconds(20)));
  EXPECT_EQ(status.exit_code, 78);
}

TEST_F(InferenceBinaryTest, DrainsAtSigterm) {
  const TempDirectory directory;
  ASSERT_OK_AND_ASSIGN(
      auto process,
      Subprocess::Start({.argv = {bin_ + "/quern-inference", "--listen=127.0.0.1:0",
                                  "--http-listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0",
                                  "--jobs=", "--ready-file=" + directory.Path("ready.json"),
                                  "--cache-directory=" + directory.Path("cache")},
                         .capture_error = true}));
  ASSERT_OK_AND_ASSIGN(const auto line, process->ReadErrorLine(absl::Now() + absl::Seconds(20)));
  EXPECT_THAT(line.value_or(""), HasSubstr("serving grpc=127.0.0.1:"));
  ASSERT_OK_AND_ASSIGN(const std::string ready, ReadFile(directory.Path("ready.json"), 4096));
  EXPECT_THAT(ready, HasSubstr("\"grpc_address\":\"127.0.0.1:"));
  EXPECT_THAT(ready, HasSubstr("\"http_address\":\"127.0.0.1:"));
  EXPECT_OK(process->Signal(SIGTERM));
  ASSERT_OK_AND_ASSIGN(const ExitStatus status, process->Wait(absl::Now() + absl::Seconds(20)));
  EXPECT_TRUE(status.success()) << status.ToString();
}

}  // namespace
}  // namespace quern
