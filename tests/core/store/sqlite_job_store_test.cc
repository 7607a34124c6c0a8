#include "core/store/sqlite_job_store.h"

#include <absl/strings/str_cat.h>
#include <sqlite3.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/core/store/job_store_fixture.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(JobStoreTest, CreatedJobIsQueuedWithWhatItWasGiven) {
  const std::string spec("binary\0spec", 11);
  ASSERT_OK_AND_ASSIGN(const JobRecord created, store_->Create(spec, "", ""));
  const JobRecord job = Get(created.id);
  EXPECT_EQ(job.state, JobState::kQueued);
  EXPECT_EQ(job.spec, spec);
  EXPECT_EQ(job.create_time, clock_.Now());
  EXPECT_EQ(job.start_time, absl::InfinitePast());
  EXPECT_EQ(job.attempt_count, 0);
  EXPECT_EQ(job.last_sequence, 1);
  EXPECT_THAT(States(job.id), ElementsAre(1));
}

TEST_F(JobStoreTest, SameRequestGivesTheSameJob) {
  ASSERT_OK_AND_ASSIGN(const JobRecord first, store_->Create("spec", "id-1", "digest"));
  ASSERT_OK_AND_ASSIGN(const JobRecord again, store_->Create("other spec", "id-1", "digest"));
  EXPECT_EQ(again.id, first.id);
  EXPECT_EQ(again.spec, "spec");
  ASSERT_OK_AND_ASSIGN(const std::optional<JobRecord> found, store_->FindRequest("id-1", "digest"));
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->id, first.id);
  EXPECT_THAT(store_->Create("spec", "id-1", "other digest"),
              StatusIs(StatusCode::kAlreadyExists, AllOf(HasSubstr("id-1"), HasSubstr(first.id))));
  EXPECT_THAT(store_->FindRequest("id-1", "other digest"),
              StatusIs(StatusCode::kAlreadyExists, HasSubstr("id-1")));
  EXPECT_FALSE(store_->FindRequest("id-2", "digest").value().has_value());
  // Without a request id every call makes a job.
  EXPECT_NE(Create(), Create());
}

TEST_F(JobStoreTest, UnknownJobIsNotFound) {
  EXPECT_THAT(store_->Get("nope"), StatusIs(StatusCode::kNotFound, HasSubstr("'nope'")));
  EXPECT_THAT(store_->Cancel("nope"), StatusIs(StatusCode::kNotFound, HasSubstr("'nope'")));
  EXPECT_THAT(store_->Delete("nope"), StatusIs(StatusCode::kNotFound, HasSubstr("'nope'")));
  EXPECT_THAT(store_->Events("nope", 0, 1), StatusIs(StatusCode::kNotFound, HasSubstr("'nope'")));
}

TEST_F(JobStoreTest, ListGoesThroughPagesNewestFirst) {
  std::vector<std::string> ids;
  for (int i = 0; i < 5; ++i) ids.insert(ids.begin(), Create());
  std::vector<std::string> listed;
  std::string token;
  int num_pages = 0;
  do {
    ASSERT_OK_AND_ASSIGN(const JobStore::Page page, store_->List(2, token, {}));
    for (const JobRecord& job : page.jobs) listed.push_back(job.id);
    token = page.next_page_token;
    ++num_pages;
  } while (!token.empty());
  EXPECT_EQ(listed, ids);
  EXPECT_EQ(num_pages, 3);
}

TEST_F(JobStoreTest, ListByState) {
  const std::string running = Create();
  Lease();
  const std::string queued = Create();
  const std::string cancelled = Create();
  ASSERT_OK(store_->Cancel(cancelled));
  ASSERT_OK_AND_ASSIGN(const JobStore::Page page,
                       store_->List(10, "", {JobState::kRunning, JobState::kCancelled}));
  ASSERT_EQ(page.jobs.size(), 2);
  EXPECT_EQ(page.jobs[0].id, cancelled);
  EXPECT_EQ(page.jobs[1].id, running);
  EXPECT_EQ(page.next_page_token, "");
}

