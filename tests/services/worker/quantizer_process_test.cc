#include "services/worker/quantizer_process.h"

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <signal.h>
#include <sys/stat.h>

#include <fstream>
#include <sstream>
#include <vector>

#include "core/base/mutex.h"
#include "tests/support/scratch_directory.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;

// Remembers what a run says.
class Recorder final : public QuantizerObserver {
 public:
  void OnDevice(const worker::v1::WorkerCapabilities& device) override {
    MutexLock lock(&mutex_);
    device_name_ = device.device_name();
  }
  void OnProgress(const quantization::v1::Progress& progress) override {
    MutexLock lock(&mutex_);
    progress_.push_back(progress.completed_count());
    changed_.SignalAll();
  }
  void OnLog(const std::string& line) override {
    MutexLock lock(&mutex_);
    logs_.push_back(line);
    changed_.SignalAll();
  }
  void OnRestart() override {
    MutexLock lock(&mutex_);
    ++restarts_;
  }
  void OnEnd(QuantizerOutcome outcome) override {
    MutexLock lock(&mutex_);
    outcome_ = std::move(outcome);
    changed_.SignalAll();
  }

  QuantizerOutcome WaitForEnd() {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    MutexLock lock(&mutex_);
    while (!outcome_.has_value() && absl::Now() < deadline) {
      changed_.WaitWithTimeout(&mutex_, absl::Seconds(1));
    }
    EXPECT_TRUE(outcome_.has_value());
    return outcome_.value_or(QuantizerOutcome{});
  }
  std::string WaitForLog() {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    MutexLock lock(&mutex_);
    while (logs_.empty() && absl::Now() < deadline) {
      changed_.WaitWithTimeout(&mutex_, absl::Seconds(1));
    }
    return logs_.empty() ? "" : logs_[0];
  }
  int restarts() {
    MutexLock lock(&mutex_);
    return restarts_;
  }
  std::vector<int64_t> progress() {
    MutexLock lock(&mutex_);
    return progress_;
  }
  std::string device_name() {
    MutexLock lock(&mutex_);
    return device_name_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::string device_name_ ABSL_GUARDED_BY(mutex_);
  std::vector<int64_t> progress_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> logs_ ABSL_GUARDED_BY(mutex_);
  int restarts_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<QuantizerOutcome> outcome_ ABSL_GUARDED_BY(mutex_);
};

class QuantizerProcessTest : public testing::Test {
 protected:
  // Starts a "quantizer" that is a shell script; $W is its work directory.
  std::unique_ptr<QuantizerRun> Start(const std::string& script) {
    const std::string program = directory_ / "quantizer";
    std::ofstream(program) << "#!/bin/sh\nW=" << directory_.path() << "\n" << script;
    chmod(program.c_str(), 0700);
    options_.program = program;
    options_.model_root = "/models";
    options_.data_root = "/data";
    QuantizerJob job;
    job.id = "quantizationJobs/1";
    job.task.mutable_quantize()->mutable_checkpoint()->set_path("tiny");
    job.task.mutable_quantize()->mutable_format()->set_bits(3);
    job.work_directory = directory_.path();
    return QuantizerProcessRunner(options_).Start(job, recorder_);
  }
  std::string Read(const std::string& name) {
    std::stringstream text;
    text << std::ifstream(directory_ / name).rdbuf();
    return text.str();
  }

