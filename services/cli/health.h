#ifndef QUERN_SERVICES_CLI_HEALTH_H_
#define QUERN_SERVICES_CLI_HEALTH_H_

#include <absl/status/status.h>
#include <absl/time/time.h>

#include <string>

#include "services/common/channel.h"

namespace quern::cli {

// Asks grpc.health.v1 at HOST:PORT for `service` (empty: the server as a whole), or an
// http://HOST:PORT/PATH for status 200. OK when it serves; otherwise one line that says why not,
// UNAVAILABLE or DEADLINE_EXCEEDED, or NOT_FOUND for a service that the server does not have.
absl::Status CheckHealth(const std::string& address, const std::string& service,
                         const ChannelSecurity& security, absl::Duration timeout);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_HEALTH_H_