TEST_F(JobStoreTest, PageTokenOfAnotherQueryIsRefused) {
  Create();
  Create();
  ASSERT_OK_AND_ASSIGN(const JobStore::Page page, store_->List(1, "", {}));
  ASSERT_NE(page.next_page_token, "");
  for (const std::string& token :
       {std::string("1"), std::string("x"), std::string("1."), std::string("2.0123456789abcdef"),
        page.next_page_token + "0", std::string("' OR 1=1 --")}) {
    EXPECT_THAT(store_->List(1, token, {}),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("page_token")))
        << token;
  }
  EXPECT_THAT(store_->List(1, page.next_page_token, {JobState::kQueued}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("page_token")));
  EXPECT_THAT(store_->ListArtifacts(1, page.next_page_token),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("page_token")));
}

TEST_F(JobStoreTest, CancelOfAQueuedJobEndsIt) {
  const std::string id = Create();
  EXPECT_EQ(store_->Cancel(id).value().state, JobState::kCancelled);
  EXPECT_EQ(Get(id).end_time, clock_.Now());
  // Again: unchanged, and no second event.
  EXPECT_EQ(store_->Cancel(id).value().state, JobState::kCancelled);
  EXPECT_THAT(States(id), ElementsAre(1, 6));
  EXPECT_EQ(store_->Lease("w", "r", absl::Minutes(1)).value().has_value(), false);
}

TEST_F(JobStoreTest, DeleteTakesEndedJobsOnly) {
  const std::string id = Create();
  EXPECT_THAT(store_->Delete(id), StatusIs(StatusCode::kFailedPrecondition, HasSubstr(id)));
  const LeaseGrant grant = Lease();
  EXPECT_THAT(store_->Delete(id), StatusIs(StatusCode::kFailedPrecondition, HasSubstr(id)));
  ASSERT_OK(Succeed(grant.token, "aa"));
  EXPECT_OK(store_->Delete(id));
  EXPECT_THAT(store_->Get(id), StatusIs(StatusCode::kNotFound, HasSubstr(id)));
  // The artifact stays.
  EXPECT_OK(store_->GetArtifact("aa"));
}

TEST_F(JobStoreTest, StateChangesAreKeptAndOtherEventsAreBounded) {
  const std::string id = Create();
  const std::string token = Lease().token;
  const std::vector<std::string> lines(105, "line");
  for (int i = 0; i < 10; ++i) {
    ASSERT_OK(store_->Renew(token, absl::StrCat("progress ", i), i, lines, absl::Minutes(1)));
  }
  ASSERT_OK(Succeed(token));
  ASSERT_OK_AND_ASSIGN(const std::vector<JobEventRecord> events, store_->Events(id, 0, 10000));
  EXPECT_EQ(events.size(), JobStore::kKeptEvents + 3);
  EXPECT_THAT(States(id), ElementsAre(1, 2, 4));
  // 1,060 events, of which the oldest 60 went.
  EXPECT_EQ(events[2].sequence, 63);
  for (size_t i = 1; i < events.size(); ++i) EXPECT_LT(events[i - 1].sequence, events[i].sequence);
  EXPECT_EQ(events.back().sequence, Get(id).last_sequence);
  EXPECT_EQ(store_->Events(id, events.back().sequence, 10).value().size(), 0);
  EXPECT_EQ(store_->Events(id, 0, 7).value().size(), 7);
}

TEST_F(JobStoreTest, EverythingIsThereAfterARestart) {
  const std::string done = Create("a");
  ASSERT_OK(Succeed(Lease().token, "aa"));
  const std::string queued = Create("b");
  ASSERT_OK(store_->Create("c", "id-1", "digest"));
  Open();
  EXPECT_EQ(Get(done).state, JobState::kSucceeded);
  EXPECT_EQ(Get(done).artifact, "aa");
  EXPECT_EQ(Get(done).evaluation, "evaluation");
  EXPECT_EQ(Get(queued).spec, "b");
  EXPECT_THAT(States(done), ElementsAre(1, 2, 4));
  EXPECT_EQ(store_->GetArtifact("aa").value().record, "record");
  EXPECT_EQ(store_->Create("c", "id-1", "digest").value().spec, "c");
  EXPECT_EQ(store_->List(10, "", {}).value().jobs.size(), 3);
}

