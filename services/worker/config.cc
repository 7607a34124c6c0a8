#include "services/worker/config.h"

#include <absl/strings/ascii.h>
#include <absl/strings/str_cat.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/status_macros.h"
#include "services/common/address.h"

namespace quern {
namespace {

bool IsNameCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
}

absl::Status CheckDirectory(const char* flag, const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError(absl::StrCat(flag, " is required"));
  struct stat info;
  if (stat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(flag, ": ", path, " is no directory"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WorkerConfig::Validate() const {
  const absl::StatusOr<HostPort> address = ParseHostPort(jobs);
  if (!address.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--jobs: ", address.status().message()));
  }
  if (!IsLoopback(address->host) && tls_ca.empty() && !security.allow_insecure_network) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--jobs: ", jobs, " is another machine and the connection is not encrypted; set --tls-ca, ",
        "or --allow-insecure-network if the network is trusted"));
  }
  RETURN_IF_ERROR(CheckListenAddress("--metrics-listen", metrics_listen, security).status());
  if (work_directory.empty()) return absl::InvalidArgumentError("--work-directory is required");
  RETURN_IF_ERROR(CheckDirectory("--model-root", model_root));
  RETURN_IF_ERROR(CheckDirectory("--data-root", data_root));
  if (access(quantizer.c_str(), X_OK) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--quantizer: ", quantizer, " is no program that can be run"));
  }
  if (threads < 0 || threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads: found ", threads, ", wanted 0 (automatic) to 1024"));
  }
  if (activation_memory_mib < 0) {
    return absl::InvalidArgumentError(absl::StrCat("--activation-memory-mib: found ",
                                                   activation_memory_mib,
                                                   ", wanted 0 (automatic) or more"));
  }
  if (device != "auto" && device != "cpu" && device != "cuda") {
    return absl::InvalidArgumentError(
        absl::StrCat("--device: found '", device, "', wanted auto, cpu or cuda"));
  }
  bool good_name = !name.empty() && name.size() <= 63;
  for (char c : name) good_name = good_name && IsNameCharacter(c);
  if (!good_name) {
    return absl::InvalidArgumentError(
        absl::StrCat("--name: found '", name, "', wanted 1 to 63 letters, digits, '.', '_', '-'"));
  }
  return absl::OkStatus();
}

std::string DefaultWorkerName() {
  char host[64] = {};
  if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == '\0') return "worker";
  std::string name(host);
  for (char& c : name) {
    if (!IsNameCharacter(c)) c = '-';
  }
  return name;
}

}  // namespace quern
