#include <future>
#include <set>

#include "tests/services/jobs/jobs_fixture.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::_;
using testing::HasSubstr;

class WorkerServiceTest : public JobsServerTest {
 protected:
  std::future<absl::StatusOr<worker::v1::LeaseJobResponse>> WaitForLease(
      const std::string& request_id) {
    auto request = LeaseRequest(request_id);
    request.mutable_wait_duration()->set_seconds(50);
    return std::async(std::launch::async, [this, request] { return LeaseJob(request); });
  }
};

TEST_F(WorkerServiceTest, ALeasedJobRunsToItsArtifact) {
  const std::string name = CreateName();
  const worker::v1::Lease lease = Lease();
  EXPECT_EQ(lease.job().name(), name);
  EXPECT_EQ(lease.job().quantize().checkpoint().path(), "tiny");
  EXPECT_EQ(lease.duration().seconds(), 30);
  EXPECT_EQ(Get(name).value().state(), Job::RUNNING);
  ASSERT_OK(RenewWithProgress(lease.token(), 3));
  EXPECT_EQ(Get(name).value().progress().completed_count(), 3);
  const std::string path = MakeArtifact("a");
  ASSERT_OK_AND_ASSIGN(const std::string artifact, Stage(lease.token(), path));
  EXPECT_EQ(artifact, "artifacts/" + Sha256Hex(ReadAll(path + "/manifest.json")));
  ASSERT_OK(Succeed(lease.token(), artifact));
  EXPECT_OK(Succeed(lease.token(), artifact));  // the answer was lost
  ASSERT_OK_AND_ASSIGN(const Job job, Get(name));
  EXPECT_EQ(job.state(), Job::SUCCEEDED);
  EXPECT_EQ(job.artifact(), artifact);
  EXPECT_EQ(job.evaluation().rows(0).perplexity(), 17.5);
  EXPECT_TRUE(job.has_start_time() && job.has_end_time());
  EXPECT_EQ(job.attempt_count(), 1);
}

TEST_F(WorkerServiceTest, NoJobIsAnEmptyAnswer) {
  EXPECT_FALSE(LeaseJob(LeaseRequest()).value().has_lease());
}

TEST_F(WorkerServiceTest, AWaitingWorkerGetsTheNextJob) {
  // More than there are reaction threads: waiting must hold none of them.
  std::vector<std::future<absl::StatusOr<worker::v1::LeaseJobResponse>>> waiting;
  for (int i = 0; i < 6; ++i) waiting.push_back(WaitForLease(absl::StrCat("request-", i)));
  std::set<std::string> created;
  for (int i = 0; i < 6; ++i) created.insert(CreateName());
  std::set<std::string> leased;
  for (auto& lease : waiting) leased.insert(lease.get().value().lease().job().name());
  EXPECT_EQ(leased, created);
}

TEST_F(WorkerServiceTest, AWaitEndsInTime) {
  auto request = LeaseRequest();
  request.mutable_wait_duration()->set_nanos(50'000'000);
  ASSERT_OK_AND_ASSIGN(const auto response, LeaseJob(request));
  EXPECT_FALSE(response.has_lease());
}

TEST_F(WorkerServiceTest, AWorkerThatWentAwayGetsNoJob) {
  auto request = LeaseRequest();
  request.mutable_wait_duration()->set_seconds(50);
  Context context;
  auto call = std::async(std::launch::async, [&] {
    worker::v1::LeaseJobResponse response;
    return worker_->LeaseJob(&context, request, &response);
  });
  const std::string up = "quern_worker_up{device=\"cpu\",worker=\"worker-a\"}";
  ASSERT_TRUE(Eventually([&] { return ScrapedValue(Scrape(), up) == 1; }));
  context.TryCancel();
  EXPECT_EQ(call.get().error_code(), grpc::StatusCode::CANCELLED);
  // The server hears of it a moment later.
  const std::string handled =
      "grpc_server_handled_total{grpc_code=\"CANCELLED\",grpc_method=\"LeaseJob\",grpc_service="
      "\"quern.worker.v1.WorkerService\",grpc_type=\"unary\"}";
  const std::string name = CreateName();
  if (Get(name).value().state() == Job::QUEUED) {
    EXPECT_TRUE(Eventually([&] { return ScrapedValue(Scrape(), handled) == 1; }));
    EXPECT_EQ(Get(name).value().state(), Job::QUEUED);
  }
}

TEST_F(WorkerServiceTest, TheSameRequestGetsTheSameLease) {
  CreateName();
  CreateName();
  const worker::v1::Lease first = Lease("request-1");
  EXPECT_EQ(Lease("request-1").token(), first.token());
  EXPECT_NE(Lease("request-2").token(), first.token());
}

