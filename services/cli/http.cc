#include "services/cli/http.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

#include "core/base/status_macros.h"

namespace quern::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

constexpr size_t kMaxBodyBytes = 16 << 20;

// One exchange; every step starts the next.
class Exchange {
 public:
  explicit Exchange(const HttpUrl& url)
      : url_(url), request_(http::verb::get, url.target, 11), result_(asio::error::timed_out) {
    request_.set(http::field::host, url.host_port.ToString());
    request_.set(http::field::user_agent, "quern");
    request_.set(http::field::connection, "close");
    parser_.body_limit(kMaxBodyBytes);
  }

  beast::error_code Run(absl::Duration timeout) {
    resolver_.async_resolve(
        url_.host_port.host, absl::StrCat(url_.host_port.port),
        [this](beast::error_code error, const asio::ip::tcp::resolver::results_type& found) {
          if (Ended(error)) return;
          stream_.async_connect(found, [this](beast::error_code error,
                                              const asio::ip::tcp::endpoint&) { Send(error); });
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

  void Send(beast::error_code error) {
    if (Ended(error)) return;
    http::async_write(stream_, request_, [this](beast::error_code error, size_t) {
      if (Ended(error)) return;
      http::async_read(stream_, buffer_, parser_,
                       [this](beast::error_code error, size_t) { result_ = error; });
    });
  }

  const HttpUrl url_;
  asio::io_context context_{1};
  asio::ip::tcp::resolver resolver_{context_};
  beast::tcp_stream stream_{context_};
  http::request<http::empty_body> request_;
  beast::flat_buffer buffer_;
  http::response_parser<http::string_body> parser_;
  beast::error_code result_;
};

}  // namespace

absl::StatusOr<HttpUrl> ParseHttpUrl(absl::string_view text) {
  absl::string_view rest = text;
  if (!absl::ConsumePrefix(&rest, "http://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is no URL that can be asked; wanted http://HOST:PORT/PATH"));
  }
  const size_t slash = std::min(rest.find('/'), rest.size());
  std::string authority(rest.substr(0, slash));
  const bool has_port = authority.rfind(':') != std::string::npos && authority.back() != ']';
  if (!has_port) authority += ":80";
  HttpUrl url;
  ASSIGN_OR_RETURN(url.host_port, ParseHostPort(authority));
  url.target = slash == rest.size() ? "/" : std::string(rest.substr(slash));
  return url;
}

absl::StatusOr<HttpAnswer> HttpGet(absl::string_view url_text, absl::Duration timeout) {
  ASSIGN_OR_RETURN(const HttpUrl url, ParseHttpUrl(url_text));
  Exchange exchange(url);
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
