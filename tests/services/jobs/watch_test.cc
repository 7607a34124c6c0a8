#include <future>

#include "tests/services/jobs/jobs_fixture.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

class WatchTest : public JobsServerTest {
 protected:
  static std::vector<int> States(const std::vector<JobEvent>& events) {
    std::vector<int> states;
    for (const JobEvent& event : events) {
      if (event.has_job()) states.push_back(event.job().state());
    }
    return states;
  }
  // A watch under way, read by a thread of its own.
  std::future<absl::StatusOr<std::vector<JobEvent>>> StartWatch(const std::string& name,
                                                                int64_t after = 0) {
    return std::async(std::launch::async, [this, name, after] { return Watch(name, after); });
  }
};

TEST_F(WatchTest, ReplaysTheWholeStoryOfAnEndedJob) {
  const std::string name = CreateName();
  const worker::v1::Lease lease = Lease();
  worker::v1::RenewLeaseRequest renew;
  renew.set_token(lease.token());
  renew.add_log_lines("hello");
  ASSERT_OK(Renew(renew));
  for (int i = 1; i <= 100; ++i) ASSERT_OK(RenewWithProgress(lease.token(), i));
  ASSERT_OK(Complete(ErrorRequest(lease.token(), 13, "DIVERGED")));
  ASSERT_OK_AND_ASSIGN(const std::vector<JobEvent> events, Watch(name));
  ASSERT_EQ(events.size(), 104);
  EXPECT_THAT(States(events), ElementsAre(Job::QUEUED, Job::RUNNING, Job::FAILED));
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].sequence(), i + 1);
  // Each state as it was then.
  EXPECT_FALSE(events[0].job().has_error());
  EXPECT_FALSE(events[0].job().has_end_time());
  EXPECT_EQ(events[2].log(), "hello");
  EXPECT_EQ(events[3].progress().completed_count(), 1);
  EXPECT_EQ(events.back().job().error().reason(), "DIVERGED");
}

TEST_F(WatchTest, FollowsALiveJobToItsEnd) {
  const std::string name = CreateName();
  auto watch = StartWatch(name);
  const worker::v1::Lease lease = Lease();
  for (int i = 1; i <= 50; ++i) ASSERT_OK(RenewWithProgress(lease.token(), i));
  ASSERT_OK(Cancel(name));
  ASSERT_OK(Complete(ErrorRequest(lease.token(), 1, "CANCELLED")));
  ASSERT_OK_AND_ASSIGN(const std::vector<JobEvent> events, watch.get());
  EXPECT_THAT(States(events),
              ElementsAre(Job::QUEUED, Job::RUNNING, Job::CANCELLING, Job::CANCELLED));
  for (size_t i = 1; i < events.size(); ++i) {
    EXPECT_GT(events[i].sequence(), events[i - 1].sequence());
  }
  // Progress may be skipped, but not the last one.
  int64_t last = 0;
  for (const JobEvent& event : events) {
    if (event.has_progress()) last = event.progress().completed_count();
  }
  EXPECT_EQ(last, 50);
}

TEST_F(WatchTest, GoesOnAfterASequenceNumberEvenAcrossARestart) {
  const std::string name = CreateName();
  const worker::v1::Lease lease = Lease();
  ASSERT_OK(RenewWithProgress(lease.token(), 1));
  ASSERT_OK(RenewWithProgress(lease.token(), 2));
  Start();
  ASSERT_OK(RenewWithProgress(lease.token(), 3));
  ASSERT_OK(Complete(ErrorRequest(lease.token(), 13, "DIVERGED")));
  ASSERT_OK_AND_ASSIGN(const std::vector<JobEvent> events, Watch(name, 3));
  ASSERT_EQ(events.size(), 4);
  // First the job as it was at that number, then what came after it.
  EXPECT_EQ(events[0].sequence(), 3);
  EXPECT_EQ(events[0].job().state(), Job::RUNNING);
  EXPECT_EQ(events[1].sequence(), 4);
  EXPECT_EQ(events[2].progress().completed_count(), 3);
  EXPECT_EQ(events[3].job().state(), Job::FAILED);
  // After the last event: the job as it is, and the end.
  ASSERT_OK_AND_ASSIGN(const std::vector<JobEvent> rest, Watch(name, events[3].sequence()));
  ASSERT_EQ(rest.size(), 1);
  EXPECT_EQ(rest[0].job().state(), Job::FAILED);
}

