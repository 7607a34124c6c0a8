// The part of SqliteJobStore that grants, renews and ends leases. Each write is one transaction
// that reads the row and its token first: a token that is not the row's any more changes nothing.

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/store/random_id.h"
#include "core/store/sqlite_job_store.h"

namespace quern {
namespace {

bool HasLease(JobState state) {
  return state == JobState::kRunning || state == JobState::kCancelling;
}

absl::Status LeaseLost() {
  return absl::AbortedError(
      "the lease was lost: it ran out, or the job was leased again or has ended; stop and write "
      "nothing more");
}

}  // namespace

absl::StatusOr<SqliteJobStore::Row> SqliteJobStore::FindToken(const std::string& token) {
  // The token starts with the job's id; the rest is compared whole.
  const std::string id = token.substr(0, token.find('.'));
  absl::StatusOr<Row> row = FindJob(id);
  if (absl::IsNotFound(row.status())) return LeaseLost();
  RETURN_IF_ERROR(row.status());
  if (token.empty() || row->lease_token != token) return LeaseLost();
  return row;
}

absl::Status SqliteJobStore::ExpireInTransaction(std::vector<JobRecord>& expired) {
  while (true) {
    ASSIGN_OR_RETURN(
        std::optional<Row> row,
        FindOne(std::move(
            database_
                ->Prepare("SELECT " QUERN_SQLITE_JOB_COLUMNS
                          " FROM jobs WHERE state IN (2,3) AND lease_expire_time<? LIMIT 1")
                .Time(clock_.Now()))));
    if (!row.has_value()) return absl::OkStatus();
    row->lease_token.clear();
    row->lease_request.clear();
    if (row->job.state == JobState::kCancelling) {
      RETURN_IF_ERROR(SetState(*row, JobState::kCancelled));
    } else if (row->attempts_without_progress >= kMaxAttemptsWithoutProgress ||
               row->job.attempt_count >= kMaxAttempts) {
      row->job.error = options_.poisoned_error;
      RETURN_IF_ERROR(SetState(*row, JobState::kFailed));
    } else {
      RETURN_IF_ERROR(SetState(*row, JobState::kQueued));
    }
    RETURN_IF_ERROR(Save(*row));
    expired.push_back(std::move(row->job));
  }
}

absl::StatusOr<std::vector<JobRecord>> SqliteJobStore::ExpireLeases() {
  MutexLock lock(&mutex_);
  std::vector<JobRecord> expired;
  SqliteTransaction transaction(*database_);
  RETURN_IF_ERROR(transaction.Begin());
  RETURN_IF_ERROR(ExpireInTransaction(expired));
  RETURN_IF_ERROR(transaction.Commit());
  expired.insert(expired.begin(), std::make_move_iterator(expired_by_lease_.begin()),
                 std::make_move_iterator(expired_by_lease_.end()));
  expired_by_lease_.clear();
  return expired;
}

absl::StatusOr<std::optional<LeaseGrant>> SqliteJobStore::Lease(const std::string& worker,
                                                                const std::string& request_id,
                                                                absl::Duration duration) {
  MutexLock lock(&mutex_);
  SqliteTransaction transaction(*database_);
  RETURN_IF_ERROR(transaction.Begin());
  std::vector<JobRecord> expired;
  RETURN_IF_ERROR(ExpireInTransaction(expired));
  // A lost reply: the worker asks again and gets what it has already.
  ASSIGN_OR_RETURN(
      std::optional<Row> row,
      FindOne(std::move(database_
                            ->Prepare("SELECT " QUERN_SQLITE_JOB_COLUMNS
                                      " FROM jobs WHERE state IN (2,3) AND lease_owner=? AND "
                                      "lease_request=?")
                            .Text(worker)
                            .Text(request_id))));
  if (!row.has_value()) {
    ASSIGN_OR_RETURN(row, FindOne(database_->Prepare("SELECT " QUERN_SQLITE_JOB_COLUMNS
                                                     " FROM jobs WHERE state=1 "
                                                     "ORDER BY number LIMIT 1")));
    if (row.has_value()) {
      ++row->job.fence;
      ++row->job.attempt_count;
      ++row->attempts_without_progress;
      row->job.lease_owner = worker;
      row->lease_request = request_id;
      row->lease_token = absl::StrCat(row->job.id, ".", row->job.fence, ".", RandomHex(16));
      RETURN_IF_ERROR(SetState(*row, JobState::kRunning));
    }
  }
  if (row.has_value()) {
    row->job.lease_expire_time = clock_.Now() + duration;
    RETURN_IF_ERROR(Save(*row));
  }
  RETURN_IF_ERROR(transaction.Commit());
  expired_by_lease_.insert(expired_by_lease_.end(), std::make_move_iterator(expired.begin()),
                           std::make_move_iterator(expired.end()));
  if (!row.has_value()) return std::nullopt;
  return LeaseGrant{std::move(row->job), std::move(row->lease_token)};
}

absl::StatusOr<JobStore::Renewal> SqliteJobStore::Renew(const std::string& token,
                                                        const std::string& progress,
                                                        int64_t progress_mark,
                                                        const std::vector<std::string>& log_lines,
                                                        absl::Duration duration) {
  MutexLock lock(&mutex_);
  SqliteTransaction transaction(*database_);
  RETURN_IF_ERROR(transaction.Begin());
  ASSIGN_OR_RETURN(Row row, FindToken(token));
  if (!HasLease(row.job.state)) return LeaseLost();
  row.job.lease_expire_time = clock_.Now() + duration;
  for (const std::string& line : log_lines) {
    RETURN_IF_ERROR(AppendEvent(row, JobEventRecord::Kind::kLog, line));
  }
  if (!progress.empty() && progress != row.job.progress) {
    row.job.progress = progress;
    RETURN_IF_ERROR(AppendEvent(row, JobEventRecord::Kind::kProgress, progress));
  }
  if (progress_mark > row.progress_mark) {
    row.progress_mark = progress_mark;
    row.attempts_without_progress = 0;
  }
  RETURN_IF_ERROR(PruneEvents(row));
  RETURN_IF_ERROR(Save(row));
  RETURN_IF_ERROR(transaction.Commit());
  return Renewal{row.job.lease_expire_time, row.job.state == JobState::kCancelling};
}

absl::StatusOr<JobRecord> SqliteJobStore::Release(const std::string& token) {
  MutexLock lock(&mutex_);
  SqliteTransaction transaction(*database_);
  RETURN_IF_ERROR(transaction.Begin());
  ASSIGN_OR_RETURN(Row row, FindToken(token));
  if (!HasLease(row.job.state)) return LeaseLost();
  row.lease_token.clear();
  row.lease_request.clear();
  if (row.job.state == JobState::kCancelling) {
    RETURN_IF_ERROR(SetState(row, JobState::kCancelled));
  } else {
    --row.job.attempt_count;
    row.attempts_without_progress = std::max<int64_t>(0, row.attempts_without_progress - 1);
    RETURN_IF_ERROR(SetState(row, JobState::kQueued));
  }
  RETURN_IF_ERROR(Save(row));
  RETURN_IF_ERROR(transaction.Commit());
  return std::move(row.job);
}

absl::StatusOr<JobRecord> SqliteJobStore::CheckLease(const std::string& token) {
  MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(Row row, FindToken(token));
  if (!HasLease(row.job.state)) return LeaseLost();
  return std::move(row.job);
}

absl::StatusOr<JobRecord> SqliteJobStore::Complete(const std::string& token, JobState state,
                                                   const std::string& artifact,
                                                   const std::string& artifact_record,
                                                   const std::string& evaluation,
                                                   const std::string& error) {
  CHECK(IsTerminal(state)) << "a job cannot end in state " << static_cast<int>(state);
  MutexLock lock(&mutex_);
  SqliteTransaction transaction(*database_);
  RETURN_IF_ERROR(transaction.Begin());
  ASSIGN_OR_RETURN(Row row, FindToken(token));
  JobRecord& job = row.job;
  if (IsTerminal(job.state)) {
    // The first reply was lost. A cancel that came between decides, whatever was reported.
    const bool same =
        job.state == JobState::kCancelled || (job.state == state && job.artifact == artifact);
    if (!same) return LeaseLost();
    return std::move(job);
  }
  if (job.state == JobState::kCancelling) {
    state = JobState::kCancelled;
  } else if (state == JobState::kCancelled) {
    return absl::FailedPreconditionError(
        absl::StrCat("job '", job.id, "' was not asked to stop, so it cannot end as cancelled"));
  }
  if (state == JobState::kSucceeded) {
    job.artifact = artifact;
    job.evaluation = evaluation;
    if (!artifact.empty()) {
      RETURN_IF_ERROR(database_
                          ->Prepare("INSERT INTO artifacts(id,record,create_time) VALUES(?,?,?) "
                                    "ON CONFLICT(id) DO NOTHING")
                          .Text(artifact)
                          .Blob(artifact_record)
                          .Time(clock_.Now())
                          .Run());
    }
  } else if (state == JobState::kFailed) {
    job.error = error;
  }
  RETURN_IF_ERROR(SetState(row, state));
  RETURN_IF_ERROR(Save(row));
  RETURN_IF_ERROR(transaction.Commit());
  return std::move(job);
}

}  // namespace quern
