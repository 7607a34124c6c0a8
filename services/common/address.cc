#include "services/common/address.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <arpa/inet.h>
#include <netinet/in.h>

namespace quern {
namespace {

absl::Status Malformed(absl::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat("'", text, "' is no address; wanted HOST:PORT, e.g. 127.0.0.1:7400 or [::1]:0"));
}

}  // namespace

std::string HostPort::ToString() const {
  if (absl::StrContains(host, ':')) return absl::StrCat("[", host, "]:", port);
  return absl::StrCat(host, ":", port);
}

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return Malformed(text);
  absl::string_view host = text.substr(0, colon);
  const absl::string_view port = text.substr(colon + 1);
  if (host.front() == '[') {
    if (host.size() < 3 || host.back() != ']') return Malformed(text);
    host = host.substr(1, host.size() - 2);
  } else if (absl::StrContains(host, ':')) {
    return Malformed(text);
  }
  for (char c : host) {
    if (!absl::ascii_isalnum(c) && !absl::StrContains(".:-_%", c)) return Malformed(text);
  }
  HostPort result;
  result.host = std::string(host);
  // SimpleAtoi takes signs and blanks, which no port has.
  if (port.empty() || port.size() > 5) return Malformed(text);
  for (char c : port) {
    if (!absl::ascii_isdigit(c)) return Malformed(text);
  }
  if (!absl::SimpleAtoi(port, &result.port) || result.port > 65535) return Malformed(text);
  return result;
}

bool IsLoopback(absl::string_view host) {
  const std::string name(host);
  in_addr v4;
  if (inet_pton(AF_INET, name.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  in6_addr v6;
  if (inet_pton(AF_INET6, name.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  return name == "localhost";
}

}  // namespace quern