TEST_F(WatchTest, ManyWatchersSeeTheSame) {
  const std::string name = CreateName();
  std::vector<std::future<absl::StatusOr<std::vector<JobEvent>>>> watches;
  for (int i = 0; i < 10; ++i) watches.push_back(StartWatch(name));
  const worker::v1::Lease lease = Lease();
  ASSERT_OK(RenewWithProgress(lease.token(), 1));
  ASSERT_OK(Complete(ErrorRequest(lease.token(), 13, "DIVERGED")));
  for (auto& watch : watches) {
    ASSERT_OK_AND_ASSIGN(const std::vector<JobEvent> events, watch.get());
    EXPECT_THAT(States(events), ElementsAre(Job::QUEUED, Job::RUNNING, Job::FAILED));
  }
}

TEST_F(WatchTest, ASlowReaderMissesProgressButNoState) {
  const std::string name = CreateName();
  const worker::v1::Lease lease = Lease();
  Context context;
  quantization::v1::WatchQuantizationJobRequest request;
  request.set_name(name);
  auto reader = jobs_->WatchQuantizationJob(&context, request);
  JobEvent event;
  ASSERT_TRUE(reader->Read(&event));
  // More than the flow control window takes while nobody reads.
  worker::v1::RenewLeaseRequest renew;
  renew.set_token(lease.token());
  renew.add_log_lines(std::string(60'000, 'x'));
  for (int i = 0; i < 20; ++i) ASSERT_OK(Renew(renew));
  for (int i = 1; i <= 200; ++i) ASSERT_OK(RenewWithProgress(lease.token(), i));
  ASSERT_OK(Complete(ErrorRequest(lease.token(), 13, "DIVERGED")));
  int num_logs = 0;
  std::vector<JobEvent> events = {event};
  while (reader->Read(&event)) {
    num_logs += event.has_log() ? 1 : 0;
    events.push_back(event);
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(num_logs, 20);
  EXPECT_THAT(States(events), ElementsAre(Job::QUEUED, Job::RUNNING, Job::FAILED));
}

TEST_F(WatchTest, ACancelledWatchEndsAndTheServiceGoesOn) {
  const std::string name = CreateName();
  for (int i = 0; i < 20; ++i) {
    Context context;
    quantization::v1::WatchQuantizationJobRequest request;
    request.set_name(name);
    auto reader = jobs_->WatchQuantizationJob(&context, request);
    JobEvent event;
    ASSERT_TRUE(reader->Read(&event));
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_OK(Get(name));
}

TEST_F(WatchTest, ShutdownEndsWatchesAndWaitingLeases) {
  const std::string name = CreateName();
  const worker::v1::Lease lease = Lease();
  auto watch = StartWatch(name);
  auto request = LeaseRequest("request-2");
  request.mutable_wait_duration()->set_seconds(60);
  auto waiting = std::async(std::launch::async, [&] { return LeaseJob(request); });
  const std::string started =
      "grpc_server_started_total{grpc_method=\"LeaseJob\",grpc_service=\"quern.worker.v1."
      "WorkerService\",grpc_type=\"unary\"}";
  ASSERT_TRUE(Eventually([&] { return ScrapedValue(Scrape(), started) == 2; }));
  // A call that has not arrived yet would be refused by gRPC itself.
  const std::string watching =
      "grpc_server_started_total{grpc_method=\"WatchQuantizationJob\",grpc_service=\"quern."
      "quantization.v1.QuantizationService\",grpc_type=\"server_stream\"}";
  ASSERT_TRUE(Eventually([&] { return ScrapedValue(Scrape(), watching) == 1; }));
  const absl::Time before = absl::Now();
  server_->Shutdown();
  EXPECT_LT(absl::Now() - before, absl::Seconds(9));
  EXPECT_THAT(watch.get(), StatusIs(StatusCode::kUnavailable, testing::_));
  EXPECT_THAT(waiting.get(), StatusIs(StatusCode::kUnavailable, testing::_));
}

TEST_F(WatchTest, RefusesWhatCannotBeWatched) {
  const std::string name = CreateName();
  EXPECT_THAT(Watch("nope"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("name")));
  EXPECT_THAT(Watch("quantizationJobs/nope"), StatusIs(StatusCode::kNotFound, HasSubstr("nope")));
  EXPECT_THAT(Watch(name, -1), StatusIs(StatusCode::kInvalidArgument, HasSubstr("after_sequence")));
  EXPECT_THAT(Watch(name, 99), StatusIs(StatusCode::kInvalidArgument, HasSubstr("after_sequence")));
}

}  // namespace
}  // namespace quern
