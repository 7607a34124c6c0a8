#ifndef QUERN_CORE_STORE_SQLITE_H_
#define QUERN_CORE_STORE_SQLITE_H_

// SQLite behind Status: one connection, prepared statements, transactions. Only this folder uses
// it. Not thread-safe: the owner holds one mutex around everything.
//
// A failed write or fsync ends the process: the kernel may have dropped the pages, so the file on
// disk, read again at the next start, is the only truth (PostgreSQL does the same). A full disk is
// no such failure: SQLite rolls back and the error is RESOURCE_EXHAUSTED.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <sqlite3.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

namespace quern {

class SqliteDatabase;

// One run of a prepared statement; given back when destroyed. Parameters are bound in order. An
// error of Bind is reported by Step.
class SqliteStatement {
 public:
  SqliteStatement(SqliteStatement&& other) noexcept;
  SqliteStatement& operator=(SqliteStatement&&) = delete;
  ~SqliteStatement();

  SqliteStatement& Int(int64_t value);
  SqliteStatement& Text(absl::string_view value);  // UTF-8
  // Null when empty, so that UNIQUE ignores it.
  SqliteStatement& TextOrNull(absl::string_view value);
  SqliteStatement& Blob(absl::string_view value);
  // Microseconds since 1970; null for an infinite time.
  SqliteStatement& Time(absl::Time value);

  // True when there is a row to read, false at the end.
  absl::StatusOr<bool> Step();
  // Runs a statement that gives no rows.
  absl::Status Run();

  int64_t GetInt(int column) const;
  std::string GetString(int column) const;  // text or blob; empty for null
  absl::Time GetTime(int column) const;     // infinite past for null

 private:
  friend class SqliteDatabase;
  SqliteStatement(SqliteDatabase* database, sqlite3_stmt* statement, absl::Status status)
      : database_(database), statement_(statement), status_(std::move(status)) {}
  void Note(int code);

  SqliteDatabase* database_;
  sqlite3_stmt* statement_;
  int next_parameter_ = 1;
  absl::Status status_;
};

class SqliteDatabase {
 public:
  // Opens or makes the file in WAL mode with synchronous=FULL, the one setting that lost no
  // acknowledged row in power cuts. DATA_LOSS when it is damaged.
  static absl::StatusOr<std::unique_ptr<SqliteDatabase>> Open(const std::string& path);
  ~SqliteDatabase();
  SqliteDatabase(const SqliteDatabase&) = delete;
  SqliteDatabase& operator=(const SqliteDatabase&) = delete;

  // The statement is compiled once and kept. `sql` is a literal: values come in by Bind only.
  SqliteStatement Prepare(const char* sql);
  // One or more statements of the schema.
  absl::Status Execute(const char* sql);
  // How many rows the last statement changed.
  int64_t changes() const;

 private:
  friend class SqliteStatement;
  SqliteDatabase(sqlite3* handle, std::string path) : handle_(handle), path_(std::move(path)) {}
  absl::Status ToStatus(int code) const;

  sqlite3* handle_;
  const std::string path_;
  std::map<std::string, sqlite3_stmt*> statements_;
};

// BEGIN IMMEDIATE; rolled back when destroyed without a successful Commit.
class SqliteTransaction {
 public:
  explicit SqliteTransaction(SqliteDatabase& database) : database_(database) {}
  ~SqliteTransaction();
  SqliteTransaction(const SqliteTransaction&) = delete;
  SqliteTransaction& operator=(const SqliteTransaction&) = delete;

  absl::Status Begin();
  absl::Status Commit();

 private:
  SqliteDatabase& database_;
  bool open_ = false;
};

}  // namespace quern

#endif  // QUERN_CORE_STORE_SQLITE_H_
