// Leases and fences: who may write what, when.

#include <absl/strings/str_cat.h>

#include <atomic>
#include <set>
#include <thread>

#include "tests/core/store/job_store_fixture.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::_;
using testing::ElementsAre;
using testing::HasSubstr;

class JobLeaseTest : public JobStoreTest {
 protected:
  absl::StatusOr<JobStore::Renewal> Renew(const std::string& token, int64_t mark = -1) {
    return store_->Renew(token, absl::StrCat("mark ", mark), mark, {}, absl::Minutes(1));
  }
  // Runs the job's lease out.
  std::vector<JobRecord> Expire() {
    clock_.Advance(absl::Minutes(2));
    return store_->ExpireLeases().value();
  }
  void ExpectZombie(const std::string& token) {
    EXPECT_THAT(Renew(token, 99), StatusIs(StatusCode::kAborted, HasSubstr("lease was lost")));
    EXPECT_THAT(store_->Release(token), StatusIs(StatusCode::kAborted, _));
    EXPECT_THAT(store_->CheckLease(token), StatusIs(StatusCode::kAborted, _));
    EXPECT_THAT(Succeed(token, "zombie"), StatusIs(StatusCode::kAborted, _));
    EXPECT_THAT(store_->GetArtifact("zombie"), StatusIs(StatusCode::kNotFound, _));
  }
};

TEST_F(JobLeaseTest, OldestJobComesFirst) {
  const std::string first = Create("1");
  const std::string second = Create("2");
  const LeaseGrant a = Lease("worker-a", "r1");
  const LeaseGrant b = Lease("worker-b", "r2");
  EXPECT_EQ(a.job.id, first);
  EXPECT_EQ(b.job.id, second);
  EXPECT_EQ(a.job.state, JobState::kRunning);
  EXPECT_EQ(a.job.fence, 1);
  EXPECT_EQ(a.job.attempt_count, 1);
  EXPECT_EQ(a.job.lease_owner, "worker-a");
  EXPECT_EQ(a.job.start_time, clock_.Now());
  EXPECT_EQ(a.job.lease_expire_time, clock_.Now() + absl::Minutes(1));
  EXPECT_NE(a.token, b.token);
  EXPECT_FALSE(store_->Lease("worker-c", "r3", absl::Minutes(1)).value().has_value());
}

TEST_F(JobLeaseTest, ALostReplyCostsNothing) {
  Create();
  Create();
  const LeaseGrant first = Lease("worker-a", "r1");
  const LeaseGrant again = Lease("worker-a", "r1");
  EXPECT_EQ(again.token, first.token);
  EXPECT_EQ(again.job.fence, 1);
  EXPECT_EQ(again.job.attempt_count, 1);
  // Another worker with the same id gets the other job.
  EXPECT_NE(Lease("worker-b", "r1").job.id, first.job.id);
}

TEST_F(JobLeaseTest, ExpiredLeaseGoesToTheNextWorker) {
  const std::string id = Create();
  const LeaseGrant first = Lease("worker-a", "r1");
  clock_.Advance(absl::Minutes(2));
  const LeaseGrant second = Lease("worker-b", "r2");
  EXPECT_EQ(second.job.id, id);
  EXPECT_EQ(second.job.fence, 2);
  EXPECT_EQ(second.job.attempt_count, 2);
  ExpectZombie(first.token);
  EXPECT_OK(Renew(second.token));
  EXPECT_EQ(Succeed(second.token).value().state, JobState::kSucceeded);
  ExpectZombie(first.token);
  // The expiry that Lease found is told once.
  ASSERT_OK_AND_ASSIGN(const std::vector<JobRecord> expired, store_->ExpireLeases());
  ASSERT_EQ(expired.size(), 1);
  EXPECT_EQ(expired[0].state, JobState::kQueued);
  EXPECT_EQ(store_->ExpireLeases().value().size(), 0);
  EXPECT_THAT(States(id), ElementsAre(1, 2, 1, 2, 4));
}

TEST_F(JobLeaseTest, RenewedLeaseLives) {
  Create();
  const std::string token = Lease().token;
  for (int i = 0; i < 10; ++i) {
    clock_.Advance(absl::Seconds(50));
    ASSERT_OK_AND_ASSIGN(const JobStore::Renewal renewal, Renew(token));
    EXPECT_EQ(renewal.expire_time, clock_.Now() + absl::Minutes(1));
    EXPECT_FALSE(renewal.cancel_requested);
    EXPECT_EQ(store_->ExpireLeases().value().size(), 0);
  }
}

