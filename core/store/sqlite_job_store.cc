#include "core/store/sqlite_job_store.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/store/random_id.h"

namespace quern {
namespace {

constexpr int kSchemaVersion = 1;

constexpr const char* kSchema = R"(
CREATE TABLE jobs(
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  request_id TEXT UNIQUE,
  request_digest TEXT NOT NULL,
  spec BLOB NOT NULL,
  state INTEGER NOT NULL,
  progress BLOB NOT NULL,
  error BLOB NOT NULL,
  artifact TEXT NOT NULL,
  evaluation BLOB NOT NULL,
  create_time INTEGER NOT NULL,
  start_time INTEGER,
  end_time INTEGER,
  attempt_count INTEGER NOT NULL,
  attempts_without_progress INTEGER NOT NULL,
  progress_mark INTEGER NOT NULL,
  fence INTEGER NOT NULL,
  lease_owner TEXT NOT NULL,
  lease_request TEXT NOT NULL,
  lease_token TEXT NOT NULL,
  lease_expire_time INTEGER,
  last_sequence INTEGER NOT NULL
) STRICT;
CREATE INDEX jobs_by_state ON jobs(state, number);
CREATE TABLE events(
  job INTEGER NOT NULL REFERENCES jobs(number) ON DELETE CASCADE,
  sequence INTEGER NOT NULL,
  time INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  payload BLOB NOT NULL,
  PRIMARY KEY(job, sequence)
) STRICT, WITHOUT ROWID;
CREATE INDEX events_that_age ON events(job, sequence) WHERE kind <> 1;
CREATE TABLE artifacts(
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  record BLOB NOT NULL,
  create_time INTEGER NOT NULL
) STRICT;
PRAGMA user_version = 1;
)";

// A page token names the row where the next page starts, and a check over it and the query, so that
// a token of another query or a made-up one is refused.
std::string PageCheck(absl::string_view query, int64_t before) {
  return Sha256Hex(absl::StrCat("quern page ", query, " ", before)).substr(0, 16);
}

std::string MakePageToken(absl::string_view query, int64_t before) {
  return absl::StrCat(before, ".", PageCheck(query, before));
}

absl::StatusOr<int64_t> ParsePageToken(absl::string_view query, const std::string& token) {
  if (token.empty()) return INT64_MAX;
  const std::vector<std::string> parts = absl::StrSplit(token, '.');
  int64_t before = 0;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &before) ||
      MakePageToken(query, before) != token) {
    return absl::InvalidArgumentError(
        "page_token: not a token of this list; pass next_page_token unchanged and keep the other "
        "fields of the request");
  }
  return before;
}

// flock, with the owner's process id in the file for the message of whoever comes second.
absl::StatusOr<FileDescriptor> LockDirectory(const std::string& directory) {
  const std::string path = directory + "/lock";
  FileDescriptor fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (fd.get() < 0) return absl::ErrnoToStatus(errno, absl::StrCat("opening ", path));
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return absl::ErrnoToStatus(errno, absl::StrCat("locking ", path));
    char owner[16] = {};
    const ssize_t size = pread(fd.get(), owner, sizeof(owner) - 1, 0);
    return absl::FailedPreconditionError(
        absl::StrCat("data directory ", directory, " is in use by process ",
                     size > 0 ? owner : "(unknown)", "; stop it or choose another directory"));
  }
  const std::string pid = std::to_string(getpid());
  if (ftruncate(fd.get(), 0) != 0 ||
      pwrite(fd.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return absl::ErrnoToStatus(errno, absl::StrCat("writing ", path));
  }
  return fd;
}

}  // namespace

bool IsTerminal(JobState state) {
  return state == JobState::kSucceeded || state == JobState::kFailed ||
         state == JobState::kCancelled;
}

