#include "services/common/security_config.h"

#include <absl/strings/str_cat.h>

#include "core/base/log.h"

namespace quern {

absl::Status SecurityConfig::Validate() const {
  if (tls_cert.empty() != tls_key.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert and --tls-key go together: only one of them is set");
  }
  if (!tls_client_ca.empty() && !tls()) {
    return absl::InvalidArgumentError("--tls-client-ca needs --tls-cert and --tls-key");
  }
  return absl::OkStatus();
}

absl::StatusOr<HostPort> CheckListenAddress(absl::string_view flag, absl::string_view text,
                                            const SecurityConfig& security) {
  absl::StatusOr<HostPort> address = ParseHostPort(text);
  if (!address.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(flag, ": ", address.status().message()));
  }
  if (IsLoopback(address->host)) return address;
  if (security.tls() && security.authenticates()) return address;
  if (!security.auth_tokens.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(flag, ": ", text, " can be reached from other machines, and without TLS ",
                     "tokens would cross the network for all to read; set --tls-cert and ",
                     "--tls-key, or use a loopback address"));
  }
  if (security.allow_insecure_network) return address;
  return absl::FailedPreconditionError(absl::StrCat(
      flag, ": ", text, " can be reached from other machines and ",
      security.tls() ? "anybody may call it; set --auth-tokens or --tls-client-ca"
                     : "is not encrypted; set --tls-cert, --tls-key and --auth-tokens or "
                       "--tls-client-ca",
      ", use a loopback address, or --allow-insecure-network if the network is trusted"));
}

void WarnIfExposed(absl::string_view flag, const HostPort& address,
                   const SecurityConfig& security) {
  if (IsLoopback(address.host) || (security.tls() && security.authenticates())) return;
  LOG(WARNING) << "other machines can reach this without "
               << (security.tls() ? "a credential " : "encryption or a credential ") << flag << "="
               << address.ToString();
}

}  // namespace quern
