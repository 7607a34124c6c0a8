// The real lease loop against the real job service over loopback; only the quantizer is a fake.

#include "services/worker/lease_loop.h"

#include <prometheus/text_serializer.h>

#include <atomic>
#include <deque>
#include <thread>

#include "services/common/rpc_metrics.h"
#include "tests/services/jobs/jobs_fixture.h"

namespace quern {
namespace {

using quantization::v1::JobError;
using quantization::v1::Progress;
using testing::HasSubstr;

// A run that does what the test says.
class FakeRun final : public QuantizerRun {
 public:
  FakeRun(QuantizerJob job, QuantizerObserver& observer)
      : job_(std::move(job)), observer_(observer) {}
  ~FakeRun() override { End(Cancelled()); }

  void Stop() override {
    ++stops_;
    if (!ignores_stop_) End(Cancelled());
  }
  void Kill() override {
    ++kills_;
    End(Cancelled());
  }
  void Report(Progress::Stage stage, int64_t completed, int64_t total) {
    Progress progress;
    progress.set_stage(stage);
    progress.set_completed_count(completed);
    progress.set_total_count(total);
    progress.set_loss(0.25);
    observer_.OnProgress(progress);
  }
  void End(QuantizerOutcome outcome) {
    if (!ended_.exchange(true)) observer_.OnEnd(std::move(outcome));
  }
  static QuantizerOutcome Cancelled() {
    QuantizerOutcome outcome;
    outcome.error.set_code(1);
    outcome.error.set_reason("CANCELLED");
    return outcome;
  }
  static QuantizerOutcome Result(const std::string& directory) {
    QuantizerOutcome outcome;
    outcome.result.emplace();
    outcome.result->directory = directory;
    outcome.result->evaluation.set_source_size_bytes(7);
    return outcome;
  }

  const QuantizerJob job_;
  QuantizerObserver& observer_;
  std::atomic<bool> ended_ = false;
  std::atomic<bool> ignores_stop_ = false;
  std::atomic<int> stops_ = 0;
  std::atomic<int> kills_ = 0;
};

// Hands its runs to the test. A run lives as long as the session keeps it; counters outlive it.
class FakeRunner final : public QuantizerRunner {
 public:
  std::unique_ptr<QuantizerRun> Start(const QuantizerJob& job,
                                      QuantizerObserver& observer) override {
    auto shared = std::make_shared<FakeRun>(job, observer);
    struct Handle final : QuantizerRun {
      explicit Handle(std::shared_ptr<FakeRun> run) : run_(std::move(run)) {}
      ~Handle() override { run_->End(FakeRun::Cancelled()); }
      void Stop() override { run_->Stop(); }
      void Kill() override { run_->Kill(); }
      std::shared_ptr<FakeRun> run_;
    };
    MutexLock lock(&mutex_);
    runs_.push_back(shared);
    return std::make_unique<Handle>(std::move(shared));
  }
  std::shared_ptr<FakeRun> Take() {
    MutexLock lock(&mutex_);
    if (runs_.empty()) return nullptr;
    std::shared_ptr<FakeRun> run = runs_.front();
    runs_.pop_front();
    return run;
  }

 private:
  Mutex mutex_;
  std::deque<std::shared_ptr<FakeRun>> runs_ ABSL_GUARDED_BY(mutex_);
};

class LeaseLoopTest : public JobsServerTest {
 protected:
  ~LeaseLoopTest() override { StopWorker(); }

  // Restarts of the service keep its port, so that the worker finds it again.
  void KeepPort() { config_.listen = server_->grpc_address(); }

