#include "core/store/sqlite.h"

#include <absl/strings/str_cat.h>

#include <utility>

#include "core/base/log.h"
#include "core/base/status_macros.h"

namespace quern {
namespace {

bool IsReadError(int extended_code) {
  return extended_code == SQLITE_IOERR_READ || extended_code == SQLITE_IOERR_SHORT_READ ||
         extended_code == SQLITE_IOERR_NOMEM;
}

}  // namespace

SqliteStatement::SqliteStatement(SqliteStatement&& other) noexcept
    : database_(other.database_),
      statement_(std::exchange(other.statement_, nullptr)),
      next_parameter_(other.next_parameter_),
      status_(std::move(other.status_)) {}

SqliteStatement::~SqliteStatement() {
  if (statement_ == nullptr) return;
  // Their results repeat the error of Step, which was reported there.
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

void SqliteStatement::Note(int code) {
  if (code != SQLITE_OK && status_.ok()) status_ = database_->ToStatus(code);
}

SqliteStatement& SqliteStatement::Int(int64_t value) {
  if (status_.ok()) Note(sqlite3_bind_int64(statement_, next_parameter_++, value));
  return *this;
}

SqliteStatement& SqliteStatement::Text(absl::string_view value) {
  if (status_.ok()) {
    Note(sqlite3_bind_text64(statement_, next_parameter_++, value.data(), value.size(),
                             SQLITE_TRANSIENT, SQLITE_UTF8));
  }
  return *this;
}

SqliteStatement& SqliteStatement::TextOrNull(absl::string_view value) {
  if (!value.empty()) return Text(value);
  if (status_.ok()) Note(sqlite3_bind_null(statement_, next_parameter_++));
  return *this;
}

SqliteStatement& SqliteStatement::Blob(absl::string_view value) {
  // A null pointer would bind NULL instead of an empty blob.
  const char* data = value.empty() ? "" : value.data();
  if (status_.ok()) {
    Note(sqlite3_bind_blob64(statement_, next_parameter_++, data, value.size(), SQLITE_TRANSIENT));
  }
  return *this;
}

SqliteStatement& SqliteStatement::Time(absl::Time value) {
  if (value != absl::InfinitePast() && value != absl::InfiniteFuture()) {
    return Int(absl::ToUnixMicros(value));
  }
  if (status_.ok()) Note(sqlite3_bind_null(statement_, next_parameter_++));
  return *this;
}

absl::StatusOr<bool> SqliteStatement::Step() {
  if (!status_.ok()) return status_;
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  status_ = database_->ToStatus(code);
  return status_;
}

absl::Status SqliteStatement::Run() {
  ASSIGN_OR_RETURN(const bool row, Step());
  CHECK(!row) << "a statement run for its effect gave a row: " << sqlite3_sql(statement_);
  return absl::OkStatus();
}

int64_t SqliteStatement::GetInt(int column) const {
  return sqlite3_column_int64(statement_, column);
}

std::string SqliteStatement::GetString(int column) const {
  const void* data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), size);
}

absl::Time SqliteStatement::GetTime(int column) const {
  if (sqlite3_column_type(statement_, column) == SQLITE_NULL) return absl::InfinitePast();
  return absl::FromUnixMicros(GetInt(column));
}

absl::StatusOr<std::unique_ptr<SqliteDatabase>> SqliteDatabase::Open(const std::string& path) {
  sqlite3* handle = nullptr;
  const int code = sqlite3_open_v2(
      path.c_str(), &handle,
      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
      nullptr);
  // A handle comes back even with an error, and has its message.
  std::unique_ptr<SqliteDatabase> database(new SqliteDatabase(handle, path));
  if (code != SQLITE_OK) return database->ToStatus(code);
  // Only the owner of the data directory's lock comes here, so waiting for others has no use.
  RETURN_IF_ERROR(
      database->Execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"
                        "PRAGMA trusted_schema=OFF;"));
  {
    SqliteStatement mode = database->Prepare("PRAGMA journal_mode");
    ASSIGN_OR_RETURN(const bool row, mode.Step());
    if (!row || mode.GetString(0) != "wal") {
      return absl::FailedPreconditionError(absl::StrCat(
          path, ": the file system has no shared memory for SQLite's WAL mode (is it NFS?); use a ",
          "local directory"));
    }
  }
  SqliteStatement check = database->Prepare("PRAGMA quick_check(1)");
  ASSIGN_OR_RETURN(const bool row, check.Step());
  if (!row || check.GetString(0) != "ok") {
    return absl::DataLossError(
        absl::StrCat(path, ": the database is damaged: ", row ? check.GetString(0) : "no answer",
                     "; restore it from a backup"));
  }
  return database;
}

SqliteDatabase::~SqliteDatabase() {
  for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  if (sqlite3_close(handle_) != SQLITE_OK) LOG(ERROR) << "database not closed path=" << path_;
}

SqliteStatement SqliteDatabase::Prepare(const char* sql) {
  sqlite3_stmt*& statement = statements_[sql];
  absl::Status status;
  if (statement == nullptr) {
    const int code =
        sqlite3_prepare_v3(handle_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
    if (code != SQLITE_OK) status = ToStatus(code);
  }
  return SqliteStatement(this, statement, std::move(status));
}

absl::Status SqliteDatabase::Execute(const char* sql) {
  const int code = sqlite3_exec(handle_, sql, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : ToStatus(code);
}

int64_t SqliteDatabase::changes() const { return sqlite3_changes64(handle_); }

absl::Status SqliteDatabase::ToStatus(int code) const {
  const std::string message =
      absl::StrCat(path_, ": ", handle_ == nullptr ? sqlite3_errstr(code) : sqlite3_errmsg(handle_),
                   " (SQLite error ", code, ")");
  const int primary = code & 0xff;
  if (primary == SQLITE_IOERR && !IsReadError(code)) {
    LOG(FATAL) << "database write failed; exiting so that the next start reads what is on disk: "
               << message;
  }
  switch (primary) {
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(message);
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return absl::FailedPreconditionError(message);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(message);
    case SQLITE_TOOBIG:
      return absl::InvalidArgumentError(message);
    default:
      return absl::InternalError(message);
  }
}

SqliteTransaction::~SqliteTransaction() {
  if (!open_) return;
  // SQLite rolls back by itself on some errors; then there is nothing left to undo.
  const absl::Status status = database_.Execute("ROLLBACK");
  if (!status.ok()) LOG(WARNING) << "rollback: " << status.message();
}

absl::Status SqliteTransaction::Begin() {
  RETURN_IF_ERROR(database_.Prepare("BEGIN IMMEDIATE").Run());
  open_ = true;
  return absl::OkStatus();
}

absl::Status SqliteTransaction::Commit() {
  RETURN_IF_ERROR(database_.Prepare("COMMIT").Run());
  open_ = false;
  return absl::OkStatus();
}

}  // namespace quern
