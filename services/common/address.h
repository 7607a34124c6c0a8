#ifndef QUERN_SERVICES_COMMON_ADDRESS_H_
#define QUERN_SERVICES_COMMON_ADDRESS_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <string>

namespace quern {

// "HOST:PORT" taken apart. An IPv6 host is written in brackets: "[::1]:7400".
struct HostPort {
  std::string host;  // without brackets
  int port = 0;      // 0..65535; 0 asks for any free port

  std::string ToString() const;
};

// INVALID_ARGUMENT, with the text found and the form wanted.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);

// Whether only this machine can reach `host`: 127.0.0.0/8, ::1 or "localhost". Other names count
// as reachable: what they resolve to can change.
bool IsLoopback(absl::string_view host);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_ADDRESS_H_
