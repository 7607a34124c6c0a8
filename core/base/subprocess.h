#ifndef QUERN_CORE_BASE_SUBPROCESS_H_
#define QUERN_CORE_BASE_SUBPROCESS_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/file.h"

namespace quern {

// How a process ended.
struct ExitStatus {
  int exit_code = 0;  // when it exited by itself
  int signal = 0;     // the signal that ended it, or 0
  bool success() const { return exit_code == 0 && signal == 0; }
  // "exit code 3" or "signal 9 (Killed)".
  std::string ToString() const;
};

// A child process, started without a shell. It is killed (SIGKILL) when this object or the thread
// that started it ends before it does. Thread-compatible; Signal may be called from any thread.
class Subprocess {
 public:
  struct Options {
    std::vector<std::string> argv;  // argv[0]: path of the program
    // Added to the environment, replacing variables of the same name.
    std::vector<std::pair<std::string, std::string>> environment;
    // Give the child's standard output (error) to ReadLine (ReadErrorLine); otherwise inherited.
    bool capture_output = false;
    bool capture_error = false;
    // A process group of its own: Ctrl-C in the terminal then reaches this process alone, which
    // decides what becomes of the child.
    bool own_process_group = false;
  };

  // NOT_FOUND or PERMISSION_DENIED when the program cannot be started.
  static absl::StatusOr<std::unique_ptr<Subprocess>> Start(const Options& options);
  ~Subprocess();

  pid_t pid() const { return pid_; }

  // The next line without its end, or nothing at the end of the output. A last line without an end
  // counts. DEADLINE_EXCEEDED; RESOURCE_EXHAUSTED for a line over 16 MiB.
  absl::StatusOr<std::optional<std::string>> ReadLine(absl::Time deadline);
  absl::StatusOr<std::optional<std::string>> ReadErrorLine(absl::Time deadline);

  // NOT_FOUND when it has ended.
  absl::Status Signal(int signal);

  // Waits for the end; DEADLINE_EXCEEDED when it has not come. May be called again.
  absl::StatusOr<ExitStatus> Wait(absl::Time deadline);

 private:
  struct Pipe {
    FileDescriptor fd;
    std::string buffer;
    bool ended = false;
  };
  Subprocess() = default;
  static absl::StatusOr<std::optional<std::string>> ReadLineFrom(Pipe& pipe, absl::Time deadline);

  pid_t pid_ = -1;
  FileDescriptor pidfd_;
  Pipe output_;
  Pipe error_;
  std::optional<ExitStatus> exit_status_;
};

}  // namespace quern

#endif  // QUERN_CORE_BASE_SUBPROCESS_H_
