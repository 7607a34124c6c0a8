#include "services/common/tls.h"

#include <absl/strings/str_cat.h>
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <vector>

#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "services/common/auth_tokens.h"

namespace quern {
namespace {

constexpr size_t kMaxPemBytes = 1 << 20;

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
using BioPtr = std::unique_ptr<BIO, Free>;
using X509Ptr = std::unique_ptr<X509, Free>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Free>;

// OpenSSL would ask on the terminal.
int NoPassphrase(char*, int, int, void*) { return 0; }

BioPtr Reader(absl::string_view bytes) {
  return BioPtr(BIO_new_mem_buf(bytes.data(), static_cast<int>(bytes.size())));
}

absl::Status Unfit(const std::string& path, absl::string_view what) {
  // The reasons of OpenSSL name its own functions; the queue is the thread's.
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

absl::StatusOr<std::vector<X509Ptr>> ReadCertificates(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxPemBytes));
  const BioPtr reader = Reader(text);
  std::vector<X509Ptr> certificates;
  while (X509* certificate =
             PEM_read_bio_X509(reader.get(), nullptr, NoPassphrase, /*userdata=*/nullptr)) {
    certificates.emplace_back(certificate);
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  if (certificates.empty() || !at_end) {
    return Unfit(path, "wanted certificates in PEM form, found something else");
  }
  ERR_clear_error();
  return certificates;
}

absl::StatusOr<KeyPtr> ReadKey(const std::string& path) {
  RETURN_IF_ERROR(CheckSecretFile(path));
  ASSIGN_OR_RETURN(std::string text, ReadFile(path, kMaxPemBytes));
  KeyPtr key(PEM_read_bio_PrivateKey(Reader(text).get(), nullptr, NoPassphrase, nullptr));
  OPENSSL_cleanse(text.data(), text.size());
  if (key == nullptr) {
    return Unfit(path, "wanted a private key in PEM form without a passphrase");
  }
  return key;
}

std::string Utf8(const X509_NAME& name, int index) {
  uint8_t* bytes = nullptr;
  const int size =
      ASN1_STRING_to_UTF8(&bytes, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(&name, index)));
  if (size < 0) return "";
  std::string text(reinterpret_cast<char*>(bytes), static_cast<size_t>(size));
  OPENSSL_free(bytes);
  return text;
}

absl::Status UseClientCa(const std::string& path, SSL_CTX* context) {
  ASSIGN_OR_RETURN(const std::vector<X509Ptr> authorities, ReadCertificates(path));
  for (const X509Ptr& authority : authorities) {
    // The first lets clients with several certificates choose the right one.
    if (SSL_CTX_add_client_CA(context, authority.get()) != 1 ||
        X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority.get()) != 1) {
      return Unfit(path, "holds a certificate that cannot be used");
    }
  }
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<SSL_CTX>> LoadServerTls(const TlsFiles& files) {
  const std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr) return absl::InternalError("OpenSSL gives no context");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION |
                                         SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_NO_TICKET);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context.get(), 0);

  ASSIGN_OR_RETURN(const std::vector<X509Ptr> chain, ReadCertificates(files.cert));
  ASSIGN_OR_RETURN(const KeyPtr key, ReadKey(files.key));
  if (SSL_CTX_use_certificate(context.get(), chain.front().get()) != 1) {
    return Unfit(files.cert, "its first certificate cannot be used");
  }
  for (size_t i = 1; i < chain.size(); ++i) SSL_CTX_add1_chain_cert(context.get(), chain[i].get());
  if (SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1) {
    return Unfit(files.key, absl::StrCat("is not the key of the certificate in ", files.cert));
  }
  if (!files.client_ca.empty()) RETURN_IF_ERROR(UseClientCa(files.client_ca, context.get()));
  return context;
}

std::optional<Principal> PrincipalOfCertificate(const X509& certificate) {
  const X509_NAME* subject = X509_get_subject_name(&certificate);
  if (subject == nullptr) return std::nullopt;
  Principal principal;
  const int common_name = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (common_name >= 0) principal.name = Utf8(*subject, common_name);
  if (!IsPrincipalName(principal.name)) return std::nullopt;
  int unit = -1;
  while ((unit = X509_NAME_get_index_by_NID(subject, NID_organizationalUnitName, unit)) >= 0) {
    const absl::StatusOr<Role> role = ParseRole(Utf8(*subject, unit));
    if (role.ok()) principal.roles.Add({*role});
  }
  return principal;
}

std::optional<Principal> PrincipalOfPem(absl::string_view certificate) {
  const X509Ptr parsed(
      PEM_read_bio_X509(Reader(certificate).get(), nullptr, NoPassphrase, nullptr));
  if (parsed == nullptr) {
    ERR_clear_error();
    return std::nullopt;
  }
  return PrincipalOfCertificate(*parsed);
}

}  // namespace quern