absl::StatusOr<std::unique_ptr<SqliteJobStore>> SqliteJobStore::Open(
    const SqliteJobStoreOptions& options, Clock& clock) {
  RETURN_IF_ERROR(CreateDirectories(options.data_directory));
  ASSIGN_OR_RETURN(FileDescriptor lock, LockDirectory(options.data_directory));
  ASSIGN_OR_RETURN(std::unique_ptr<SqliteDatabase> database,
                   SqliteDatabase::Open(options.data_directory + "/jobs.sqlite"));
  // The names of new files must survive a power cut too.
  RETURN_IF_ERROR(SyncDirectory(options.data_directory));
  std::unique_ptr<SqliteJobStore> store(
      new SqliteJobStore(options, clock, std::move(lock), std::move(database)));
  MutexLock hold(&store->mutex_);
  RETURN_IF_ERROR(store->PrepareSchema());
  RETURN_IF_ERROR(store->RenewAllLeases());
  return store;
}

SqliteJobStore::SqliteJobStore(const SqliteJobStoreOptions& options, Clock& clock,
                               FileDescriptor lock, std::unique_ptr<SqliteDatabase> database)
    : options_(options), clock_(clock), lock_(std::move(lock)), database_(std::move(database)) {}

absl::Status SqliteJobStore::PrepareSchema() {
  SqliteTransaction transaction(*database_);
  RETURN_IF_ERROR(transaction.Begin());
  int64_t version = 0;
  {
    SqliteStatement statement = database_->Prepare("PRAGMA user_version");
    ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (row) version = statement.GetInt(0);
  }
  if (version > kSchemaVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(options_.data_directory, "/jobs.sqlite has schema version ", version,
                     ", written by a newer quern-jobs; this one knows up to ", kSchemaVersion));
  }
  if (version == 0) RETURN_IF_ERROR(database_->Execute(kSchema));
  return transaction.Commit();
}

absl::Status SqliteJobStore::RenewAllLeases() {
  return database_->Prepare("UPDATE jobs SET lease_expire_time=? WHERE state IN (2,3)")
      .Time(clock_.Now() + options_.restart_lease)
      .Run();
}

SqliteJobStore::Row SqliteJobStore::ReadRow(const SqliteStatement& statement) {
  Row row;
  JobRecord& job = row.job;
  int column = 0;
  row.number = statement.GetInt(column++);
  job.id = statement.GetString(column++);
  job.state = static_cast<JobState>(statement.GetInt(column++));
  job.spec = statement.GetString(column++);
  job.progress = statement.GetString(column++);
  job.error = statement.GetString(column++);
  job.artifact = statement.GetString(column++);
  job.evaluation = statement.GetString(column++);
  job.create_time = statement.GetTime(column++);
  job.start_time = statement.GetTime(column++);
  job.end_time = statement.GetTime(column++);
  job.attempt_count = static_cast<int>(statement.GetInt(column++));
  row.attempts_without_progress = statement.GetInt(column++);
  row.progress_mark = statement.GetInt(column++);
  job.fence = statement.GetInt(column++);
  job.lease_owner = statement.GetString(column++);
  row.lease_request = statement.GetString(column++);
  row.lease_token = statement.GetString(column++);
  job.lease_expire_time = statement.GetTime(column++);
  job.last_sequence = statement.GetInt(column++);
  return row;
}

absl::StatusOr<std::optional<SqliteJobStore::Row>> SqliteJobStore::FindOne(
    SqliteStatement statement) {
  ASSIGN_OR_RETURN(const bool found, statement.Step());
  if (!found) return std::nullopt;
  return ReadRow(statement);
}

absl::StatusOr<SqliteJobStore::Row> SqliteJobStore::FindJob(const std::string& id) {
  ASSIGN_OR_RETURN(
      std::optional<Row> row,
      FindOne(
          std::move(database_->Prepare("SELECT " QUERN_SQLITE_JOB_COLUMNS " FROM jobs WHERE id=?")
                        .Text(id))));
  if (!row.has_value()) return absl::NotFoundError(absl::StrCat("no job '", id, "'"));
  return *std::move(row);
}

