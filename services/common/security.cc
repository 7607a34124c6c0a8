#include "services/common/security.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <absl/time/clock.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <sys/stat.h>

#include <utility>
#include <vector>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "services/common/grpc_hand_over.h"
#include "services/common/status.h"
#include "services/common/tls.h"

namespace quern {
namespace {

constexpr int kReloadSeconds = 1;
constexpr size_t kMaxTokensFileBytes = 1 << 20;

absl::string_view View(const grpc::string_ref& text) { return {text.data(), text.size()}; }

// What tells whether files are still those that were read: a rename or a write changes it.
std::string Signature(const std::vector<std::string>& paths) {
  std::string signature;
  for (const std::string& path : paths) {
    struct stat info = {};
    // One that is not there has a signature as well.
    if (!path.empty() && stat(path.c_str(), &info) != 0) info = {};
    absl::StrAppend(&signature, info.st_dev, ":", info.st_ino, ":", info.st_size, ":", info.st_mode,
                    ":", info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec, ";");
  }
  return signature;
}

// The value of `authorization`. Of several, as HTTP joins them, which makes no token.
std::string AuthorizationOf(const std::multimap<grpc::string_ref, grpc::string_ref>& metadata) {
  const auto [begin, end] = metadata.equal_range("authorization");
  std::string joined;
  for (auto it = begin; it != end; ++it) {
    absl::StrAppend(&joined, it == begin ? "" : ", ", View(it->second));
  }
  return joined;
}

}  // namespace

// Judges each call of a gRPC listener before its method is looked up.
class Security::MetadataJudge final : public grpc::AuthMetadataProcessor {
 public:
  explicit MetadataJudge(const Security& security) : security_(security) {}
  // On gRPC's own thread: one hash and a look at a list.
  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* peer, OutputMetadata*,
                       OutputMetadata*) override {
    AcquireFromGrpc(this);
    const auto path = metadata.find(":path");
    const PolicyRow* row = path == metadata.end() ? nullptr : FindRpcPolicy(View(path->second));
    return ToGrpcStatus(security_.AuthorizeRpc(row, metadata, peer).status());
  }

 private:
  const Security& security_;
};

Security::Security(const SecurityConfig& config, prometheus::Registry& registry)
    : config_(config),
      unauthenticated_total_(prometheus::BuildCounter()
                                 .Name("quern_refused_calls_total")
                                 .Help("Calls refused for their credential, by reason.")
                                 .Register(registry)
                                 .Add({{"reason", "unauthenticated"}})),
      denied_total_(prometheus::BuildCounter()
                        .Name("quern_refused_calls_total")
                        .Register(registry)
                        .Add({{"reason", "permission_denied"}})),
      reloads_total_(prometheus::BuildCounter()
                         .Name("quern_security_reloads_total")
                         .Help("Changed files of keys, certificates and tokens, by what came of "
                               "reading them again.")
                         .Register(registry)
                         .Add({{"outcome", "ok"}})),
      failed_reloads_total_(prometheus::BuildCounter()
                                .Name("quern_security_reloads_total")
                                .Register(registry)
                                .Add({{"outcome", "failed"}})) {}

Security::~Security() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  stop_.SignalAll();
  if (watcher_.joinable()) watcher_.join();
}

absl::StatusOr<std::unique_ptr<Security>> Security::Open(const SecurityConfig& config,
                                                         prometheus::Registry& registry) {
  RETURN_IF_ERROR(config.Validate());
  std::unique_ptr<Security> security(new Security(config, registry));
  std::vector<Watched> all;
  if (config.tls()) {
    all.push_back(
        {{config.tls_cert, config.tls_key, config.tls_client_ca}, &Security::LoadTls, ""});
  }
  if (!config.auth_tokens.empty()) all.push_back({{config.auth_tokens}, &Security::LoadTokens, ""});
  for (Watched& watched : all) {
    // Before the reading: what changes during it is read again.
    watched.signature = Signature(watched.paths);
    RETURN_IF_ERROR((*security.*watched.load)());
  }
  if (!all.empty()) {
    security->watcher_ = std::thread(
        [self = security.get(), all = std::move(all)]() mutable { self->Watch(std::move(all)); });
  }
  return security;
}

absl::Status Security::LoadTls() {
  ASSIGN_OR_RETURN(std::shared_ptr<SSL_CTX> tls,
                   LoadServerTls({config_.tls_cert, config_.tls_key, config_.tls_client_ca}));
  MutexLock lock(&mutex_);
  server_tls_ = std::move(tls);
  return absl::OkStatus();
}

absl::Status Security::LoadTokens() {
  const std::string& path = config_.auth_tokens;
  RETURN_IF_ERROR(CheckTrustedFile(path));
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTokensFileBytes));
  ASSIGN_OR_RETURN(AuthTokens tokens, AuthTokens::Parse(text, path));
  auto shared = std::make_shared<const AuthTokens>(std::move(tokens));
  MutexLock lock(&mutex_);
  tokens_ = std::move(shared);
  return absl::OkStatus();
}

