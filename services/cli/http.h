#ifndef QUERN_SERVICES_CLI_HTTP_H_
#define QUERN_SERVICES_CLI_HTTP_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include <string>

#include "services/common/address.h"
#include "services/common/channel.h"

namespace quern::cli {

struct HttpUrl {
  HostPort host_port;
  std::string target;  // "/metrics"; "/" when there is none
  bool tls = false;
};

// "http://HOST[:PORT][/PATH]" or https://; INVALID_ARGUMENT for any other kind.
absl::StatusOr<HttpUrl> ParseHttpUrl(absl::string_view text);

struct HttpAnswer {
  int status = 0;
  std::string body;        // at most 16 MiB
  absl::Time server_time;  // of its Date header; InfinitePast without one
};

// GETs "http://HOST[:PORT][/PATH]" and waits at most `timeout`; of `security` an "https://" URL
// takes the CA, which is then required, the client's certificate and its token. INVALID_ARGUMENT
// for another kind of URL, UNAVAILABLE when no answer comes, DEADLINE_EXCEEDED. Any HTTP status is
// an answer.
absl::StatusOr<HttpAnswer> HttpGet(absl::string_view url, const ChannelSecurity& security,
                                   absl::Duration timeout);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_HTTP_H_
