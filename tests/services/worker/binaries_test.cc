// quern-jobs and quern-worker as users start them; the quantizer is a script.

#include <signal.h>
#include <sys/stat.h>

#include <cstdlib>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/subprocess.h"
#include "tests/services/jobs/jobs_fixture.h"

namespace quern {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class BinariesTest : public JobsServerTest {
 protected:
  void SetUp() override {
    const char* bin = std::getenv("QUERN_BIN_DIR");
    if (bin == nullptr) GTEST_SKIP() << "QUERN_BIN_DIR is not set; ctest sets it";
    bin_ = bin;
    // The fixture's own server is not used here.
    server_->Shutdown();
    server_.reset();
    // Says its process id, then waits for "go", then gives the artifact that lies there.
    const std::string artifact = MakeArtifact("artifact");
    WriteAll(quantizer_, "#!/bin/sh\necho $$ > " + (directory_ / "pid") + "\n" +
                             "echo '{\"event\":\"progress\",\"stage\":\"BLOCK_AP\",\"completed\":1,"
                             "\"total\":2}'\n" +
                             "while [ ! -e " + (directory_ / "go") + " ]; do sleep 0.02; done\n" +
                             "echo '{\"event\":\"result\",\"directory\":\"" + artifact + "\"}'\n");
    chmod(quantizer_.c_str(), 0700);
  }

