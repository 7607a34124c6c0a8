#ifndef QUERN_CORE_STORE_SQLITE_JOB_STORE_H_
#define QUERN_CORE_STORE_SQLITE_JOB_STORE_H_

#include <absl/base/thread_annotations.h>

#include <memory>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/mutex.h"
#include "core/store/job_store.h"
#include "core/store/sqlite.h"

// What ReadRow reads, in its order; part of statements, which are literals.
#define QUERN_SQLITE_JOB_COLUMNS                                                             \
  "number,id,state,spec,progress,error,artifact,evaluation,create_time,start_time,end_time," \
  "attempt_count,attempts_without_progress,progress_mark,fence,lease_owner,lease_request,"   \
  "lease_token,lease_expire_time,last_sequence"

namespace quern {

struct SqliteJobStoreOptions {
  // Made when it is not there. Holds jobs.sqlite and the lock.
  std::string data_directory;
  // Error of a job that failed because its leases kept running out; opaque.
  std::string poisoned_error;
  // Each running job gets this much when the store opens: its worker could not renew meanwhile.
  absl::Duration restart_lease = absl::Seconds(30);
};

// The job store of one machine. One connection behind one mutex: the packaged SQLite has a race in
// resetting its WAL that needs two connections.
class SqliteJobStore final : public JobStore {
 public:
  // `clock` must outlive the store; time that it loses or gains moves leases, never results.
  // FAILED_PRECONDITION when another process has the directory or a newer version wrote the file;
  // DATA_LOSS when it is damaged.
  static absl::StatusOr<std::unique_ptr<SqliteJobStore>> Open(const SqliteJobStoreOptions& options,
                                                              Clock& clock);

  absl::StatusOr<JobRecord> Create(const std::string& spec, const std::string& request_id,
                                   const std::string& request_digest) override;
  absl::StatusOr<std::optional<JobRecord>> FindRequest(const std::string& request_id,
                                                       const std::string& request_digest) override;
  absl::StatusOr<JobRecord> Get(const std::string& id) override;
  absl::StatusOr<Page> List(int page_size, const std::string& page_token,
                            const std::vector<JobState>& states) override;
  absl::StatusOr<JobRecord> Cancel(const std::string& id) override;
  absl::Status Delete(const std::string& id) override;
  absl::StatusOr<std::vector<JobEventRecord>> Events(const std::string& id, int64_t after_sequence,
                                                     int limit) override;
  absl::StatusOr<std::optional<LeaseGrant>> Lease(const std::string& worker,
                                                  const std::string& request_id,
                                                  absl::Duration duration) override;
  absl::StatusOr<Renewal> Renew(const std::string& token, const std::string& progress,
                                int64_t progress_mark, const std::vector<std::string>& log_lines,
                                absl::Duration duration) override;
  absl::StatusOr<JobRecord> Release(const std::string& token) override;
  absl::StatusOr<JobRecord> CheckLease(const std::string& token) override;
  absl::StatusOr<JobRecord> Complete(const std::string& token, JobState state,
                                     const std::string& artifact,
                                     const std::string& artifact_record,
                                     const std::string& evaluation,
                                     const std::string& error) override;
  absl::StatusOr<std::vector<JobRecord>> ExpireLeases() override;
  absl::StatusOr<ArtifactRecord> GetArtifact(const std::string& id) override;
  absl::StatusOr<ArtifactPage> ListArtifacts(int page_size, const std::string& page_token) override;
  absl::Status DeleteArtifact(const std::string& id) override;
  absl::StatusOr<std::map<JobState, int64_t>> CountByState() override;
  absl::StatusOr<std::optional<absl::Time>> OldestQueued() override;

 private:
  // A row with what callers do not see.
  struct Row {
    int64_t number = 0;  // grows with creation
    JobRecord job;
    std::string lease_request;
    std::string lease_token;  // kept after the end, to know a repeated Complete
    int64_t attempts_without_progress = 0;
    int64_t progress_mark = -1;
  };

  SqliteJobStore(const SqliteJobStoreOptions& options, Clock& clock, FileDescriptor lock,
                 std::unique_ptr<SqliteDatabase> database);

  absl::Status PrepareSchema() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status RenewAllLeases() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  static Row ReadRow(const SqliteStatement& statement);
  absl::StatusOr<std::optional<Row>> FindOne(SqliteStatement statement);
  absl::StatusOr<Row> FindJob(const std::string& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::optional<Row>> FindRequestRow(const std::string& request_id,
                                                    const std::string& request_digest)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The row that `token` was made for, whether its lease lives or not; ABORTED when the token is
  // not the row's.
  absl::StatusOr<Row> FindToken(const std::string& token) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Writes everything that can change.
  absl::Status Save(const Row& row) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AppendEvent(Row& row, JobEventRecord::Kind kind, const std::string& payload)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Sets the state with its times and appends its event; does not save.
  absl::Status SetState(Row& row, JobState state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status PruneEvents(const Row& row) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status ExpireInTransaction(std::vector<JobRecord>& expired)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const SqliteJobStoreOptions options_;
  Clock& clock_;
  const FileDescriptor lock_;  // flock of the data directory, held for life
  Mutex mutex_;
  const std::unique_ptr<SqliteDatabase> database_ ABSL_PT_GUARDED_BY(mutex_);
  std::vector<JobRecord> expired_by_lease_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace quern

#endif  // QUERN_CORE_STORE_SQLITE_JOB_STORE_H_
