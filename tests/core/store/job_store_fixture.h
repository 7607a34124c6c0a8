#ifndef QUERN_TESTS_CORE_STORE_JOB_STORE_FIXTURE_H_
#define QUERN_TESTS_CORE_STORE_JOB_STORE_FIXTURE_H_

#include <memory>
#include <string>
#include <vector>

#include "core/store/sqlite_job_store.h"
#include "tests/support/fake_clock.h"
#include "tests/support/scratch_directory.h"
#include "tests/support/status_matchers.h"

namespace quern {

class JobStoreTest : public testing::Test {
 protected:
  JobStoreTest() { Open(); }

  // Also again: closes first, as a restart does.
  void Open() {
    store_.reset();
    absl::StatusOr<std::unique_ptr<SqliteJobStore>> store = SqliteJobStore::Open(
        {.data_directory = directory_.path(), .poisoned_error = "poisoned"}, clock_);
    ASSERT_OK(store);
    store_ = *std::move(store);
  }

  std::string Create(const std::string& spec = "spec") {
    return store_->Create(spec, "", "").value().id;
  }
  JobRecord Get(const std::string& id) { return store_->Get(id).value(); }
  LeaseGrant Lease(const std::string& worker = "worker-a", const std::string& request = "request-1",
                   absl::Duration duration = absl::Minutes(1)) {
    return store_->Lease(worker, request, duration).value().value();
  }
  absl::StatusOr<JobRecord> Succeed(const std::string& token, const std::string& artifact = "aa") {
    return store_->Complete(token, JobState::kSucceeded, artifact, "record", "evaluation", "");
  }
  // States of the job's kState events, in order.
  std::vector<int> States(const std::string& id) {
    std::vector<int> states;
    const std::vector<JobEventRecord> events = store_->Events(id, 0, 10000).value();
    for (const JobEventRecord& event : events) {
      if (event.kind == JobEventRecord::Kind::kState) states.push_back(std::stoi(event.payload));
    }
    return states;
  }

  FakeClock clock_;
  ScratchDirectory directory_;
  std::unique_ptr<SqliteJobStore> store_;
};

}  // namespace quern

#endif  // QUERN_TESTS_CORE_STORE_JOB_STORE_FIXTURE_H_
