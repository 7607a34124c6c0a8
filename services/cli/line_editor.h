#ifndef QUERN_SERVICES_CLI_LINE_EDITOR_H_
#define QUERN_SERVICES_CLI_LINE_EDITOR_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <termios.h>

#include <memory>
#include <string>

namespace quern::cli {

// Reads messages from the terminal behind standard input, with line editing and history (libedit;
// ~/.editrc sets its keys). A message has several lines where a line ends with a backslash or
// Alt-Enter, or where several are pasted. Sets the process's character type for UTF-8. One per
// process; for one thread.
class LineEditor {
 public:
  // While it reads, `wake_fd` becoming readable ends the reading. UNAVAILABLE for a terminal that
  // cannot be used.
  static absl::StatusOr<std::unique_ptr<LineEditor>> Create(int wake_fd);
  virtual ~LineEditor() = default;

  // Takes the history of earlier sessions from `path`, a file that only its user can read, and
  // keeps it there from now on; made when it is not there. Errors of the file.
  virtual absl::Status KeepHistory(const std::string& path) = 0;

  struct Input {
    enum class Kind { kText, kWoken, kEnd };  // kEnd: Ctrl-D on an empty line, or no terminal left
    Kind kind = Kind::kEnd;
    std::string text;        // kText: without the last end of line
    bool was_empty = false;  // kWoken: nothing had been typed
  };
  virtual Input Read() = 0;
  // Adds a message to the history. Errors of the file.
  virtual absl::Status Remember(const std::string& text) = 0;
};

// Shows nothing that is typed as long as this lives; it is there for the next reading. Ctrl-C
// still is a signal.
class EchoOff {
 public:
  EchoOff();
  ~EchoOff();
  EchoOff(const EchoOff&) = delete;
  EchoOff& operator=(const EchoOff&) = delete;

 private:
  bool changed_ = false;
  termios before_{};
};

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_LINE_EDITOR_H_