TEST_F(JobLeaseTest, WrongTokensAreLostLeases) {
  const std::string id = Create();
  const std::string token = Lease().token;
  for (const std::string& wrong :
       {std::string(), std::string("x"), id, id + ".1", id + ".1.", token + "0",
        token.substr(0, token.size() - 1), std::string("0000000000000000.1.00"),
        std::string(1 << 16, '.')}) {
    EXPECT_THAT(Renew(wrong), StatusIs(StatusCode::kAborted, _)) << wrong.substr(0, 80);
  }
  EXPECT_OK(Renew(token));
}

TEST_F(JobLeaseTest, ThreeAttemptsWithoutProgressFailTheJob) {
  const std::string id = Create();
  for (int attempt = 1; attempt <= 3; ++attempt) {
    EXPECT_EQ(Lease("w", absl::StrCat(attempt)).job.attempt_count, attempt);
    EXPECT_EQ(Get(id).state, JobState::kRunning);
    Expire();
  }
  const JobRecord job = Get(id);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error, "poisoned");
  EXPECT_EQ(job.end_time, clock_.Now());
}

TEST_F(JobLeaseTest, ProgressGivesThreeMoreAttempts) {
  const std::string id = Create();
  for (int attempt = 1; attempt <= 9; ++attempt) {
    const std::string token = Lease("w", absl::StrCat(attempt)).token;
    // New ground in every third attempt; other reports repeat what was done before.
    ASSERT_OK(Renew(token, attempt / 3));
    Expire();
    ASSERT_EQ(Get(id).state, JobState::kQueued) << attempt;
  }
  EXPECT_EQ(Get(id).attempt_count, 9);
}

TEST_F(JobLeaseTest, EvenWithProgressAttemptsEnd) {
  const std::string id = Create();
  for (int attempt = 1; attempt <= JobStore::kMaxAttempts; ++attempt) {
    ASSERT_OK(Renew(Lease("w", absl::StrCat(attempt)).token, attempt));
    Expire();
  }
  EXPECT_EQ(Get(id).state, JobState::kFailed);
}

TEST_F(JobLeaseTest, ReleaseGivesTheAttemptBack) {
  const std::string id = Create();
  for (int i = 0; i < 10; ++i) {
    const std::string token = Lease("w", absl::StrCat(i)).token;
    ASSERT_OK_AND_ASSIGN(const JobRecord job, store_->Release(token));
    EXPECT_EQ(job.state, JobState::kQueued);
    ExpectZombie(token);
  }
  EXPECT_EQ(Get(id).attempt_count, 0);
  EXPECT_EQ(Get(id).fence, 10);
}

TEST_F(JobLeaseTest, RestartGivesRunningJobsOneFreshLease) {
  Create();
  const std::string token = Lease().token;
  clock_.Advance(absl::Hours(5));
  Open();
  EXPECT_EQ(store_->ExpireLeases().value().size(), 0);
  EXPECT_OK(Renew(token));
  clock_.Advance(absl::Hours(5));
  Open();
  clock_.Advance(absl::Seconds(31));
  EXPECT_EQ(store_->ExpireLeases().value().size(), 1);
}

TEST_F(JobLeaseTest, RenewalsBecomeEvents) {
  const std::string id = Create();
  const std::string token = Lease().token;
  ASSERT_OK(store_->Renew(token, "p1", 1, {"line 1", "line 2"}, absl::Minutes(1)));
  ASSERT_OK(store_->Renew(token, "p1", 1, {}, absl::Minutes(1)));  // the same: no event
  ASSERT_OK(store_->Renew(token, "", -1, {}, absl::Minutes(1)));
  EXPECT_EQ(Get(id).progress, "p1");
  ASSERT_OK_AND_ASSIGN(const std::vector<JobEventRecord> events, store_->Events(id, 2, 10));
  ASSERT_EQ(events.size(), 3);
  EXPECT_EQ(events[0].kind, JobEventRecord::Kind::kLog);
  EXPECT_EQ(events[0].payload, "line 1");
  EXPECT_EQ(events[2].kind, JobEventRecord::Kind::kProgress);
  EXPECT_EQ(events[2].payload, "p1");
}

