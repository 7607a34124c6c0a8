#ifndef QUERN_SERVICES_COMMON_SECURITY_CONFIG_H_
#define QUERN_SERVICES_COMMON_SECURITY_CONFIG_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <string>

#include "services/common/address.h"

namespace quern {

// What every service is told about who may talk to it. Each empty: none.
struct SecurityConfig {
  std::string tls_cert;       // --tls-cert: PEM file, this server's certificate and its chain
  std::string tls_key;        // --tls-key: PEM file, its private key
  std::string tls_client_ca;  // --tls-client-ca: PEM file; clients need a certificate of it
  std::string auth_tokens;    // --auth-tokens: file of AuthTokens; clients need a token
  bool allow_insecure_network = false;

  bool tls() const { return !tls_cert.empty(); }
  // Whether every call must say whose it is.
  bool authenticates() const { return !tls_client_ca.empty() || !auth_tokens.empty(); }

  // INVALID_ARGUMENT naming the flag that another one needs. Reads no file.
  absl::Status Validate() const;
};

// Checks an address to listen on: loopback is always taken. One that others can reach takes TLS
// and a credential, tokens or a client CA, or else `allow_insecure_network`; but tokens without TLS
// are never taken there, as everybody on the way could use them. `flag` names the setting in
// messages. INVALID_ARGUMENT, FAILED_PRECONDITION.
absl::StatusOr<HostPort> CheckListenAddress(absl::string_view flag, absl::string_view text,
                                            const SecurityConfig& security);

// Logs what `allow_insecure_network` permitted at `address`.
void WarnIfExposed(absl::string_view flag, const HostPort& address, const SecurityConfig& security);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_SECURITY_CONFIG_H_