  void StartWorker() {
    LeaseLoopOptions options;
    options.name = "worker-a";
    options.work_directory = directory_ / "work";
    options.session.min_renew_interval = absl::Milliseconds(5);
    // The shortest pauses are shorter than the millisecond that a pause wants to be.
    options.session.min_backoff = absl::Microseconds(500);
    options.session.max_backoff = absl::Milliseconds(50);
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 50);
    std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> creators;
    creators.push_back(MakeClientRpcMetrics(registry_));
    auto channel = grpc::experimental::CreateCustomChannelWithInterceptors(
        server_->grpc_address(), grpc::InsecureChannelCredentials(), arguments,
        std::move(creators));
    auto loop = LeaseLoop::Create(options, channel, runner_, metrics_);
    ASSERT_OK(loop);
    loop_ = *std::move(loop);
    thread_ = std::thread([this] { loop_->Run(); });
  }
  void StopWorker() {
    if (!thread_.joinable()) return;
    loop_->Drain();
    thread_.join();
    loop_.reset();
  }
  std::shared_ptr<FakeRun> NextRun() {
    std::shared_ptr<FakeRun> run;
    EXPECT_TRUE(Eventually([&] { return (run = runner_.Take()) != nullptr; }));
    return run;
  }
  Job::State StateOf(const std::string& name) { return Get(name).value().state(); }
  bool Reaches(const std::string& name, Job::State state) {
    return Eventually([&] { return StateOf(name) == state; });
  }
  std::string Metrics() { return prometheus::TextSerializer().Serialize(registry_.Collect()); }
  bool HasWorkDirectory(const std::string& name) {
    return std::filesystem::exists(directory_ / ("work" + name.substr(name.find('/'))));
  }

  prometheus::Registry registry_;
  WorkerMetrics metrics_{registry_, "worker-a"};
  FakeRunner runner_;
  std::unique_ptr<LeaseLoop> loop_;
  std::thread thread_;
};

// Not after the 20 s that a call waits for a job.
TEST_F(LeaseLoopTest, IdleWorkerIsReadyAtOnce) {
  const absl::Time start = absl::Now();
  StartWorker();
  EXPECT_TRUE(Eventually([&] { return loop_->Ready().ok(); }));
  EXPECT_LT(absl::Now() - start, LeaseLoopOptions().wait);
}

TEST_F(LeaseLoopTest, SeesAJobToItsEnd) {
  StartWorker();
  const std::string name = CreateName();
  auto run = NextRun();
  EXPECT_EQ(run->job_.id, name);
  EXPECT_EQ(run->job_.task.quantize().checkpoint().path(), "tiny");
  EXPECT_FALSE(run->job_.task.quantize().has_resolved());
  EXPECT_TRUE(HasWorkDirectory(name));
  run->observer_.OnLog("hello");
  run->Report(Progress::BLOCK_AP, 0, 3);
  run->Report(Progress::BLOCK_AP, 2, 3);
  EXPECT_TRUE(Eventually([&] { return Get(name).value().progress().completed_count() == 2; }));
  const std::string path = MakeArtifact("a");
  run->End(FakeRun::Result(path));
  ASSERT_TRUE(Reaches(name, Job::SUCCEEDED));
  const Job job = Get(name).value();
  EXPECT_EQ(job.artifact(), "artifacts/" + Sha256Hex(ReadAll(path + "/manifest.json")));
  EXPECT_EQ(job.evaluation().source_size_bytes(), 7);
  EXPECT_TRUE(Eventually([&] { return !HasWorkDirectory(name); }));
  ASSERT_OK_AND_ASSIGN(const std::vector<JobEvent> events, Watch(name));
  EXPECT_TRUE(std::any_of(events.begin(), events.end(),
                          [](const JobEvent& event) { return event.log() == "hello"; }));
  // And takes the next.
  CreateName();
  EXPECT_NE(NextRun(), nullptr);
}

TEST_F(LeaseLoopTest, CountsWhatItDoes) {
  StartWorker();
  const std::string name = CreateName();
  auto run = NextRun();
  run->Report(Progress::LOADING, 0, 0);
  run->Report(Progress::BLOCK_AP, 0, 4);
  run->Report(Progress::BLOCK_AP, 1, 4);
  run->Report(Progress::BLOCK_AP, 3, 4);
  EXPECT_EQ(ScrapedValue(Metrics(), "quern_job_progress_ratio"), 0.75);
  EXPECT_EQ(ScrapedValue(Metrics(), "quern_job_stage_running{stage=\"LOADING\"}"), 0);
  EXPECT_EQ(ScrapedValue(Metrics(), "quern_job_stage_running{stage=\"BLOCK_AP\"}"), 1);
  EXPECT_NEAR(ScrapedValue(Metrics(), "quern_job_last_progress_timestamp_seconds"),
              absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()), 60);
  run->observer_.OnRestart();
  run->End(FakeRun::Result(MakeArtifact("a")));
  ASSERT_TRUE(Reaches(name, Job::SUCCEEDED));
  StopWorker();
  const std::string scrape = Metrics();
  const auto value = [&](const std::string& series) { return ScrapedValue(scrape, series); };
  EXPECT_EQ(value("quern_worker_up{device=\"cpu\",worker=\"worker-a\"}"), 1);
  EXPECT_EQ(value("quern_checkpoints_written_total"), 3);
  EXPECT_EQ(value("quern_block_seconds_count"), 2);
  EXPECT_EQ(value("quern_block_loss"), 0.25);
  EXPECT_EQ(value("quern_quantizer_restarts_total"), 1);
  EXPECT_EQ(value("quern_job_stage_running{stage=\"BLOCK_AP\"}"), 0);
  EXPECT_EQ(value("quern_job_stage_running{stage=\"PUBLISHING\"}"), 0);
  EXPECT_EQ(value("quern_job_last_progress_timestamp_seconds"), 0);
  EXPECT_EQ(value("quern_leases_lost_total"), 0);
  EXPECT_EQ(value("quern_job_stage_seconds_count{stage=\"LOADING\"}"), 1);
  EXPECT_EQ(value("quern_job_stage_seconds_count{stage=\"BLOCK_AP\"}"), 1);
  EXPECT_EQ(value("quern_job_stage_seconds_count{stage=\"PUBLISHING\"}"), 1);
  EXPECT_EQ(value("grpc_client_handled_total{grpc_code=\"OK\",grpc_method=\"CompleteJob\",grpc_"
                  "service=\"quern.worker.v1.WorkerService\",grpc_type=\"unary\"}"),
            1);
}

