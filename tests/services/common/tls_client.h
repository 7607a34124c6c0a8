#ifndef QUERN_TESTS_SERVICES_COMMON_TLS_CLIENT_H_
#define QUERN_TESTS_SERVICES_COMMON_TLS_CLIENT_H_

#include <gtest/gtest.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "tests/services/common/http_client.h"

namespace quern {

struct TlsAnswer {
  bool connected = false;   // the handshake succeeded on this side
  bool closed = false;      // the server said that nothing follows
  std::string certificate;  // of the server, PEM
  std::string bytes;
};

struct TlsClientFiles {
  std::string ca;    // path
  std::string cert;  // path; empty: none
  std::string key;   // path
  int max_version = TLS1_3_VERSION;
  std::string then;            // sent once something came
  const char* alpn = nullptr;  // as it goes over the wire: "\x02h2"
};

// Sends `bytes` over TLS to "127.0.0.1:port" and reads until the other side closes.
inline TlsAnswer TlsExchange(const std::string& address, const std::string& bytes,
                             const TlsClientFiles& files) {
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(SSL_CTX_new(TLS_client_method()),
                                                             SSL_CTX_free);
  EXPECT_EQ(SSL_CTX_load_verify_locations(context.get(), files.ca.c_str(), nullptr), 1);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_max_proto_version(context.get(), files.max_version);
  // So that a client of old versions is refused by the server and not by itself.
  SSL_CTX_set_min_proto_version(context.get(), TLS1_VERSION);
  SSL_CTX_set_cipher_list(context.get(), "ALL:@SECLEVEL=0");
  if (files.alpn != nullptr) {
    SSL_CTX_set_alpn_protos(context.get(), reinterpret_cast<const uint8_t*>(files.alpn),
                            static_cast<unsigned>(std::string(files.alpn).size()));
  }
  if (!files.cert.empty()) {
    EXPECT_EQ(SSL_CTX_use_certificate_chain_file(context.get(), files.cert.c_str()), 1);
    EXPECT_EQ(SSL_CTX_use_PrivateKey_file(context.get(), files.key.c_str(), SSL_FILETYPE_PEM), 1);
  }
  const int fd = ConnectTo(address);
  TlsAnswer answer;
  {
    const std::unique_ptr<SSL, void (*)(SSL*)> ssl(SSL_new(context.get()), SSL_free);
    SSL_set_fd(ssl.get(), fd);
    answer.connected = SSL_connect(ssl.get()) == 1;
    if (answer.connected) {
      if (X509* certificate = SSL_get1_peer_certificate(ssl.get())) {
        BIO* bio = BIO_new(BIO_s_mem());
        PEM_write_bio_X509(bio, certificate);
        char* data = nullptr;
        const long size = BIO_get_mem_data(bio, &data);
        answer.certificate.assign(data, static_cast<size_t>(size));
        BIO_free(bio);
        X509_free(certificate);
      }
      SSL_write(ssl.get(), bytes.data(), static_cast<int>(bytes.size()));
      char buffer[65536];
      int got = 0;
      std::string then = files.then;
      while ((got = SSL_read(ssl.get(), buffer, sizeof(buffer))) > 0) {
        answer.bytes.append(buffer, got);
        if (then.empty()) continue;
        SSL_write(ssl.get(), then.data(), static_cast<int>(then.size()));
        then.clear();
      }
      answer.closed = SSL_get_error(ssl.get(), got) == SSL_ERROR_ZERO_RETURN;
      if (answer.closed) SSL_shutdown(ssl.get());
    }
    ERR_clear_error();
  }
  close(fd);
  return answer;
}

}  // namespace quern

#endif  // QUERN_TESTS_SERVICES_COMMON_TLS_CLIENT_H_