absl::StatusOr<std::optional<SqliteJobStore::Row>> SqliteJobStore::FindRequestRow(
    const std::string& request_id, const std::string& request_digest) {
  if (request_id.empty()) return std::nullopt;
  ASSIGN_OR_RETURN(
      std::optional<Row> row,
      FindOne(std::move(
          database_->Prepare("SELECT " QUERN_SQLITE_JOB_COLUMNS " FROM jobs WHERE request_id=?")
              .Text(request_id))));
  if (!row.has_value()) return std::nullopt;
  SqliteStatement same = database_->Prepare("SELECT request_digest FROM jobs WHERE number=?");
  ASSIGN_OR_RETURN(const bool found, same.Int(row->number).Step());
  if (!found || same.GetString(0) != request_digest) {
    return absl::AlreadyExistsError(absl::StrCat("request_id '", request_id, "' was used for job '",
                                                 row->job.id,
                                                 "', which was asked for differently"));
  }
  return row;
}

absl::Status SqliteJobStore::Save(const Row& row) {
  const JobRecord& job = row.job;
  return database_
      ->Prepare(
          "UPDATE jobs SET state=?,progress=?,error=?,artifact=?,evaluation=?,start_time=?,"
          "end_time=?,attempt_count=?,attempts_without_progress=?,progress_mark=?,fence=?,"
          "lease_owner=?,lease_request=?,lease_token=?,lease_expire_time=?,last_sequence=? "
          "WHERE number=?")
      .Int(static_cast<int64_t>(job.state))
      .Blob(job.progress)
      .Blob(job.error)
      .Text(job.artifact)
      .Blob(job.evaluation)
      .Time(job.start_time)
      .Time(job.end_time)
      .Int(job.attempt_count)
      .Int(row.attempts_without_progress)
      .Int(row.progress_mark)
      .Int(job.fence)
      .Text(job.lease_owner)
      .Text(row.lease_request)
      .Text(row.lease_token)
      .Time(job.lease_expire_time)
      .Int(job.last_sequence)
      .Int(row.number)
      .Run();
}

absl::Status SqliteJobStore::AppendEvent(Row& row, JobEventRecord::Kind kind,
                                         const std::string& payload) {
  return database_->Prepare("INSERT INTO events(job,sequence,time,kind,payload) VALUES(?,?,?,?,?)")
      .Int(row.number)
      .Int(++row.job.last_sequence)
      .Time(clock_.Now())
      .Int(static_cast<int64_t>(kind))
      .Blob(payload)
      .Run();
}

absl::Status SqliteJobStore::SetState(Row& row, JobState state) {
  JobRecord& job = row.job;
  job.state = state;
  const absl::Time now = clock_.Now();
  if (state == JobState::kRunning && job.start_time == absl::InfinitePast()) job.start_time = now;
  if (IsTerminal(state)) job.end_time = now;
  if (state != JobState::kRunning && state != JobState::kCancelling) {
    job.lease_expire_time = absl::InfinitePast();
  }
  return AppendEvent(row, JobEventRecord::Kind::kState, std::to_string(static_cast<int>(state)));
}

absl::Status SqliteJobStore::PruneEvents(const Row& row) {
  return database_
      ->Prepare(
          "DELETE FROM events WHERE job=?1 AND kind<>1 AND sequence<="
          "(SELECT sequence FROM events WHERE job=?1 AND kind<>1 "
          "ORDER BY sequence DESC LIMIT 1 OFFSET ?2)")
      .Int(row.number)
      .Int(kKeptEvents)
      .Run();
}