TEST_F(LeaseLoopTest, AThousandJobsHaveTheSeriesOfOne) {
  const auto num_series = [&] { return NumSeries("\r\n\r\n" + Metrics()); };
  const int before = num_series();
  for (int i = 0; i < 1000; ++i) {
    metrics_.StartJob();
    for (int stage = Progress::LOADING; stage <= Progress::Stage_MAX; ++stage) {
      Progress progress;
      progress.set_stage(static_cast<Progress::Stage>(stage));
      progress.set_completed_count(i);
      progress.set_total_count(1000 + i);
      progress.set_loss(i);
      metrics_.Progress(progress);
    }
    metrics_.EndJob();
  }
  EXPECT_EQ(ScrapedValue(Metrics(), "quern_job_stage_seconds_count{stage=\"E2E_QP\"}"), 1000);
  EXPECT_EQ(num_series(), before);
  EXPECT_LT(before, 300);
}

TEST_F(LeaseLoopTest, AFailureEndsTheJobWithItsReason) {
  StartWorker();
  const std::string name = CreateName();
  QuantizerOutcome outcome;
  outcome.error.set_code(13);
  outcome.error.set_reason("DIVERGED");
  outcome.error.set_message("block 3");
  NextRun()->End(outcome);
  ASSERT_TRUE(Reaches(name, Job::FAILED));
  EXPECT_EQ(Get(name).value().error().reason(), "DIVERGED");
  EXPECT_EQ(Get(name).value().error().message(), "block 3");
}

TEST_F(LeaseLoopTest, CancelStopsTheQuantizer) {
  StartWorker();
  const std::string name = CreateName();
  auto run = NextRun();
  run->Report(Progress::BLOCK_AP, 1, 3);
  ASSERT_OK(Cancel(name));
  run->Report(Progress::BLOCK_AP, 2, 3);
  ASSERT_TRUE(Reaches(name, Job::CANCELLED));
  EXPECT_EQ(run->stops_, 1);
  EXPECT_TRUE(Eventually([&] { return !HasWorkDirectory(name); }));
}

TEST_F(LeaseLoopTest, ALostLeaseKillsTheQuantizerAndPublishesNothing) {
  StartWorker();
  const std::string name = CreateName();
  auto run = NextRun();
  clock_.Advance(absl::Hours(1));
  ASSERT_TRUE(Reaches(name, Job::QUEUED));
  // A renewal finds out; the same worker then takes the job again, in the same directory.
  run->Report(Progress::BLOCK_AP, 1, 3);
  auto second = NextRun();
  EXPECT_EQ(run->kills_, 1);
  EXPECT_EQ(second->job_.work_directory, run->job_.work_directory);
  EXPECT_EQ(Get(name).value().attempt_count(), 2);
  EXPECT_EQ(ScrapedValue(Metrics(), "quern_leases_lost_total"), 1);
  second->End(FakeRun::Result(MakeArtifact("a")));
  EXPECT_TRUE(Reaches(name, Job::SUCCEEDED));
}

