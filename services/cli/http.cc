#include "services/cli/http.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include <openssl/ssl.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <memory>
#include <optional>

#include "core/base/status_macros.h"
#include "services/common/auth_tokens.h"

namespace quern::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

constexpr size_t kMaxBodyBytes = 16 << 20;

using TlsContext = std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)>;

// Null for a URL without TLS.
absl::StatusOr<TlsContext> MakeTlsContext(const HttpUrl& url, const ChannelSecurity& security) {
  if (!url.tls) return TlsContext(nullptr, SSL_CTX_free);
  if (security.tls_ca.empty()) {
    return absl::InvalidArgumentError("https:// takes --tls-ca, the CA of the service");
  }
  TlsContext context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  if (SSL_CTX_load_verify_file(context.get(), security.tls_ca.c_str()) != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tls-ca: ", security.tls_ca, " holds no certificates in PEM form"));
  }
  if (security.tls_cert.empty()) return context;
  if (SSL_CTX_use_certificate_chain_file(context.get(), security.tls_cert.c_str()) != 1 ||
      SSL_CTX_use_PrivateKey_file(context.get(), security.tls_key.c_str(), SSL_FILETYPE_PEM) != 1) {
    return absl::InvalidArgumentError(absl::StrCat("--tls-cert: ", security.tls_cert, " and ",
                                                   security.tls_key, " are no pair in PEM form"));
  }
  return context;
}

// One exchange; every step starts the next.
class Exchange {
 public:
  // `tls` null: without. `token` empty: none is shown.
  Exchange(const HttpUrl& url, SSL_CTX* tls, const std::string& token)
      : url_(url), request_(http::verb::get, url.target, 11), result_(asio::error::timed_out) {
    request_.set(http::field::host, url.host_port.ToString());
    request_.set(http::field::user_agent, "quern");
    request_.set(http::field::connection, "close");
    if (!token.empty()) request_.set(http::field::authorization, absl::StrCat("Bearer ", token));
    parser_.body_limit(kMaxBodyBytes);
    if (tls == nullptr) return;
    tls_.emplace(stream_, SSL_new(tls));
    SSL* ssl = tls_->native_handle();
    const std::string& host = url.host_port.host;
    // The certificate must be this host's; a name is told to the server too.
    if (X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), host.c_str()) != 1) {
      SSL_set1_host(ssl, host.c_str());
      SSL_set_tlsext_host_name(ssl, host.c_str());
    }
  }

  beast::error_code Run(absl::Duration timeout) {
    resolver_.async_resolve(
        url_.host_port.host, absl::StrCat(url_.host_port.port),
        [this](beast::error_code error, const asio::ip::tcp::resolver::results_type& found) {
          if (Ended(error)) return;
          stream_.async_connect(found, [this](beast::error_code error,
                                              const asio::ip::tcp::endpoint&) {
            if (Ended(error)) return;
            if (!tls_.has_value()) return Send(stream_);
            tls_->async_handshake(asio::ssl::stream_base::client, [this](beast::error_code error) {
              if (!Ended(error)) Send(*tls_);
            });
          });
        });
    context_.run_for(absl::ToChronoMilliseconds(timeout));
    return result_;
  }

  const http::response<http::string_body>& response() const { return parser_.get(); }

 private:
  // Notes an error, which ends the exchange.
  bool Ended(beast::error_code error) {
    if (error) result_ = error;
    return static_cast<bool>(error);
  }

  template <typename Stream>
  void Send(Stream& stream) {
    http::async_write(stream, request_, [this, &stream](beast::error_code error, size_t) {
      if (Ended(error)) return;
      http::async_read(stream, buffer_, parser_,
                       [this](beast::error_code error, size_t) { result_ = error; });
    });
  }

  const HttpUrl url_;
  asio::io_context context_{1};
  asio::ip::tcp::resolver resolver_{context_};
  beast::tcp_stream stream_{context_};
  std::optional<asio::ssl::stream<beast::tcp_stream&>> tls_;
  http::request<http::empty_body> request_;
  beast::flat_buffer buffer_;
  http::response_parser<http::string_body> parser_;
  beast::error_code result_;
};

}  // namespace

absl::StatusOr<HttpUrl> ParseHttpUrl(absl::string_view text) {
  absl::string_view rest = text;
  HttpUrl url;
  url.tls = absl::ConsumePrefix(&rest, "https://");
  if (!url.tls && !absl::ConsumePrefix(&rest, "http://")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", text, "' is no URL that can be asked; wanted http://HOST:PORT/PATH or https://"));
  }
  const size_t slash = std::min(rest.find('/'), rest.size());
  std::string authority(rest.substr(0, slash));
  const bool has_port = authority.rfind(':') != std::string::npos && authority.back() != ']';
  if (!has_port) authority += url.tls ? ":443" : ":80";
  ASSIGN_OR_RETURN(url.host_port, ParseHostPort(authority));
  url.target = slash == rest.size() ? "/" : std::string(rest.substr(slash));
  return url;
}

absl::StatusOr<HttpAnswer> HttpGet(absl::string_view url_text, const ChannelSecurity& security,
                                   absl::Duration timeout) {
  ASSIGN_OR_RETURN(const HttpUrl url, ParseHttpUrl(url_text));
  ASSIGN_OR_RETURN(const TlsContext tls, MakeTlsContext(url, security));
  std::string token;
  if (url.tls && !security.token_file.empty()) {
    ASSIGN_OR_RETURN(token, ReadTokenFile(security.token_file));
  }
  Exchange exchange(url, tls.get(), token);
  const beast::error_code error = exchange.Run(timeout);
  if (error == asio::error::timed_out) {
    return absl::DeadlineExceededError(
        absl::StrCat(url_text, ": no answer within ", absl::FormatDuration(timeout)));
  }
  if (error) return absl::UnavailableError(absl::StrCat(url_text, ": ", error.message()));
  const auto& response = exchange.response();
  HttpAnswer answer;
  answer.status = response.result_int();
  answer.body = response.body();
  answer.server_time = absl::InfinitePast();
  std::string unused;
  const beast::string_view date = response[http::field::date];
  absl::ParseTime("%a, %d %b %Y %H:%M:%S GMT", absl::string_view(date.data(), date.size()),
                  absl::UTCTimeZone(), &answer.server_time, &unused);
  return answer;
}

}  // namespace quern::cli