  ScratchDirectory directory_;
  QuantizerProcessOptions options_;
  Recorder recorder_;
};

TEST_F(QuantizerProcessTest, GivesTheTaskAndTakesTheResult) {
  options_.threads = 3;
  auto run = Start(R"(
echo "$@" > $W/arguments
echo '{"event":"device","device":"cpu","name":"EPYC"}'
echo '{"event":"progress","stage":"BLOCK_AP","completed":1,"total":2}'
echo 'not an event'
echo '{"event":"result","artifact":"aa","directory":"/a","evaluation":{"sourceSizeBytes":"5"}}'
)");
  const QuantizerOutcome outcome = recorder_.WaitForEnd();
  ASSERT_TRUE(outcome.result.has_value()) << outcome.error.message();
  EXPECT_EQ(outcome.result->directory, "/a");
  EXPECT_EQ(outcome.result->evaluation.source_size_bytes(), 5);
  EXPECT_EQ(recorder_.device_name(), "EPYC");
  EXPECT_EQ(recorder_.progress(), std::vector<int64_t>{1});
  EXPECT_EQ(
      Read("arguments"),
      absl::StrCat("--task ", directory_.path(), "/task.json --work-directory ", directory_.path(),
                   " --model-root /models --data-root /data --device auto --log-format text "
                   "--threads 3\n"));
  EXPECT_EQ(Read("task.json"), R"({"checkpoint":{"path":"tiny"},"format":{"bits":3}})");
}

TEST_F(QuantizerProcessTest, AnErrorEndsTheRun) {
  auto run = Start(R"(
echo '{"event":"error","code":3,"reason":"INVALID_TASK","message":"bits"}'
exit 1)");
  const QuantizerOutcome outcome = recorder_.WaitForEnd();
  EXPECT_FALSE(outcome.result.has_value());
  EXPECT_EQ(outcome.error.code(), 3);
  EXPECT_EQ(outcome.error.reason(), "INVALID_TASK");
  EXPECT_EQ(recorder_.restarts(), 0);
}

TEST_F(QuantizerProcessTest, ACrashIsTriedAgain) {
  auto run = Start(R"(
echo x >> $W/runs
if [ $(wc -l < $W/runs) -lt 3 ]; then kill -9 $$; fi
echo '{"event":"result","artifact":"aa","directory":"/a"}')");
  EXPECT_TRUE(recorder_.WaitForEnd().result.has_value());
  EXPECT_EQ(recorder_.restarts(), 2);
}

TEST_F(QuantizerProcessTest, CrashesWithoutProgressEnd) {
  auto run = Start("echo x >> $W/runs\nkill -9 $$\n");
  const QuantizerOutcome outcome = recorder_.WaitForEnd();
  EXPECT_EQ(outcome.error.code(), 13);
  EXPECT_EQ(outcome.error.reason(), "QUANTIZER_CRASHED");
  EXPECT_THAT(outcome.error.message(), HasSubstr("signal 9"));
  EXPECT_EQ(Read("runs"), "x\nx\nx\nx\n");
  EXPECT_EQ(recorder_.restarts(), 3);
}

TEST_F(QuantizerProcessTest, ProgressBuysMoreCrashes) {
  // A new block in every second run.
  auto run = Start(R"(
echo x >> $W/runs
N=$(wc -l < $W/runs)
echo "{\"event\":\"progress\",\"stage\":\"BLOCK_AP\",\"completed\":$((N / 2)),\"total\":30}"
if [ $N -lt 9 ]; then exit 7; fi
echo '{"event":"result","artifact":"aa","directory":"/a"}')");
  EXPECT_TRUE(recorder_.WaitForEnd().result.has_value());
  EXPECT_EQ(recorder_.restarts(), 8);
}

TEST_F(QuantizerProcessTest, AnExitWithoutAWordIsACrash) {
  options_.max_restarts = 0;
  auto run = Start("exit 0\n");
  EXPECT_EQ(recorder_.WaitForEnd().error.reason(), "QUANTIZER_CRASHED");
}

TEST_F(QuantizerProcessTest, StopIsATermSignal) {
  auto run = Start(R"(
trap 'echo "{\"event\":\"error\",\"code\":1,\"reason\":\"CANCELLED\"}"; echo t > $W/term; exit 1' TERM
echo '{"event":"log","message":"running"}'
while true; do sleep 0.05; done)");
  EXPECT_EQ(recorder_.WaitForLog(), "running");
  run->Stop();
  run->Stop();
  EXPECT_EQ(recorder_.WaitForEnd().error.code(), 1);
  EXPECT_EQ(Read("term"), "t\n");
  EXPECT_EQ(recorder_.restarts(), 0);
}

TEST_F(QuantizerProcessTest, WhoDoesNotStopIsKilled) {
  options_.stop_grace = absl::Milliseconds(50);
  auto run = Start(R"(
trap '' TERM
echo '{"event":"log","message":"running"}'
while true; do sleep 0.05; done)");
  EXPECT_EQ(recorder_.WaitForLog(), "running");
  run->Stop();
  EXPECT_EQ(recorder_.WaitForEnd().error.code(), 1);
}

TEST_F(QuantizerProcessTest, KillAndDestructionEndItAtOnce) {
  auto run = Start(R"(
trap '' TERM
echo "{\"event\":\"log\",\"message\":\"$$\"}"
while true; do sleep 0.05; done)");
  const pid_t pid = std::stoi(recorder_.WaitForLog());
  run.reset();
  EXPECT_EQ(recorder_.WaitForEnd().error.code(), 1);
  EXPECT_EQ(kill(pid, 0), -1);
}

TEST_F(QuantizerProcessTest, AGrandchildThatHoldsTheOutputDoesNotHoldTheRun) {
  auto run = Start(R"(
sleep 1000 &
echo $! > $W/grandchild
echo '{"event":"result","artifact":"aa","directory":"/a"}')");
  EXPECT_TRUE(recorder_.WaitForEnd().result.has_value());
  kill(std::stoi(Read("grandchild")), SIGKILL);
}

TEST_F(QuantizerProcessTest, AMissingProgramIsSaid) {
  options_.program = "/nope";
  QuantizerJob job;
  job.work_directory = directory_.path();
  auto run = QuantizerProcessRunner(options_).Start(job, recorder_);
  const QuantizerOutcome outcome = recorder_.WaitForEnd();
  EXPECT_EQ(outcome.error.reason(), "QUANTIZER_NOT_STARTED");
  EXPECT_THAT(outcome.error.message(), HasSubstr("/nope"));
}

}  // namespace
}  // namespace quern
