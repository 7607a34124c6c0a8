#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/time/clock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <string>

#include "core/base/status_macros.h"
#include "core/base/subprocess.h"
#include "services/cli/doctor.h"

namespace quern::cli {
namespace {

// Loading LibTorch from a cold disk takes seconds.
constexpr absl::Duration kRepliesLimit = absl::Seconds(60);

// What is wrong with a directory that this user needs `mode` (R_OK | ...) of. True without a fault.
bool CheckDirectory(absl::string_view check, const std::string& path, int mode,
                    Findings& findings) {
  const std::string wanted = (mode & W_OK) != 0 ? "a directory that this user may read and write"
                                                : "a directory that this user may read";
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) {
    findings.Problem(check, absl::StrCat(path, ": ", std::strerror(errno)), wanted,
                     "make it, or name another one");
    return false;
  }
  if (!S_ISDIR(info.st_mode)) {
    findings.Problem(check, absl::StrCat(path, " is no directory"), wanted, "name another one");
    return false;
  }
  if (access(path.c_str(), mode | X_OK) != 0) {
    findings.Problem(
        check,
        absl::StrFormat("%s: %s (owner %d, mode %04o, this user is %d)", path, std::strerror(errno),
                        info.st_uid, info.st_mode & 07777, geteuid()),
        wanted,
        (mode & W_OK) != 0
            ? absl::StrCat("give it to the user of the services: chown -R USER ", path)
            : absl::StrCat("let the user of the services in: chgrp -R GROUP ", path,
                           " and chmod -R g+rX ", path));
    return false;
  }
  if ((info.st_mode & S_IWOTH) != 0) {
    findings.Problem(
        check,
        absl::StrFormat("%s can be changed by everyone (mode %04o)", path, info.st_mode & 07777),
        "a directory that others cannot change: what lies in it is trusted",
        absl::StrCat("chmod o-w ", path));
    return false;
  }
  return true;
}

// Standard output, or why there is none.
absl::StatusOr<std::string> AskVersion(const std::string& program) {
  ASSIGN_OR_RETURN(const auto process, Subprocess::Start({.argv = {program, "--version"},
                                                          .environment = {},
                                                          .capture_output = true,
                                                          .capture_error = true}));
  const absl::Time limit = absl::Now() + kRepliesLimit;
  // The first line of each says it all; both fit into their pipes.
  ASSIGN_OR_RETURN(const std::optional<std::string> output, process->ReadLine(limit));
  ASSIGN_OR_RETURN(const std::optional<std::string> error, process->ReadErrorLine(limit));
  ASSIGN_OR_RETURN(const ExitStatus status, process->Wait(limit));
  if (status.success()) return output.value_or("");
  return absl::UnavailableError(absl::StrCat("ended with ", status.ToString(),
                                             error.has_value() ? ": " : "", error.value_or("")));
}

void CheckProgram(const std::string& name, const std::string& path, bool required,
                  Findings& findings) {
  const std::string wanted = absl::StrCat(name, " ", QUERN_VERSION);
  if (access(path.c_str(), X_OK) != 0) {
    const int error = errno;
    const std::string found = absl::StrCat(path, ": ", std::strerror(error));
    if (!required && error == ENOENT) return findings.Skip(name, "not installed beside quern");
    return findings.Problem(name, found, "a program that this user may run",
                            "install it, or correct the path");
  }
  const absl::StatusOr<std::string> version = AskVersion(path);
  if (!version.ok()) {
    const std::string why(version.status().message());
    const bool library = absl::StrContains(why, "shared libraries");
    return findings.Problem(name, absl::StrCat(path, " ", why), "a program that starts",
                            library ? "run deploy/install.sh, which puts its libraries where the "
                                      "program looks for them"
                                    : absl::StrCat("run it by hand: ", path, " --version"));
  }
  if (*version == wanted) return findings.Ok(name, absl::StrCat(QUERN_VERSION, " starts"));
  findings.Problem(name, absl::StrCat(path, " says it is '", *version, "'"), wanted,
                   "install all programs of one version together");
}

}  // namespace

void CheckDirectories(const std::string& data_directory, const std::string& model_root,
                      Findings& findings) {
  if (access(data_directory.c_str(), F_OK) != 0 && errno == ENOENT) {
    findings.Skip("data", absl::StrCat(data_directory, " is not there; `quern up` makes it"));
  } else if (CheckDirectory("data", data_directory, R_OK | W_OK, findings)) {
    bool good = true;
    for (const char* name : {"jobs", "work", "cache", "data"}) {
      const std::string path = absl::StrCat(data_directory, "/", name);
      if (access(path.c_str(), F_OK) != 0) continue;
      good = CheckDirectory(absl::StrCat("data/", name), path, R_OK | W_OK, findings) && good;
    }
    if (good) findings.Ok("data", data_directory);
  }
  if (!model_root.empty() && CheckDirectory("model root", model_root, R_OK, findings)) {
    findings.Ok("model root", model_root);
  }
}

void CheckPrograms(const std::string& directory, const std::string& quantizer, Findings& findings) {
  for (const char* name : {"quern-jobs", "quern-worker", "quern-inference"}) {
    CheckProgram(name, absl::StrCat(directory, "/", name), /*required=*/false, findings);
  }
  const std::string name = "quern-quantizer";
  CheckProgram(name, quantizer.empty() ? absl::StrCat(directory, "/", name) : quantizer,
               /*required=*/!quantizer.empty(), findings);
}

}  // namespace quern::cli