absl::StatusOr<JobRecord> SqliteJobStore::Create(const std::string& spec,
                                                 const std::string& request_id,
                                                 const std::string& request_digest) {
  MutexLock lock(&mutex_);
  SqliteTransaction transaction(*database_);
  RETURN_IF_ERROR(transaction.Begin());
  ASSIGN_OR_RETURN(std::optional<Row> known, FindRequestRow(request_id, request_digest));
  if (known.has_value()) return std::move(known->job);
  const std::string id = RandomHex(8);
  RETURN_IF_ERROR(
      database_
          ->Prepare(
              "INSERT INTO jobs(id,request_id,request_digest,spec,state,progress,error,artifact,"
              "evaluation,create_time,attempt_count,attempts_without_progress,progress_mark,fence,"
              "lease_owner,lease_request,lease_token,last_sequence) "
              "VALUES(?,?,?,?,1,x'',x'','',x'',?,0,0,-1,0,'','','',0)")
          .Text(id)
          .TextOrNull(request_id)
          .Text(request_digest)
          .Blob(spec)
          .Time(clock_.Now())
          .Run());
  ASSIGN_OR_RETURN(Row row, FindJob(id));
  RETURN_IF_ERROR(SetState(row, JobState::kQueued));
  RETURN_IF_ERROR(Save(row));
  RETURN_IF_ERROR(transaction.Commit());
  return std::move(row.job);
}

absl::StatusOr<std::optional<JobRecord>> SqliteJobStore::FindRequest(
    const std::string& request_id, const std::string& request_digest) {
  MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(std::optional<Row> row, FindRequestRow(request_id, request_digest));
  if (!row.has_value()) return std::nullopt;
  return std::move(row->job);
}

absl::StatusOr<JobRecord> SqliteJobStore::Get(const std::string& id) {
  MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(Row row, FindJob(id));
  return std::move(row.job);
}

absl::StatusOr<JobStore::Page> SqliteJobStore::List(int page_size, const std::string& page_token,
                                                    const std::vector<JobState>& states) {
  int64_t mask = 0;
  for (JobState state : states) mask |= int64_t{1} << static_cast<int>(state);
  if (states.empty()) mask = -1;
  const std::string query = absl::StrCat("jobs ", mask);
  ASSIGN_OR_RETURN(const int64_t before, ParsePageToken(query, page_token));
  MutexLock lock(&mutex_);
  SqliteStatement statement = database_->Prepare("SELECT " QUERN_SQLITE_JOB_COLUMNS
                                                 " FROM jobs WHERE number<? AND (?>>state)&1 "
                                                 "ORDER BY number DESC LIMIT ?");
  statement.Int(before).Int(mask).Int(int64_t{page_size} + 1);
  Page page;
  int64_t last = 0;
  while (true) {
    ASSIGN_OR_RETURN(const bool found, statement.Step());
    if (!found) break;
    if (static_cast<int>(page.jobs.size()) == page_size) {
      page.next_page_token = MakePageToken(query, last);
      break;
    }
    Row row = ReadRow(statement);
    last = row.number;
    page.jobs.push_back(std::move(row.job));
  }
  return page;
}

absl::StatusOr<JobRecord> SqliteJobStore::Cancel(const std::string& id) {
  MutexLock lock(&mutex_);
  SqliteTransaction transaction(*database_);
  RETURN_IF_ERROR(transaction.Begin());
  ASSIGN_OR_RETURN(Row row, FindJob(id));
  if (row.job.state == JobState::kQueued) {
    RETURN_IF_ERROR(SetState(row, JobState::kCancelled));
  } else if (row.job.state == JobState::kRunning) {
    RETURN_IF_ERROR(SetState(row, JobState::kCancelling));
  } else {
    return std::move(row.job);
  }
  RETURN_IF_ERROR(Save(row));
  RETURN_IF_ERROR(transaction.Commit());
  return std::move(row.job);
}

absl::Status SqliteJobStore::Delete(const std::string& id) {
  MutexLock lock(&mutex_);
  SqliteTransaction transaction(*database_);
  RETURN_IF_ERROR(transaction.Begin());
  ASSIGN_OR_RETURN(const Row row, FindJob(id));
  if (!IsTerminal(row.job.state)) {
    return absl::FailedPreconditionError(
        absl::StrCat("job '", id, "' has not ended; cancel it first"));
  }
  RETURN_IF_ERROR(database_->Prepare("DELETE FROM jobs WHERE number=?").Int(row.number).Run());
  return transaction.Commit();
}