TEST_F(LeaseLoopTest, AZombiesResultIsRefused) {
  StartWorker();
  const std::string name = CreateName();
  auto run = NextRun();
  // The lease goes to somebody else while the worker does not look.
  clock_.Advance(absl::Hours(1));
  const worker::v1::Lease other = Lease("request-of-the-other");
  ASSERT_EQ(other.job().name(), name);
  run->End(FakeRun::Result(MakeArtifact("zombie", 2)));
  ASSERT_TRUE(Eventually([&] { return ScrapedValue(Metrics(), "quern_leases_lost_total") == 1; }));
  EXPECT_EQ(StateOf(name), Job::RUNNING);
  const std::string artifact = Stage(other.token(), MakeArtifact("winner", 4)).value();
  ASSERT_OK(Succeed(other.token(), artifact));
  EXPECT_EQ(Get(name).value().artifact(), artifact);
}

TEST_F(LeaseLoopTest, DrainGivesTheJobBack) {
  StartWorker();
  const std::string name = CreateName();
  auto run = NextRun();
  StopWorker();
  EXPECT_EQ(run->stops_, 1);
  EXPECT_EQ(StateOf(name), Job::QUEUED);
  EXPECT_EQ(Get(name).value().attempt_count(), 0);
  EXPECT_TRUE(HasWorkDirectory(name));
}

TEST_F(LeaseLoopTest, DrainPublishesWhatIsDone) {
  StartWorker();
  const std::string name = CreateName();
  auto run = NextRun();
  run->ignores_stop_ = true;
  loop_->Drain();
  ASSERT_TRUE(Eventually([&] { return run->stops_ == 1; }));
  run->End(FakeRun::Result(MakeArtifact("a")));
  StopWorker();
  EXPECT_EQ(StateOf(name), Job::SUCCEEDED);
}

TEST_F(LeaseLoopTest, DrainWhileIdleIsQuick) {
  StartWorker();
  ASSERT_TRUE(Eventually([&] {
    return ScrapedValue(Scrape(), "quern_worker_up{device=\"cpu\",worker=\"worker-a\"}") == 1;
  }));
  const absl::Time before = absl::Now();
  StopWorker();
  EXPECT_LT(absl::Now() - before, absl::Seconds(10));
}

TEST_F(LeaseLoopTest, SurvivesARestartOfTheService) {
  KeepPort();
  StartWorker();
  const std::string name = CreateName();
  auto run = NextRun();
  run->Report(Progress::BLOCK_AP, 1, 3);
  ASSERT_TRUE(Eventually([&] { return Get(name).value().has_progress(); }));
  server_->Shutdown();
  server_.reset();
  run->End(FakeRun::Result(MakeArtifact("a")));
  Start();
  ASSERT_TRUE(Reaches(name, Job::SUCCEEDED));
  EXPECT_EQ(Get(name).value().attempt_count(), 1);
}

TEST_F(LeaseLoopTest, StopsItselfWhenNobodyRenewsItsLease) {
  KeepPort();
  config_.lease_duration = absl::Milliseconds(400);
  Start();
  StartWorker();
  const std::string name = CreateName();
  auto run = NextRun();
  server_->Shutdown();
  server_.reset();
  EXPECT_TRUE(Eventually([&] { return run->kills_ == 1; }));
  Start();
  EXPECT_EQ(Get(name).value().artifact(), "");
}

TEST_F(LeaseLoopTest, ADamagedArtifactFailsTheJob) {
  StartWorker();
  const std::string name = CreateName();
  const std::string path = MakeArtifact("a");
  WriteAll(path + "/manifest.json", "{}");
  NextRun()->End(FakeRun::Result(path));
  ASSERT_TRUE(Reaches(name, Job::FAILED));
  EXPECT_EQ(Get(name).value().error().reason(), "PUBLISH_FAILED");
}

TEST_F(LeaseLoopTest, OneWorkerADirectory) {
  StartWorker();
  LeaseLoopOptions options;
  options.work_directory = directory_ / "work";
  EXPECT_THAT(LeaseLoop::Create(options, channel_, runner_, metrics_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another worker")));
}

}  // namespace
}  // namespace quern
