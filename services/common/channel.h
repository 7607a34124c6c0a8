#ifndef QUERN_SERVICES_COMMON_CHANNEL_H_
#define QUERN_SERVICES_COMMON_CHANNEL_H_

// The client's side of security.h: how a program shows a gRPC service who it is.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <grpcpp/security/credentials.h>

#include <memory>
#include <string>

namespace quern {

// Each empty: none. All files are read again when they change.
struct ChannelSecurity {
  std::string tls_ca;    // --tls-ca: PEM file; servers must have a certificate of it. Turns TLS on
  std::string tls_cert;  // --tls-cert: PEM file, the client's own certificate and its chain
  std::string tls_key;   // --tls-key: PEM file, its private key
  std::string token_file;  // --token-file: a token on one line
};

// Checks the settings for a channel to `address` ("HOST:PORT") and that their files can be read.
// FAILED_PRECONDITION for a token that would go to another machine in the clear, INVALID_ARGUMENT.
// `flag` names the address in messages.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    absl::string_view flag, absl::string_view address, const ChannelSecurity& security);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_CHANNEL_H_