absl::StatusOr<std::vector<JobEventRecord>> SqliteJobStore::Events(const std::string& id,
                                                                   int64_t after_sequence,
                                                                   int limit) {
  MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const Row row, FindJob(id));
  SqliteStatement statement = database_->Prepare(
      "SELECT sequence,time,kind,payload FROM events WHERE job=? AND sequence>? "
      "ORDER BY sequence LIMIT ?");
  statement.Int(row.number).Int(after_sequence).Int(limit);
  std::vector<JobEventRecord> events;
  while (true) {
    ASSIGN_OR_RETURN(const bool found, statement.Step());
    if (!found) return events;
    JobEventRecord event;
    event.sequence = statement.GetInt(0);
    event.time = statement.GetTime(1);
    event.kind = static_cast<JobEventRecord::Kind>(statement.GetInt(2));
    event.payload = statement.GetString(3);
    events.push_back(std::move(event));
  }
}

absl::StatusOr<JobStore::ArtifactRecord> SqliteJobStore::GetArtifact(const std::string& id) {
  MutexLock lock(&mutex_);
  SqliteStatement statement =
      database_->Prepare("SELECT id,record,create_time FROM artifacts WHERE id=?");
  ASSIGN_OR_RETURN(const bool found, statement.Text(id).Step());
  if (!found) return absl::NotFoundError(absl::StrCat("no artifact '", id, "'"));
  return ArtifactRecord{statement.GetString(0), statement.GetString(1), statement.GetTime(2)};
}

absl::StatusOr<JobStore::ArtifactPage> SqliteJobStore::ListArtifacts(
    int page_size, const std::string& page_token) {
  ASSIGN_OR_RETURN(const int64_t before, ParsePageToken("artifacts", page_token));
  MutexLock lock(&mutex_);
  SqliteStatement statement = database_->Prepare(
      "SELECT number,id,record,create_time FROM artifacts WHERE number<? "
      "ORDER BY number DESC LIMIT ?");
  statement.Int(before).Int(int64_t{page_size} + 1);
  ArtifactPage page;
  int64_t last = 0;
  while (true) {
    ASSIGN_OR_RETURN(const bool found, statement.Step());
    if (!found) break;
    if (static_cast<int>(page.artifacts.size()) == page_size) {
      page.next_page_token = MakePageToken("artifacts", last);
      break;
    }
    last = statement.GetInt(0);
    page.artifacts.push_back(
        {statement.GetString(1), statement.GetString(2), statement.GetTime(3)});
  }
  return page;
}

absl::Status SqliteJobStore::DeleteArtifact(const std::string& id) {
  MutexLock lock(&mutex_);
  RETURN_IF_ERROR(database_->Prepare("DELETE FROM artifacts WHERE id=?").Text(id).Run());
  if (database_->changes() == 0) return absl::NotFoundError(absl::StrCat("no artifact '", id, "'"));
  return absl::OkStatus();
}

absl::StatusOr<std::map<JobState, int64_t>> SqliteJobStore::CountByState() {
  MutexLock lock(&mutex_);
  SqliteStatement statement = database_->Prepare("SELECT state,COUNT(*) FROM jobs GROUP BY state");
  std::map<JobState, int64_t> counts;
  while (true) {
    ASSIGN_OR_RETURN(const bool found, statement.Step());
    if (!found) return counts;
    counts[static_cast<JobState>(statement.GetInt(0))] = statement.GetInt(1);
  }
}

absl::StatusOr<std::optional<absl::Time>> SqliteJobStore::OldestQueued() {
  MutexLock lock(&mutex_);
  SqliteStatement statement =
      database_->Prepare("SELECT create_time FROM jobs WHERE state=1 ORDER BY number LIMIT 1");
  ASSIGN_OR_RETURN(const bool found, statement.Step());
  if (!found) return std::nullopt;
  return statement.GetTime(0);
}

}  // namespace quern