TEST_F(WorkerServiceTest, AZombieChangesNothing) {
  const std::string name = CreateName();
  const worker::v1::Lease zombie = Lease("request-1");
  const std::string path = MakeArtifact("zombie", 2);
  ASSERT_OK_AND_ASSIGN(const std::string staged, Stage(zombie.token(), path));
  clock_.Advance(absl::Minutes(1));
  auto waiting = WaitForLease("request-2");
  const worker::v1::Lease lease = waiting.get().value().lease();
  EXPECT_EQ(lease.job().name(), name);
  EXPECT_EQ(lease.job().attempt_count(), 2);

  EXPECT_THAT(RenewWithProgress(zombie.token(), 5), StatusIs(StatusCode::kAborted, _));
  EXPECT_THAT(Release(zombie.token()), StatusIs(StatusCode::kAborted, _));
  EXPECT_THAT(Stage(zombie.token(), path), StatusIs(StatusCode::kAborted, _));
  EXPECT_THAT(Succeed(zombie.token(), staged), StatusIs(StatusCode::kAborted, _));
  EXPECT_THAT(Complete(ErrorRequest(zombie.token(), 13, "DIVERGED")),
              StatusIs(StatusCode::kAborted, _));
  EXPECT_EQ(Get(name).value().state(), Job::RUNNING);

  const std::string artifact = Stage(lease.token(), MakeArtifact("winner", 4)).value();
  ASSERT_OK(Succeed(lease.token(), artifact));
  EXPECT_THAT(Succeed(zombie.token(), staged), StatusIs(StatusCode::kAborted, _));
  EXPECT_EQ(Get(name).value().artifact(), artifact);
  Context context;
  artifact::v1::ListArtifactsResponse list;
  ASSERT_TRUE(artifacts_->ListArtifacts(&context, {}, &list).ok());
  ASSERT_EQ(list.artifacts_size(), 1);
  EXPECT_EQ(list.artifacts(0).name(), artifact);
}

TEST_F(WorkerServiceTest, AnExpiredLeaseIsNoticedWithoutAnybodyAsking) {
  const std::string name = CreateName();
  Lease();
  clock_.Advance(absl::Minutes(1));
  EXPECT_TRUE(Eventually([&] { return Get(name).value().state() == Job::QUEUED; }));
}

TEST_F(WorkerServiceTest, APoisonJobFailsAfterThreeAttempts) {
  const std::string name = CreateName();
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(LeaseJob(LeaseRequest(absl::StrCat(i))).value().has_lease());
    clock_.Advance(absl::Minutes(1));
    ASSERT_TRUE(Eventually([&] { return Get(name).value().state() != Job::RUNNING; }));
  }
  ASSERT_OK_AND_ASSIGN(const Job job, Get(name));
  EXPECT_EQ(job.state(), Job::FAILED);
  EXPECT_EQ(job.error().reason(), "POISONED");
  EXPECT_EQ(job.error().code(), 13);
}

TEST_F(WorkerServiceTest, ReleaseGivesTheJobToTheNext) {
  const std::string name = CreateName();
  const worker::v1::Lease first = Lease("request-1");
  auto waiting = WaitForLease("request-2");
  ASSERT_OK(Release(first.token()));
  const worker::v1::Lease second = waiting.get().value().lease();
  EXPECT_EQ(second.job().name(), name);
  EXPECT_EQ(second.job().attempt_count(), 1);
}

TEST_F(WorkerServiceTest, CancelReachesTheWorker) {
  const std::string name = CreateName();
  const worker::v1::Lease lease = Lease();
  EXPECT_THAT(Complete(ErrorRequest(lease.token(), 1, "CANCELLED")),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("not asked to stop")));
  ASSERT_OK(Cancel(name));
  worker::v1::RenewLeaseRequest renew;
  renew.set_token(lease.token());
  EXPECT_TRUE(Renew(renew).value().cancel_requested());
  ASSERT_OK(Complete(ErrorRequest(lease.token(), 1, "CANCELLED")));
  EXPECT_EQ(Get(name).value().state(), Job::CANCELLED);
}

TEST_F(WorkerServiceTest, CancelRacesComplete) {
  const std::string path = MakeArtifact("a");
  for (int i = 0; i < 30; ++i) {
    const std::string name = CreateName();
    const worker::v1::Lease lease = Lease(absl::StrCat("race-", i));
    ASSERT_OK_AND_ASSIGN(const std::string artifact, Stage(lease.token(), path));
    auto cancel = std::async(std::launch::async, [&] { return Cancel(name); });
    EXPECT_OK(Succeed(lease.token(), artifact));
    ASSERT_OK(cancel.get());
    const Job job = Get(name).value();
    EXPECT_TRUE(job.state() == Job::SUCCEEDED || job.state() == Job::CANCELLED);
    EXPECT_EQ(job.artifact(), job.state() == Job::SUCCEEDED ? artifact : "");
  }
}

TEST_F(WorkerServiceTest, ALeaseSurvivesARestartOfTheService) {
  const std::string name = CreateName();
  const worker::v1::Lease lease = Lease();
  const std::string path = MakeArtifact("a");
  ASSERT_OK_AND_ASSIGN(const std::string artifact, Stage(lease.token(), path));
  clock_.Advance(absl::Hours(1));
  Start();
  ASSERT_OK(RenewWithProgress(lease.token(), 1));
  // Blobs that were not published went with the restart: the worker is told to stage again.
  EXPECT_THAT(Succeed(lease.token(), artifact),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("stage it")));
  ASSERT_OK(Stage(lease.token(), path));
  ASSERT_OK(Succeed(lease.token(), artifact));
  EXPECT_EQ(Get(name).value().state(), Job::SUCCEEDED);
}

}  // namespace
}  // namespace quern
