#ifndef QUERN_SERVICES_COMMON_READY_FILE_H_
#define QUERN_SERVICES_COMMON_READY_FILE_H_

#include <absl/status/status.h>
#include <absl/strings/string_view.h>

namespace quern {

// Removes what an earlier process left, so that nobody takes it for this one. Call at start; an
// empty path does nothing.
absl::Status RemoveReadyFile(absl::string_view path);

// Says durably that the process serves: {"grpc_address":"127.0.0.1:1234",
// "metrics_address":"127.0.0.1:1235","pid":N}. `grpc_address` is empty for a process without a gRPC
// port. An empty path does nothing.
absl::Status WriteReadyFile(absl::string_view path, absl::string_view grpc_address,
                            absl::string_view metrics_address);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_READY_FILE_H_
