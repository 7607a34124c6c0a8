#ifndef QUERN_SERVICES_COMMON_READY_FILE_H_
#define QUERN_SERVICES_COMMON_READY_FILE_H_

#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include <string>

namespace quern {

// Removes what an earlier process left, so that nobody takes it for this one. Call at start; an
// empty path does nothing.
absl::Status RemoveReadyFile(absl::string_view path);

// Where a process serves; empty: not at all.
struct ReadyAddresses {
  std::string grpc;
  std::string http;
  std::string metrics;
};

// Says durably that the process serves: {"grpc_address":"127.0.0.1:1234","http_address":"",
// "metrics_address":"127.0.0.1:1235","pid":N}. An empty path does nothing.
absl::Status WriteReadyFile(absl::string_view path, const ReadyAddresses& addresses);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_READY_FILE_H_