TEST_F(JobLeaseTest, CancelOfARunningJobIsCarriedOutByItsWorker) {
  const std::string id = Create();
  const std::string token = Lease().token;
  EXPECT_THAT(store_->Complete(token, JobState::kCancelled, "", "", "", ""),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("not asked to stop")));
  EXPECT_EQ(store_->Cancel(id).value().state, JobState::kCancelling);
  EXPECT_TRUE(Renew(token).value().cancel_requested);
  ASSERT_OK(store_->Complete(token, JobState::kCancelled, "", "", "", "error"));
  EXPECT_EQ(Get(id).state, JobState::kCancelled);
  EXPECT_THAT(States(id), ElementsAre(1, 2, 3, 6));
}

TEST_F(JobLeaseTest, ACancelledJobPublishesNothing) {
  const std::string id = Create();
  const std::string token = Lease().token;
  ASSERT_OK(store_->Cancel(id));
  EXPECT_EQ(Succeed(token, "aa").value().state, JobState::kCancelled);
  EXPECT_EQ(Get(id).artifact, "");
  EXPECT_THAT(store_->GetArtifact("aa"), StatusIs(StatusCode::kNotFound, _));
  // The worker did not hear the answer.
  EXPECT_EQ(Succeed(token, "aa").value().state, JobState::kCancelled);
}

TEST_F(JobLeaseTest, ACancelledJobWithoutWorkerEnds) {
  const std::string expired = Create();
  Lease();
  ASSERT_OK(store_->Cancel(expired));
  EXPECT_EQ(Expire()[0].state, JobState::kCancelled);
  const std::string released = Create();
  const std::string token = Lease("w", "2").token;
  ASSERT_OK(store_->Cancel(released));
  EXPECT_EQ(store_->Release(token).value().state, JobState::kCancelled);
}

TEST_F(JobLeaseTest, RepeatedCompletesAreOneEnd) {
  const std::string id = Create();
  const std::string token = Lease().token;
  ASSERT_OK(Succeed(token, "aa"));
  EXPECT_OK(Succeed(token, "aa"));
  EXPECT_THAT(Succeed(token, "bb"), StatusIs(StatusCode::kAborted, _));
  EXPECT_THAT(store_->Complete(token, JobState::kFailed, "", "", "", "late"),
              StatusIs(StatusCode::kAborted, _));
  EXPECT_THAT(store_->GetArtifact("bb"), StatusIs(StatusCode::kNotFound, _));
  EXPECT_THAT(Renew(token), StatusIs(StatusCode::kAborted, _));
  // Terminal states absorb.
  EXPECT_EQ(store_->Cancel(id).value().state, JobState::kSucceeded);
  EXPECT_THAT(States(id), ElementsAre(1, 2, 4));
}

TEST_F(JobLeaseTest, FailedJobKeepsItsError) {
  const std::string id = Create();
  ASSERT_OK(store_->Complete(Lease().token, JobState::kFailed, "", "", "", "diverged"));
  EXPECT_EQ(Get(id).state, JobState::kFailed);
  EXPECT_EQ(Get(id).error, "diverged");
}

TEST_F(JobLeaseTest, CancelRacesComplete) {
  for (int i = 0; i < 60; ++i) {
    const std::string artifact = absl::StrCat("artifact-", i);
    const std::string id = Create();
    const std::string token = Lease("w", absl::StrCat(i)).token;
    std::atomic<bool> go = false;
    std::thread canceller([&] {
      while (!go) std::this_thread::yield();
      EXPECT_OK(store_->Cancel(id));
    });
    go = true;
    ASSERT_OK_AND_ASSIGN(const JobRecord job, Succeed(token, artifact));
    canceller.join();
    const JobRecord end = Get(id);
    EXPECT_EQ(end.state, job.state);
    EXPECT_EQ(store_->GetArtifact(artifact).ok(), end.state == JobState::kSucceeded);
  }
}

TEST_F(JobLeaseTest, WorkersNeverShareAJob) {
  for (int i = 0; i < 40; ++i) Create();
  std::vector<std::string> leased[4];
  std::vector<std::thread> workers;
  for (int w = 0; w < 4; ++w) {
    workers.emplace_back([&, w] {
      for (int i = 0;; ++i) {
        const auto grant = store_->Lease(absl::StrCat("w", w), absl::StrCat(i), absl::Minutes(1));
        ASSERT_OK(grant);
        if (!grant->has_value()) return;
        leased[w].push_back((*grant)->job.id);
      }
    });
  }
  std::set<std::string> all;
  size_t count = 0;
  for (int w = 0; w < 4; ++w) {
    workers[w].join();
    count += leased[w].size();
    all.insert(leased[w].begin(), leased[w].end());
  }
  EXPECT_EQ(count, 40);
  EXPECT_EQ(all.size(), 40);
}

}  // namespace
}  // namespace quern
