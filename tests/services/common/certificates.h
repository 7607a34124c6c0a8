#ifndef QUERN_TESTS_SERVICES_COMMON_CERTIFICATES_H_
#define QUERN_TESTS_SERVICES_COMMON_CERTIFICATES_H_

#include <gtest/gtest.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "tests/support/status_matchers.h"

namespace quern {

// A private CA that issues certificates for 127.0.0.1. P-256, valid for an hour.
class TestCa {
 public:
  explicit TestCa(const std::string& name = "test CA") : key_(EVP_EC_gen("P-256"), EVP_PKEY_free) {
    certificate_ = Sign(name, {}, key_.get(), nullptr, /*is_ca=*/true);
  }

  std::string pem() const { return Pem(certificate_.get()); }

  // Writes NAME.crt and NAME.key (0600) into `directory`, one after the other by renames; returns
  // the certificate.
  std::string Issue(const std::string& directory, const std::string& name,
                    const std::string& common_name, const std::vector<std::string>& units = {}) {
    const std::shared_ptr<EVP_PKEY> key(EVP_EC_gen("P-256"), EVP_PKEY_free);
    const std::string certificate = Pem(Sign(common_name, units, key.get(), this, false).get());
    EXPECT_OK(WriteFileDurably(directory + "/" + name + ".key", PemOfKey(key.get())));
    EXPECT_OK(WriteFileDurably(directory + "/" + name + ".crt", certificate));
    return certificate;
  }

 private:
  static std::string Take(BIO* bio) {
    char* data = nullptr;
    const long size = BIO_get_mem_data(bio, &data);
    std::string text(data, static_cast<size_t>(size));
    BIO_free(bio);
    return text;
  }
  static std::string Pem(X509* certificate) {
    BIO* bio = BIO_new(BIO_s_mem());
    EXPECT_EQ(PEM_write_bio_X509(bio, certificate), 1);
    return Take(bio);
  }
  static std::string PemOfKey(EVP_PKEY* key) {
    BIO* bio = BIO_new(BIO_s_mem());
    EXPECT_EQ(PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr), 1);
    return Take(bio);
  }
  static void Extend(X509* certificate, int nid, const char* value) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value);
    EXPECT_EQ(X509_add_ext(certificate, extension, -1), 1);
    X509_EXTENSION_free(extension);
  }
  std::shared_ptr<X509> Sign(const std::string& common_name, const std::vector<std::string>& units,
                             EVP_PKEY* key, const TestCa* issuer, bool is_ca) const {
    static std::atomic<long> serial = 1;
    const std::shared_ptr<X509> certificate(X509_new(), X509_free);
    X509_set_version(certificate.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
    X509_set_pubkey(certificate.get(), key);
    X509_NAME* subject = X509_get_subject_name(certificate.get());
    const auto add = [&](const char* field, const std::string& text) {
      X509_NAME_add_entry_by_txt(subject, field, MBSTRING_UTF8,
                                 reinterpret_cast<const uint8_t*>(text.data()),
                                 static_cast<int>(text.size()), -1, 0);
    };
    for (const std::string& unit : units) add("OU", unit);
    add("CN", common_name);
    X509_set_issuer_name(
        certificate.get(),
        issuer == nullptr ? subject : X509_get_subject_name(issuer->certificate_.get()));
    Extend(certificate.get(), NID_basic_constraints, is_ca ? "critical,CA:TRUE" : "CA:FALSE");
    if (!is_ca) Extend(certificate.get(), NID_subject_alt_name, "IP:127.0.0.1,DNS:localhost");
    EXPECT_GT(X509_sign(certificate.get(), key_.get(), EVP_sha256()), 0);
    return certificate;
  }

  const std::shared_ptr<EVP_PKEY> key_;
  std::shared_ptr<X509> certificate_;
};

}  // namespace quern

#endif  // QUERN_TESTS_SERVICES_COMMON_CERTIFICATES_H_
