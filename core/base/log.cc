#include "core/base/log.h"

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <absl/time/time.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>

namespace quern {
namespace {

std::atomic<LogFormat> log_format{LogFormat::kText};
// Leaked on purpose: lines may be written while static objects are being destroyed.
std::string& Program() {
  static std::string& program = *new std::string("quern");
  return program;
}

const char* SeverityName(LogSeverity severity) {
  switch (severity) {
    case LogSeverity::INFO:
      return "INFO";
    case LogSeverity::WARNING:
      return "WARNING";
    case LogSeverity::ERROR:
      return "ERROR";
    case LogSeverity::FATAL:
      return "FATAL";
  }
  return "?";
}

// Control characters would let a name from a request forge a line or drive a terminal.
std::string OneLine(absl::string_view text) {
  std::string line(text);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return line;
}

void WriteAll(absl::string_view line) {
  while (!line.empty()) {
    const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
    if (written < 0 && errno == EINTR) continue;
    // Nowhere is left to report a standard error that cannot be written.
    if (written <= 0) return;
    line.remove_prefix(written);
  }
}

}  // namespace

void SetLogFormat(LogFormat format) { log_format = format; }
void SetLogProgram(absl::string_view program) { Program() = std::string(program); }

LogMessage::LogMessage(LogSeverity severity, const char* file, int line)
    : severity_(severity), file_(file), line_(line) {}

LogMessage::~LogMessage() {
  const std::string time =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  const char* slash = std::strrchr(file_, '/');
  const std::string where = absl::StrCat(slash == nullptr ? file_ : slash + 1, ":", line_);
  if (log_format == LogFormat::kJson) {
    nlohmann::ordered_json line = {{"time", time},
                                   {"severity", SeverityName(severity_)},
                                   {"program", Program()},
                                   {"message", stream_.str()},
                                   {"source", where}};
    WriteAll(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  } else {
    WriteAll(absl::StrCat(time, " ", SeverityName(severity_), " ", Program(), " ",
                          OneLine(stream_.str()), " [", where, "]\n"));
  }
  if (severity_ == LogSeverity::FATAL) std::abort();
}

}  // namespace quern
