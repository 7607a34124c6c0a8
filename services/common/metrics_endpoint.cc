#include "services/common/metrics_endpoint.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/string_view.h>
#include <absl/time/clock.h>
#include <prometheus/text_serializer.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "services/common/address.h"

namespace quern {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using Response = http::response<http::string_body>;

// What all connections share; used on the endpoint's thread only.
struct Handler {
  MetricsEndpointOptions options;
  const prometheus::Registry* registry = nullptr;
  int num_connections = 0;

  Response Answer(const http::request<http::empty_body>& request) const;
  Response Check(const std::function<absl::Status()>& check) const;
};

Response Text(http::status status, std::string body) {
  Response response(status, 11);
  response.set(http::field::content_type, "text/plain; charset=utf-8");
  response.body() = std::move(body);
  return response;
}

Response Handler::Check(const std::function<absl::Status()>& check) const {
  const absl::Status status = check ? check() : absl::OkStatus();
  if (status.ok()) return Text(http::status::ok, "ok\n");
  return Text(http::status::service_unavailable, absl::StrCat(status.message(), "\n"));
}

Response Handler::Answer(const http::request<http::empty_body>& request) const {
  const beast::string_view target = request.target().substr(0, request.target().find('?'));
  const bool known = target == "/metrics" || target == "/healthz" || target == "/readyz";
  if (!known) return Text(http::status::not_found, "try /metrics, /healthz or /readyz\n");
  if (request.method() != http::verb::get && request.method() != http::verb::head) {
    Response response = Text(http::status::method_not_allowed, "GET or HEAD only\n");
    response.set(http::field::allow, "GET, HEAD");
    return response;
  }
  if (target == "/healthz") return Check(options.live);
  if (target == "/readyz") return Check(options.ready);
  if (options.before_scrape) options.before_scrape();
  Response response =
      Text(http::status::ok, prometheus::TextSerializer().Serialize(registry->Collect()));
  response.set(http::field::content_type, "text/plain; version=0.0.4; charset=utf-8");
  return response;
}

// One connection: reads a request, answers, and again. Keeps itself alive by its pending operation.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(asio::ip::tcp::socket socket, std::shared_ptr<Handler> handler)
      : stream_(std::move(socket)),
        buffer_(handler->options.max_header_bytes),
        handler_(std::move(handler)) {
    ++handler_->num_connections;
  }
  ~Connection() { --handler_->num_connections; }

  void Read() {
    parser_.emplace();
    parser_->header_limit(handler_->options.max_header_bytes);
    parser_->body_limit(0);
    stream_.expires_after(absl::ToChronoMilliseconds(handler_->options.timeout));
    http::async_read(
        stream_, buffer_, *parser_,
        [self = shared_from_this()](beast::error_code error, size_t) { self->OnRead(error); });
  }

 private:
  void OnRead(beast::error_code error) {
    if (!error) {
      const http::request<http::empty_body>& request = parser_->get();
      Write(handler_->Answer(request), request.keep_alive(), request.method() == http::verb::head);
    } else if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      Write(Text(http::status::request_header_fields_too_large, "headers too large\n"), false,
            false);
    } else if (error == http::error::body_limit || error == http::error::unexpected_body) {
      Write(Text(http::status::payload_too_large, "requests have no body here\n"), false, false);
    } else if (error.category() == http::make_error_code(http::error::bad_method).category() &&
               error != http::error::end_of_stream && error != http::error::partial_message) {
      Write(Text(http::status::bad_request, "bad request\n"), false, false);
    }
    // Otherwise the peer is gone or too slow: letting go closes the connection.
  }

  void Write(Response response, bool keep_alive, bool head) {
    response.keep_alive(keep_alive);
    response.set(http::field::server, "quern");
    // By it `quern doctor` sees a clock that is off.
    response.set(http::field::date,
                 absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone()));
    response.prepare_payload();
    // A HEAD answer has the length of the GET answer and no body.
    if (head) response.body().clear();
    response_ = std::move(response);
    stream_.expires_after(absl::ToChronoMilliseconds(handler_->options.timeout));
    if (head) {
      head_serializer_.emplace(response_);
      http::async_write_header(
          stream_, *head_serializer_,
          [self = shared_from_this()](beast::error_code error, size_t) { self->OnWritten(error); });
      return;
    }
    http::async_write(
        stream_, response_,
        [self = shared_from_this()](beast::error_code error, size_t) { self->OnWritten(error); });
  }

  void OnWritten(beast::error_code error) {
    if (error) return;
    if (response_.keep_alive()) return Read();
    // Tells the peer that nothing follows; a failure means that it has gone already.
    beast::error_code ignored;
    stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  }

  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  std::shared_ptr<Handler> handler_;
  std::optional<http::request_parser<http::empty_body>> parser_;
  Response response_;
  std::optional<http::response_serializer<http::string_body>> head_serializer_;
};

}  // namespace

class MetricsEndpoint::State {
 public:
  State(const MetricsEndpointOptions& options, const prometheus::Registry& registry)
      : acceptor_(context_), handler_(std::make_shared<Handler>()) {
    handler_->options = options;
    handler_->registry = &registry;
  }

  ~State() {
    context_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen() {
    const MetricsEndpointOptions& options = handler_->options;
    ASSIGN_OR_RETURN(HostPort address, CheckListenAddress("--metrics-listen", options.listen,
                                                          options.allow_insecure_network));
    WarnIfExposed("--metrics-listen", address);
    const std::string host = address.host == "localhost" ? "127.0.0.1" : address.host;
    beast::error_code error;
    const asio::ip::address ip = asio::ip::make_address(host, error);
    if (error) {
      return absl::InvalidArgumentError(
          absl::StrCat("--metrics-listen: '", host, "' is no IP address"));
    }
    const asio::ip::tcp::endpoint endpoint(ip, static_cast<uint16_t>(address.port));
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return absl::UnavailableError(absl::StrCat("--metrics-listen: cannot listen on ",
                                                 options.listen, ": ", error.message()));
    }
    address.port = acceptor_.local_endpoint().port();
    address_ = address.ToString();
    Accept();
    thread_ = std::thread([this] { context_.run(); });
    return absl::OkStatus();
  }

  const std::string& address() const { return address_; }

 private:
  void Accept() {
    acceptor_.async_accept([this](beast::error_code error, asio::ip::tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (error) {
        LOG(WARNING) << "metrics connection not accepted error=" << error.message();
        // Out of descriptors: trying again at once would spin.
        retry_.expires_after(std::chrono::milliseconds(100));
        retry_.async_wait([this](beast::error_code stopped) {
          if (!stopped) Accept();
        });
        return;
      }
      if (handler_->num_connections < handler_->options.max_connections) {
        std::make_shared<Connection>(std::move(socket), handler_)->Read();
      }
      Accept();
    });
  }

  asio::io_context context_{1};
  asio::ip::tcp::acceptor acceptor_;
  asio::steady_timer retry_{context_};
  std::shared_ptr<Handler> handler_;
  std::string address_;
  std::thread thread_;
};

MetricsEndpoint::MetricsEndpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
MetricsEndpoint::~MetricsEndpoint() = default;
const std::string& MetricsEndpoint::address() const { return state_->address(); }

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(
    const MetricsEndpointOptions& options, const prometheus::Registry& registry) {
  auto state = std::make_unique<State>(options, registry);
  RETURN_IF_ERROR(state->Listen());
  return std::unique_ptr<MetricsEndpoint>(new MetricsEndpoint(std::move(state)));
}

}  // namespace quern
