#include "core/base/subprocess.h"

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <map>

#include "core/base/status_macros.h"

extern char** environ;

namespace quern {
namespace {

constexpr size_t kMaxLineBytes = size_t{16} << 20;

struct PipeEnds {
  FileDescriptor read;
  FileDescriptor write;
};

absl::StatusOr<PipeEnds> MakePipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  return PipeEnds{FileDescriptor(fds[0]), FileDescriptor(fds[1])};
}

std::vector<std::string> MergedEnvironment(
    const std::vector<std::pair<std::string, std::string>>& added) {
  std::map<std::string, std::string> merged;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const char* equals = std::strchr(*entry, '=');
    if (equals != nullptr) merged[std::string(*entry, equals - *entry)] = equals + 1;
  }
  for (const auto& [name, value] : added) merged[name] = value;
  std::vector<std::string> entries;
  for (const auto& [name, value] : merged) entries.push_back(absl::StrCat(name, "=", value));
  return entries;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

int PollTimeoutMs(absl::Time deadline) {
  const absl::Duration left = deadline - absl::Now();
  if (left <= absl::ZeroDuration()) return 0;
  return static_cast<int>(
      absl::ToInt64Milliseconds(std::min(left + absl::Milliseconds(1), absl::Hours(1))));
}

// Waits until `fd` can be read; false when the deadline came first.
absl::StatusOr<bool> WaitReadable(int fd, absl::Time deadline) {
  while (true) {
    struct pollfd poll_fd = {fd, POLLIN, 0};
    const int ready = poll(&poll_fd, 1, PollTimeoutMs(deadline));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "poll");
    if (absl::Now() >= deadline) return false;
  }
}

// Between fork and exec of a program with threads: async-signal-safe calls only.
[[noreturn]] void ExecChild(char* const* argv, char* const* envp, int output, int error,
                            bool own_process_group, pid_t parent, int report) {
  int failure = 0;
  sigset_t none;
  sigemptyset(&none);
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || sigprocmask(SIG_SETMASK, &none, nullptr) != 0 ||
      (own_process_group && setpgid(0, 0) != 0) ||
      (output >= 0 && dup2(output, STDOUT_FILENO) < 0) ||
      (error >= 0 && dup2(error, STDERR_FILENO) < 0)) {
    failure = errno;
  } else if (getppid() != parent) {
    _exit(127);  // The parent ended before the death signal was set.
  } else {
    execve(argv[0], argv, envp);
    failure = errno;
  }
  const ssize_t written = write(report, &failure, sizeof(failure));
  _exit(written == sizeof(failure) ? 127 : 126);
}

}  // namespace

std::string ExitStatus::ToString() const {
  if (signal != 0) return absl::StrCat("signal ", signal, " (", strsignal(signal), ")");
  return absl::StrCat("exit code ", exit_code);
}

absl::StatusOr<std::unique_ptr<Subprocess>> Subprocess::Start(const Options& options) {
  if (options.argv.empty()) return absl::InvalidArgumentError("Subprocess: argv is empty");
  PipeEnds output;
  PipeEnds error;
  if (options.capture_output) {
    ASSIGN_OR_RETURN(output, MakePipe());
  }
  if (options.capture_error) {
    ASSIGN_OR_RETURN(error, MakePipe());
  }
  // Closed by a successful exec; otherwise carries its errno.
  ASSIGN_OR_RETURN(PipeEnds report, MakePipe());
  std::vector<std::string> argv = options.argv;
  std::vector<std::string> environment = MergedEnvironment(options.environment);
  const std::vector<char*> argv_pointers = Pointers(argv);
  const std::vector<char*> environment_pointers = Pointers(environment);
  const pid_t parent = getpid();

  auto process = std::unique_ptr<Subprocess>(new Subprocess());
  process->pid_ = fork();
  if (process->pid_ < 0) return absl::ErrnoToStatus(errno, "fork");
  if (process->pid_ == 0) {
    ExecChild(argv_pointers.data(), environment_pointers.data(), output.write.get(),
              error.write.get(), options.own_process_group, parent, report.write.get());
  }
  report.write = FileDescriptor();
  process->pidfd_ = FileDescriptor(static_cast<int>(syscall(SYS_pidfd_open, process->pid_, 0)));
  if (process->pidfd_.get() < 0) return absl::ErrnoToStatus(errno, "pidfd_open");
  process->output_.fd = std::move(output.read);
  process->error_.fd = std::move(error.read);
  int failure = 0;
  ssize_t got;
  do {
    got = read(report.read.get(), &failure, sizeof(failure));
  } while (got < 0 && errno == EINTR);
  if (got == sizeof(failure)) return absl::ErrnoToStatus(failure, options.argv[0]);
  return process;
}

Subprocess::~Subprocess() {
  if (pid_ <= 0 || exit_status_.has_value()) return;
  kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

absl::StatusOr<std::optional<std::string>> Subprocess::ReadLine(absl::Time deadline) {
  return ReadLineFrom(output_, deadline);
}

absl::StatusOr<std::optional<std::string>> Subprocess::ReadErrorLine(absl::Time deadline) {
  return ReadLineFrom(error_, deadline);
}

absl::StatusOr<std::optional<std::string>> Subprocess::ReadLineFrom(Pipe& pipe,
                                                                    absl::Time deadline) {
  size_t searched = 0;
  while (true) {
    const size_t end = pipe.buffer.find('\n', searched);
    if (end != std::string::npos) {
      std::string line = pipe.buffer.substr(0, end);
      pipe.buffer.erase(0, end + 1);
      return line;
    }
    if (pipe.ended) {
      if (pipe.buffer.empty()) return std::nullopt;
      return std::exchange(pipe.buffer, {});
    }
    searched = pipe.buffer.size();
    if (searched > kMaxLineBytes) {
      return absl::ResourceExhaustedError("a line of the child's output is over 16 MiB");
    }
    ASSIGN_OR_RETURN(const bool readable, WaitReadable(pipe.fd.get(), deadline));
    if (!readable) return absl::DeadlineExceededError("no line from the child in time");
    char bytes[65536];
    const ssize_t got = read(pipe.fd.get(), bytes, sizeof(bytes));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, "reading the child's output");
    if (got == 0) pipe.ended = true;
    pipe.buffer.append(bytes, static_cast<size_t>(got));
  }
}

absl::Status Subprocess::Signal(int signal) {
  // By pidfd, so that a process that took over the number is never hit.
  if (syscall(SYS_pidfd_send_signal, pidfd_.get(), signal, nullptr, 0) != 0) {
    if (errno == ESRCH) return absl::NotFoundError("the child has ended");
    return absl::ErrnoToStatus(errno, "signal to the child");
  }
  return absl::OkStatus();
}

absl::StatusOr<ExitStatus> Subprocess::Wait(absl::Time deadline) {
  if (exit_status_.has_value()) return *exit_status_;
  ASSIGN_OR_RETURN(const bool ended, WaitReadable(pidfd_.get(), deadline));
  if (!ended) return absl::DeadlineExceededError(absl::StrCat("process ", pid_, " still runs"));
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0) {
    if (errno != EINTR) return absl::ErrnoToStatus(errno, "waitpid");
  }
  ExitStatus result;
  if (WIFSIGNALED(status)) {
    result.signal = WTERMSIG(status);
  } else {
    result.exit_code = WEXITSTATUS(status);
  }
  exit_status_ = result;
  return result;
}

}  // namespace quern
