#ifndef QUERN_SERVICES_COMMON_SECURITY_H_
#define QUERN_SERVICES_COMMON_SECURITY_H_

// Who may talk to a service: TLS, tokens, client certificates and the policy, for its gRPC and its
// HTTP alike.

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <grpcpp/security/auth_context.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_context.h>
#include <openssl/ssl.h>
#include <prometheus/counter.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/base/mutex.h"
#include "services/common/auth_tokens.h"
#include "services/common/policy.h"
#include "services/common/security_config.h"

namespace quern {

// Judges calls by the files of a SecurityConfig, which it reads again within two seconds of a
// change; files that do not fit change nothing and are logged. Thread-safe.
class Security {
 public:
  // Reads the files. `registry` must outlive it. Errors as those of the files.
  static absl::StatusOr<std::unique_ptr<Security>> Open(const SecurityConfig& config,
                                                        prometheus::Registry& registry);
  ~Security();

  const SecurityConfig& config() const { return config_; }

  // Credentials of a gRPC listener; every call on it is judged before its handler begins. It must
  // be gone before this is.
  std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials() const;

  // For a new connection; null: without TLS.
  std::shared_ptr<SSL_CTX> server_tls() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Whose call this is, if they may make it. `row` is the call's policy or null, `authorization`
  // the value of that header or "", `certificate` whom the verified certificate of the connection
  // stands for; a token counts before a certificate. UNAUTHENTICATED or PERMISSION_DENIED, with a
  // message for the client. Where the config asks for no credential, everybody may call everything.
  absl::StatusOr<Principal> Authorize(const PolicyRow* row, absl::string_view authorization,
                                      const std::optional<Principal>& certificate) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Whose call a handler serves; the name is empty where the config asks for no credential.
  // UNAUTHENTICATED when a token was taken out since the call was let in.
  absl::StatusOr<Principal> PrincipalOf(const grpc::ServerContextBase& context) const
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Metadata = std::multimap<grpc::string_ref, grpc::string_ref>;
  class MetadataJudge;

  // Files that are read together, and what they were like when that was done.
  struct Watched {
    std::vector<std::string> paths;
    absl::Status (Security::*load)();
    std::string signature;
  };

  Security(const SecurityConfig& config, prometheus::Registry& registry);
  absl::Status LoadTls() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status LoadTokens() ABSL_LOCKS_EXCLUDED(mutex_);
  // Until the end: reads again what has changed.
  void Watch(std::vector<Watched> all) ABSL_LOCKS_EXCLUDED(mutex_);
  void ReloadIfChanged(Watched& watched);
  absl::StatusOr<Principal> Authenticate(absl::string_view authorization,
                                         const std::optional<Principal>& certificate) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Principal> AuthorizeRpc(const PolicyRow* row, const Metadata& metadata,
                                         const grpc::AuthContext* peer) const;

  const SecurityConfig config_;
  prometheus::Counter& unauthenticated_total_;
  prometheus::Counter& denied_total_;
  prometheus::Counter& reloads_total_;
  prometheus::Counter& failed_reloads_total_;

  mutable Mutex mutex_;
  CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<SSL_CTX> server_tls_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const AuthTokens> tokens_ ABSL_GUARDED_BY(mutex_);
  std::thread watcher_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_SECURITY_H_