TEST_F(JobStoreTest, ArtifactsOfTwoJobsAreOne) {
  Create();
  Create();
  ASSERT_OK(Succeed(Lease("w", "1").token, "aa"));
  clock_.Advance(absl::Hours(1));
  ASSERT_OK(Succeed(Lease("w", "2").token, "aa"));
  ASSERT_OK_AND_ASSIGN(const JobStore::ArtifactPage page, store_->ListArtifacts(10, ""));
  ASSERT_EQ(page.artifacts.size(), 1);
  EXPECT_EQ(page.artifacts[0].create_time, clock_.Now() - absl::Hours(1));
  EXPECT_OK(store_->DeleteArtifact("aa"));
  EXPECT_THAT(store_->DeleteArtifact("aa"), StatusIs(StatusCode::kNotFound, HasSubstr("'aa'")));
}

TEST_F(JobStoreTest, CountsByState) {
  Create();
  Create();
  Lease();
  ASSERT_OK_AND_ASSIGN(const auto counts, store_->CountByState());
  EXPECT_THAT(counts, ElementsAre(testing::Pair(JobState::kQueued, 1),
                                  testing::Pair(JobState::kRunning, 1)));
}

TEST_F(JobStoreTest, KnowsTheOldestThatWaits) {
  EXPECT_EQ(store_->OldestQueued().value(), std::nullopt);
  const absl::Time first = clock_.Now();
  Create();
  clock_.Advance(absl::Minutes(1));
  Create();
  EXPECT_EQ(store_->OldestQueued().value(), first);
  Lease();
  EXPECT_EQ(store_->OldestQueued().value(), first + absl::Minutes(1));
}

TEST_F(JobStoreTest, ASecondStoreOnTheDirectoryIsRefused) {
  EXPECT_THAT(SqliteJobStore::Open({.data_directory = directory_.path()}, clock_),
              StatusIs(StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("in use by process"), HasSubstr(directory_.path()),
                             HasSubstr(std::to_string(getpid())))));
}

TEST_F(JobStoreTest, ADamagedFileIsRefused) {
  Create();
  store_.reset();
  const std::string path = directory_ / "jobs.sqlite";
  std::filesystem::remove(path + "-wal");
  std::ofstream(path, std::ios::trunc | std::ios::binary) << std::string(8192, 'x');
  EXPECT_THAT(SqliteJobStore::Open({.data_directory = directory_.path()}, clock_),
              StatusIs(StatusCode::kDataLoss, HasSubstr(path)));
}

TEST_F(JobStoreTest, AFileOfANewerVersionIsRefused) {
  store_.reset();
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open((directory_ / "jobs.sqlite").c_str(), &database), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(database, "PRAGMA user_version=2", nullptr, nullptr, nullptr), SQLITE_OK);
  ASSERT_EQ(sqlite3_close(database), SQLITE_OK);
  EXPECT_THAT(SqliteJobStore::Open({.data_directory = directory_.path()}, clock_),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("newer")));
}

TEST_F(JobStoreTest, TheFileIsInTheModeThatLosesNothing) {
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open_v2((directory_ / "jobs.sqlite").c_str(), &database, SQLITE_OPEN_READONLY,
                            nullptr),
            SQLITE_OK);
  std::string mode;
  sqlite3_exec(
      database, "PRAGMA journal_mode",
      [](void* out, int, char** values, char**) {
        *static_cast<std::string*>(out) = values[0];
        return 0;
      },
      &mode, nullptr);
  EXPECT_EQ(mode, "wal");
  sqlite3_close(database);
}

}  // namespace
}  // namespace quern
