// `quern up` over stand-ins for the services, in a directory of programs of its own.

#include <signal.h>
#include <sys/stat.h>

#include <filesystem>

#include "tests/services/cli/cli_fixture.h"

namespace quern {
namespace {

using testing::HasSubstr;

class UpTest : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    if (IsSkipped()) return;
    std::filesystem::create_directories(directory_.Path("bin"));
    std::filesystem::create_directories(directory_.Path("models"));
    std::filesystem::copy_file(program_, directory_.Path("bin/quern"));
    program_ = directory_.Path("bin/quern");
    for (const char* name : {"quern-jobs", "quern-worker", "quern-inference"}) {
      WriteService(name, "trap 'exit 0' TERM; while :; do sleep 0.02; done");
    }
  }

  // A service that says it is ready, then does what `body` says.
  void WriteService(const std::string& name, const std::string& body) {
    const std::string path = directory_.Path("bin/" + name);
    OverwriteFile(
        path,
        absl::StrCat(
            "#!/bin/sh\n"
            "for a in \"$@\"; do case $a in --ready-file=*) f=${a#*=};; esac; done\n"
            "echo \"$@\" > ",
            path, ".args\n",
            "echo '{\"grpc_address\":\"127.0.0.1:11\",\"http_address\":\"\",\"metrics_address\":"
            "\"127.0.0.1:12\",\"pid\":1}' > $f.tmp && mv $f.tmp $f\n",
            body, "\n"));
    ASSERT_EQ(chmod(path.c_str(), 0700), 0);
  }
  std::vector<std::string> UpArguments() const {
    return {"up", "--data-directory=" + directory_.Path("state"),
            "--model-root=" + directory_.Path("models"), "--json"};
  }
  std::string Arguments(const std::string& name) {
    return ReadFile(directory_.Path("bin/" + name + ".args"), 4096).value();
  }
};

TEST_F(UpTest, StartsAllTellsWhereAndStopsAll) {
  const auto process = Start(UpArguments());
  ASSERT_OK_AND_ASSIGN(const auto line, process->ReadLine(absl::Now() + absl::Minutes(1)));
  ASSERT_OK_AND_ASSIGN(const Json ready, ParseJson(line.value_or(""), "line"));
  EXPECT_EQ(ready.at("event"), "ready");
  EXPECT_EQ(ready.at("quern-inference").at("grpc"), "127.0.0.1:11");

  const std::string addresses = directory_.Path("state/quern.json");
  struct stat info = {};
  ASSERT_EQ(stat(addresses.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
  ASSERT_OK_AND_ASSIGN(const Json json, ParseJson(ReadFile(addresses, 4096).value(), "addresses"));
  EXPECT_EQ(json.at("jobs"), "127.0.0.1:11");
  EXPECT_EQ(json.at("worker_metrics"), "127.0.0.1:12");
  EXPECT_THAT(Arguments("quern-jobs"), HasSubstr("--listen=127.0.0.1:0"));
  EXPECT_THAT(Arguments("quern-worker"), HasSubstr("--jobs=127.0.0.1:11"));
  EXPECT_THAT(Arguments("quern-inference"), HasSubstr("--cache-directory="));

  // One at a time on a directory.
  const Result second = Run(UpArguments());
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.error, HasSubstr("another `quern up`"));

  ASSERT_OK(process->Signal(SIGTERM));
  EXPECT_EQ(Finish(*process).exit_code, 0);
  EXPECT_FALSE(std::filesystem::exists(addresses));
}

TEST_F(UpTest, DeadServiceEndsItByName) {
  WriteService("quern-worker", "exit 3");
  const Result result = Run(UpArguments());
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.error, HasSubstr("quern-worker"));
  EXPECT_THAT(result.error, HasSubstr("exit code 3"));
  EXPECT_FALSE(std::filesystem::exists(directory_.Path("state/quern.json")));
}

TEST_F(UpTest, ServiceThatDoesNotStartIsNamed) {
  OverwriteFile(directory_.Path("bin/quern-inference"), "#!/bin/sh\nexit 78\n");
  chmod(directory_.Path("bin/quern-inference").c_str(), 0700);
  const Result result = Run(UpArguments());
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.error, HasSubstr("quern-inference: ended while starting with exit code 78"));
  std::filesystem::remove(directory_.Path("bin/quern-jobs"));
  EXPECT_THAT(Run(UpArguments()).error, HasSubstr("quern-jobs"));
}

TEST_F(UpTest, PathsBelowTheRootAreMadeRelative) {
  const auto process = Start(UpArguments());
  ASSERT_OK(process->ReadLine(absl::Now() + absl::Minutes(1)));
  std::filesystem::create_directories(directory_.Path("models/a/b"));
  const std::string data = "--data-directory=" + directory_.Path("state");
  services_.job.set_name("quantizationJobs/j1");
  const auto quantize = [&](const std::string& path) {
    return RunConnected({"quantize", path, "--detach", data});
  };
  EXPECT_EQ(quantize(directory_.Path("models/a/b")).exit_code, 0);
  EXPECT_EQ(services_.created_job.quantization_job().quantize().checkpoint().path(), "a/b");
  EXPECT_EQ(quantize("a/b").exit_code, 0);
  EXPECT_EQ(services_.created_job.quantization_job().quantize().checkpoint().path(), "a/b");
  const Result outside = quantize(directory_.Path("bin"));
  EXPECT_EQ(outside.exit_code, 1);
  EXPECT_THAT(outside.error, HasSubstr("--model-root"));
  ASSERT_OK(process->Signal(SIGINT));
  EXPECT_EQ(Finish(*process).exit_code, 0);
}

}  // namespace
}  // namespace quern
