#include "services/common/ready_file.h"

#include <absl/strings/str_cat.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "core/base/file.h"
#include "core/base/json.h"

namespace quern {

absl::Status RemoveReadyFile(absl::string_view path) {
  if (path.empty()) return absl::OkStatus();
  if (unlink(std::string(path).c_str()) != 0 && errno != ENOENT) {
    return absl::ErrnoToStatus(errno, absl::StrCat("removing ready file ", path));
  }
  return absl::OkStatus();
}

absl::Status WriteReadyFile(absl::string_view path, const ReadyAddresses& addresses) {
  if (path.empty()) return absl::OkStatus();
  const Json content = {{"grpc_address", addresses.grpc},
                        {"http_address", addresses.http},
                        {"metrics_address", addresses.metrics},
                        {"pid", static_cast<int64_t>(getpid())}};
  return WriteFileDurably(path, DumpCanonicalJson(content) + "\n");
}

}  // namespace quern
