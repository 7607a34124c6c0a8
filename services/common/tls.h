#ifndef QUERN_SERVICES_COMMON_TLS_H_
#define QUERN_SERVICES_COMMON_TLS_H_

// Keys and certificates in PEM files, as OpenSSL sees them.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <openssl/ssl.h>

#include <memory>
#include <optional>
#include <string>

#include "services/common/policy.h"

namespace quern {

struct TlsFiles {
  std::string cert;       // this server's certificate, followed by those between it and its CA
  std::string key;        // of the first certificate, without a passphrase
  std::string client_ca;  // those that may sign clients' certificates; empty: none is asked for
};

// What connections of a server are made from: TLS 1.2 or later, no session is taken up again (each
// connection is judged by the files as they are), and with a client CA no client without a
// certificate of it. INVALID_ARGUMENT naming the file that does not fit, FAILED_PRECONDITION when
// others may read the key.
absl::StatusOr<std::shared_ptr<SSL_CTX>> LoadServerTls(const TlsFiles& files);

// Whom a verified client certificate stands for: the common name of its subject is the principal,
// each of its organizational units that is the name of a role gives that role. Nothing when the
// common name is none that a principal can have.
std::optional<Principal> PrincipalOfCertificate(const X509& certificate);
std::optional<Principal> PrincipalOfPem(absl::string_view certificate);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_TLS_H_
