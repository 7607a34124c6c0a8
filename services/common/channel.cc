#include "services/common/channel.h"

#include <absl/strings/str_cat.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <map>
#include <utility>

#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "services/common/address.h"
#include "services/common/auth_tokens.h"
#include "services/common/grpc_hand_over.h"

namespace quern {
namespace {

constexpr int kRefreshSeconds = 1;
constexpr size_t kMaxPemFileBytes = 1 << 20;

// Adds the token to each call; the file is read each time, so that a new one counts at once.
class TokenFile final : public grpc::MetadataCredentialsPlugin {
 public:
  explicit TokenFile(std::string path) : path_(std::move(path)) { ReleaseToGrpc(this); }
  ~TokenFile() override { AcquireFromGrpc(this); }

  bool IsBlocking() const override { return true; }
  const char* GetType() const override { return "quern-token-file"; }
  grpc::Status GetMetadata(grpc::string_ref, grpc::string_ref, const grpc::AuthContext&,
                           std::multimap<std::string, std::string>* metadata) override {
    AcquireFromGrpc(this);
    const absl::StatusOr<std::string> token = ReadTokenFile(path_);
    ReleaseToGrpc(this);
    if (!token.ok()) {
      return grpc::Status(grpc::StatusCode::UNAUTHENTICATED,
                          absl::StrCat("--token-file: ", token.status().message()));
    }
    metadata->emplace("authorization", absl::StrCat("Bearer ", *token));
    return grpc::Status::OK;
  }
  // The default would print what it holds.
  grpc::string DebugString() override { return absl::StrCat("token file ", path_); }

 private:
  const std::string path_;
};

absl::Status Named(absl::string_view flag, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(flag, ": ", status.message()));
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeTlsCredentials(
    const ChannelSecurity& security) {
  RETURN_IF_ERROR(Named("--tls-ca", ReadFile(security.tls_ca, kMaxPemFileBytes).status()));
  const bool has_identity = !security.tls_cert.empty();
  if (has_identity) {
    RETURN_IF_ERROR(Named("--tls-cert", ReadFile(security.tls_cert, kMaxPemFileBytes).status()));
    RETURN_IF_ERROR(Named("--tls-key", CheckSecretFile(security.tls_key)));
    RETURN_IF_ERROR(Named("--tls-key", ReadFile(security.tls_key, kMaxPemFileBytes).status()));
  }
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(
      std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          security.tls_key, security.tls_cert, security.tls_ca, kRefreshSeconds));
  options.watch_root_certs();
  if (has_identity) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    absl::string_view flag, absl::string_view address, const ChannelSecurity& security) {
  if (security.tls_cert.empty() != security.tls_key.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert and --tls-key go together: only one of them is set");
  }
  const bool tls = !security.tls_ca.empty();
  if (!security.token_file.empty()) {
    RETURN_IF_ERROR(Named("--token-file", ReadTokenFile(security.token_file).status()));
  }
  std::shared_ptr<grpc::ChannelCredentials> channel = grpc::InsecureChannelCredentials();
  if (tls) {
    ASSIGN_OR_RETURN(channel, MakeTlsCredentials(security));
  }
  if (security.token_file.empty()) return channel;
  auto token = std::make_unique<TokenFile>(security.token_file);
  if (tls) {
    return grpc::CompositeChannelCredentials(channel,
                                             grpc::MetadataCredentialsFromPlugin(std::move(token)));
  }
  const absl::StatusOr<HostPort> host_port = ParseHostPort(address);
  if (!host_port.ok() || !IsLoopback(host_port->host)) {
    return absl::FailedPreconditionError(
        absl::StrCat(flag, ": ", address, " is another machine, and without TLS the token would ",
                     "cross the network for all to read; set --tls-ca"));
  }
  // These connect to no other machine, whatever a name resolves to.
  return grpc::CompositeChannelCredentials(
      grpc::experimental::LocalCredentials(LOCAL_TCP),
      grpc::experimental::MetadataCredentialsFromPlugin(std::move(token), GRPC_SECURITY_NONE));
}

}  // namespace quern