void Security::Watch(std::vector<Watched> all) {
  while (true) {
    {
      MutexLock lock(&mutex_);
      if (!stopping_) stop_.WaitWithTimeout(&mutex_, absl::Seconds(kReloadSeconds));
      if (stopping_) return;
    }
    for (Watched& watched : all) ReloadIfChanged(watched);
  }
}

void Security::ReloadIfChanged(Watched& watched) {
  std::string signature = Signature(watched.paths);
  if (signature == watched.signature) return;
  // Files that do not fit are told of once.
  watched.signature = std::move(signature);
  const absl::Status loaded = (this->*watched.load)();
  if (!loaded.ok()) {
    failed_reloads_total_.Increment();
    LOG(ERROR) << "not taken, what was read before stays in force error=" << loaded.message();
    return;
  }
  reloads_total_.Increment();
  LOG(INFO) << "read again file=" << watched.paths.front();
}

std::shared_ptr<grpc::ServerCredentials> Security::MakeServerCredentials() const {
  std::shared_ptr<grpc::ServerCredentials> credentials;
  if (config_.tls()) {
    grpc::experimental::TlsServerCredentialsOptions options(
        std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
            config_.tls_key, config_.tls_cert, config_.tls_client_ca, kReloadSeconds));
    options.watch_identity_key_cert_pairs();
    if (!config_.tls_client_ca.empty()) {
      options.watch_root_certs();
      options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
    }
    credentials = grpc::experimental::TlsServerCredentials(options);
  } else if (config_.authenticates()) {
    // Loopback alone: these accept no other peer, and let a judge see the calls.
    credentials = grpc::experimental::LocalServerCredentials(LOCAL_TCP);
  } else {
    return grpc::InsecureServerCredentials();
  }
  if (config_.authenticates()) {
    auto judge = std::make_shared<MetadataJudge>(*this);
    ReleaseToGrpc(judge.get());
    credentials->SetAuthMetadataProcessor(std::move(judge));
  }
  return credentials;
}

std::shared_ptr<SSL_CTX> Security::server_tls() const {
  MutexLock lock(&mutex_);
  return server_tls_;
}

absl::StatusOr<Principal> Security::Authenticate(
    absl::string_view authorization, const std::optional<Principal>& certificate) const {
  if (authorization.empty()) {
    if (certificate.has_value()) return *certificate;
    return absl::UnauthenticatedError(
        "no credential came; wanted the header 'Authorization: Bearer TOKEN'");
  }
  absl::string_view token = authorization;
  if (!absl::StartsWithIgnoreCase(token, "Bearer ")) {
    return absl::UnauthenticatedError("the header 'Authorization' must be 'Bearer TOKEN'");
  }
  token.remove_prefix(7);
  std::shared_ptr<const AuthTokens> tokens;
  {
    MutexLock lock(&mutex_);
    tokens = tokens_;
  }
  std::optional<Principal> found;
  if (tokens != nullptr) found = tokens->Find(token, absl::Now());
  if (found.has_value()) return *std::move(found);
  return absl::UnauthenticatedError("the token is not known here or has expired");
}

absl::StatusOr<Principal> Security::Authorize(const PolicyRow* row, absl::string_view authorization,
                                              const std::optional<Principal>& certificate) const {
  if (!config_.authenticates()) return Principal();
  if (row != nullptr && row->roles.empty()) return Principal();
  absl::StatusOr<Principal> principal = Authenticate(authorization, certificate);
  if (!principal.ok()) {
    unauthenticated_total_.Increment();
    return principal.status();
  }
  if (row != nullptr && row->roles.Intersects(principal->roles)) return principal;
  denied_total_.Increment();
  if (row == nullptr) {
    return absl::PermissionDeniedError("there is no such call, or nobody may make it");
  }
  return absl::PermissionDeniedError(absl::StrCat("'", principal->name, "' has the roles ",
                                                  principal->roles.ToString(),
                                                  "; this takes one of ", row->roles.ToString()));
}

absl::StatusOr<Principal> Security::AuthorizeRpc(const PolicyRow* row, const Metadata& metadata,
                                                 const grpc::AuthContext* peer) const {
  const std::string authorization = AuthorizationOf(metadata);
  std::optional<Principal> certificate;
  if (authorization.empty() && peer != nullptr && !config_.tls_client_ca.empty()) {
    const std::vector<grpc::string_ref> pem = peer->FindPropertyValues("x509_pem_cert");
    if (pem.size() == 1) certificate = PrincipalOfPem(View(pem.front()));
  }
  return Authorize(row, authorization, certificate);
}

absl::StatusOr<Principal> Security::PrincipalOf(const grpc::ServerContextBase& context) const {
  static constexpr PolicyRow kAny = {
      "", {Role::kReader, Role::kSubmitter, Role::kWorker, Role::kAdmin}};
  return AuthorizeRpc(&kAny, context.client_metadata(), context.auth_context().get());
}

}  // namespace quern
