#ifndef QUERN_CORE_BASE_LOG_H_
#define QUERN_CORE_BASE_LOG_H_

// Logging with upstream Abseil's spelling (the packaged Abseil has no absl/log):
//
//   LOG(INFO) << "lease taken job=" << job << " worker=" << worker;
//
// A line is a state change with its subject as key=value, written once, to standard error.
// CHECK ends the process and is for our own bugs, never for input.

#include <absl/strings/string_view.h>

#include <sstream>

namespace quern {

enum class LogSeverity { INFO, WARNING, ERROR, FATAL };
enum class LogFormat { kText, kJson };

// Sets the form of every later line; kText is the default. Thread-safe.
void SetLogFormat(LogFormat format);

// The name of the program on each line, e.g. "quern-jobs". Call once, before threads start.
void SetLogProgram(absl::string_view program);

// One line in the making; written when destroyed. FATAL then aborts.
class LogMessage {
 public:
  LogMessage(LogSeverity severity, const char* file, int line);
  ~LogMessage();
  LogMessage(const LogMessage&) = delete;
  LogMessage& operator=(const LogMessage&) = delete;
  std::ostream& stream() { return stream_; }

 private:
  const LogSeverity severity_;
  const char* const file_;
  const int line_;
  std::ostringstream stream_;
};

}  // namespace quern

#define LOG(severity) \
  ::quern::LogMessage(::quern::LogSeverity::severity, __FILE__, __LINE__).stream()

#define CHECK(condition)                                                        \
  if (!(condition)) [[unlikely]]                                                \
  ::quern::LogMessage(::quern::LogSeverity::FATAL, __FILE__, __LINE__).stream() \
      << "check failed: " #condition " "

#endif  // QUERN_CORE_BASE_LOG_H_