  std::unique_ptr<Subprocess> StartBinary(std::vector<std::string> argv) {
    argv[0] = bin_ + "/" + argv[0];
    auto process = Subprocess::Start({.argv = argv, .capture_error = true});
    EXPECT_OK(process);
    return *std::move(process);
  }
  std::unique_ptr<Subprocess> StartJobs() {
    const std::string ready = directory_ / "jobs-ready";
    std::filesystem::remove(ready);
    auto process =
        StartBinary({"quern-jobs", "--listen", jobs_address_, "--metrics-listen", "127.0.0.1:0",
                     "--ready-file", ready, "--data-directory", config_.data_directory,
                     "--model-root", config_.model_root, "--data-root", config_.data_root});
    const Json json = WaitForReady(ready, process->pid());
    jobs_address_ = json["grpc_address"];
    jobs_metrics_ = json["metrics_address"];
    channel_ = grpc::CreateChannel(jobs_address_, grpc::InsecureChannelCredentials());
    jobs_ = QuantizationService::NewStub(channel_);
    return process;
  }
  std::unique_ptr<Subprocess> StartWorker() {
    const std::string ready = directory_ / "worker-ready";
    std::filesystem::remove(ready);
    auto process =
        StartBinary({"quern-worker", "--jobs", jobs_address_, "--metrics-listen", "127.0.0.1:0",
                     "--ready-file", ready, "--work-directory", directory_ / "work", "--model-root",
                     config_.model_root, "--data-root", config_.data_root, "--quantizer",
                     quantizer_, "--name", "w1", "--log-format=json"});
    const Json json = WaitForReady(ready, process->pid());
    EXPECT_EQ(json["grpc_address"], "");
    worker_metrics_ = json["metrics_address"];
    return process;
  }
  Json WaitForReady(const std::string& path, pid_t pid) {
    absl::StatusOr<std::string> text;
    EXPECT_TRUE(Eventually([&] { return (text = ReadFile(path, 10'000)).ok(); }));
    Json json = ParseJson(text.value(), path).value();
    EXPECT_EQ(json["pid"], pid);
    return json;
  }
  pid_t QuantizerPid() {
    std::string text;
    EXPECT_TRUE(Eventually([&] {
      text = ReadAll(directory_ / "pid");
      return !text.empty() && text.back() == '\n';
    }));
    return std::stoi(text);
  }
  static void ExpectExit(Subprocess& process, int code) {
    const auto exit = process.Wait(absl::Now() + absl::Seconds(60));
    ASSERT_OK(exit);
    EXPECT_EQ(exit->ToString(), absl::StrCat("exit code ", code));
  }
  bool Reaches(const std::string& name, Job::State state) {
    return Eventually([&] {
      const auto job = Get(name);
      return job.ok() && job->state() == state;
    });
  }

  std::string bin_;
  const std::string quantizer_ = directory_ / "quantizer";
  std::string jobs_address_ = "127.0.0.1:0";
  std::string jobs_metrics_;
  std::string worker_metrics_;
};

TEST_F(BinariesTest, AJobRunsThroughBothAndBothDrain) {
  auto jobs = StartJobs();
  auto worker = StartWorker();
  const std::string name = CreateName();
  QuantizerPid();
  EXPECT_THAT(HttpGet(jobs_metrics_, "/readyz"), StartsWith("HTTP/1.1 200"));
  EXPECT_TRUE(
      Eventually([&] { return HttpGet(worker_metrics_, "/readyz").starts_with("HTTP/1.1 200"); }));
  EXPECT_EQ(ScrapedValue(HttpGet(jobs_metrics_, "/metrics"), "quern_jobs{state=\"RUNNING\"}"), 1);
  WriteAll(directory_ / "go", "");
  ASSERT_TRUE(Reaches(name, Job::SUCCEEDED));
  ASSERT_OK(worker->Signal(SIGTERM));
  ExpectExit(*worker, 0);
  ASSERT_OK(jobs->Signal(SIGINT));
  ExpectExit(*jobs, 0);
}

TEST_F(BinariesTest, KilledProcessesLoseNothing) {
  auto jobs = StartJobs();
  auto worker = StartWorker();
  const std::string name = CreateName();
  const pid_t quantizer = QuantizerPid();
  // The service dies in the middle of the job; the worker goes on.
  ASSERT_OK(jobs->Signal(SIGKILL));
  ASSERT_OK(jobs->Wait(absl::Now() + absl::Seconds(20)));
  jobs = StartJobs();
  EXPECT_EQ(Get(name).value().state(), Job::RUNNING);
  // The quantizer dies; the worker starts it again.
  std::filesystem::remove(directory_ / "pid");
  ASSERT_EQ(kill(quantizer, SIGKILL), 0);
  const pid_t second = QuantizerPid();
  EXPECT_NE(second, quantizer);
  WriteAll(directory_ / "go", "");
  ASSERT_TRUE(Reaches(name, Job::SUCCEEDED));
}

TEST_F(BinariesTest, AQuantizerDoesNotOutliveItsWorker) {
  auto jobs = StartJobs();
  auto worker = StartWorker();
  const std::string name = CreateName();
  const pid_t quantizer = QuantizerPid();
  ASSERT_OK(worker->Signal(SIGKILL));
  ASSERT_OK(worker->Wait(absl::Now() + absl::Seconds(20)));
  EXPECT_TRUE(Eventually([&] { return kill(quantizer, 0) != 0; }));
  EXPECT_EQ(Get(name).value().state(), Job::RUNNING);
}

TEST_F(BinariesTest, DrainOfAWorkerGivesTheJobBack) {
  auto jobs = StartJobs();
  auto worker = StartWorker();
  const std::string name = CreateName();
  const pid_t quantizer = QuantizerPid();
  ASSERT_OK(worker->Signal(SIGTERM));
  ExpectExit(*worker, 0);
  EXPECT_NE(kill(quantizer, 0), 0);
  EXPECT_EQ(Get(name).value().state(), Job::QUEUED);
  EXPECT_EQ(Get(name).value().attempt_count(), 0);
}

TEST_F(BinariesTest, WrongSettingsExitWithOneLine) {
  const auto refused = [&](const std::vector<std::string>& argv, const std::string& part) {
    auto process = StartBinary(argv);
    ExpectExit(*process, 78);
    std::string text;
    while (true) {
      const auto line = process->ReadErrorLine(absl::Now() + absl::Seconds(20));
      if (!line.ok() || !line->has_value()) break;
      text += **line + "\n";
    }
    EXPECT_THAT(text, HasSubstr(part));
  };
  refused({"quern-jobs"}, "--data-directory is required");
  refused({"quern-jobs", "--listen", "0.0.0.0:0"}, "--allow-insecure-network");
  refused({"quern-jobs", "--log-format", "xml"}, "--log-format");
  refused({"quern-jobs", "leftover"}, "leftover");
  refused({"quern-worker"}, "--work-directory is required");
  refused({"quern-worker", "--jobs", "10.0.0.1:7400"}, "--allow-insecure-network");
}

TEST_F(BinariesTest, WorkerLinksNoLibTorch) {
  ASSERT_OK_AND_ASSIGN(
      auto ldd, Subprocess::Start(
                    {.argv = {"/usr/bin/ldd", bin_ + "/quern-worker"}, .capture_output = true}));
  int num_lines = 0;
  while (true) {
    ASSERT_OK_AND_ASSIGN(const std::optional<std::string> line,
                         ldd->ReadLine(absl::Now() + absl::Seconds(20)));
    if (!line.has_value()) break;
    ++num_lines;
    EXPECT_EQ(line->find("torch"), std::string::npos) << *line;
    EXPECT_EQ(line->find("libc10"), std::string::npos) << *line;
  }
  EXPECT_GT(num_lines, 5);
}

}  // namespace
}  // namespace quern
