#include "services/common/http_server.h"

#include <absl/base/thread_annotations.h>
#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <deque>
#include <exception>
#include <future>
#include <optional>
#include <thread>
#include <variant>

#include "core/base/log.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "services/common/http_head.h"
#include "services/common/http_stream.h"
#include "services/common/tls.h"

namespace quern {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

// Half-open handshakes cost their sender next to nothing.
constexpr std::chrono::milliseconds kHandshakeTimeout{10'000};

// What all connections share. On the server's thread, but for the count.
struct Shared {
  HttpServerOptions options;
  HttpServer::Handler handler;
  int num_connections = 0;
  bool stopping = false;

  Mutex mutex;
  CondVar became_idle;
  int num_exchanges ABSL_GUARDED_BY(mutex) = 0;  // not answered yet
};

// One connection: reads a request, has it answered, and again. Its pending operations and the
// exchange of the request under way keep it alive. All of it runs on the server's thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(asio::ip::tcp::socket socket, std::shared_ptr<Shared> shared)
      : tls_(shared->options.security ? shared->options.security->server_tls() : nullptr),
        stream_(std::move(socket), tls_.get()),
        buffer_(static_cast<size_t>(shared->options.max_header_bytes) + kWatchBytes),
        shared_(std::move(shared)) {
    ++shared_->num_connections;
  }
  ~Connection() { --shared_->num_connections; }

  asio::any_io_executor executor() { return stream_.get_executor(); }

  // Shakes hands where there is TLS, then reads the first request.
  void Start();
  void ReadRequest();

  // Of exchange `serial`; what comes late is ignored.
  void Respond(uint64_t serial, HttpResponse response);
  void StartStream(uint64_t serial, const std::string& content_type);
  void Write(uint64_t serial, std::string piece);
  void EndStream(uint64_t serial);
  void WhenGone(uint64_t serial, std::function<void()> on_gone);

 private:
  enum class State { kReading, kWaiting, kStreaming, kEnding };
  static constexpr size_t kWatchBytes = 4096;

  void Expire() {
    stream_.tcp().expires_after(absl::ToChronoMilliseconds(shared_->options.timeout));
  }
  void OnHandshake();
  void OnHead();
  void ReadBody();
  void OnRequest();
  void OnReadError(beast::error_code error);
  HttpResponse Refusal(int status, absl::string_view message) const;
  // Answers with it; nothing more is read from the connection.
  void Refuse(HttpResponse refusal);
  // Reads on while a request is under way, to see when the client goes.
  void Watch();
  bool IsCurrent(uint64_t serial) const { return serial == serial_ && state_ != State::kReading; }
  void SendWhole(HttpResponse response, bool keep_alive);
  void SendNextPiece();
  void OnSent(beast::error_code error);
  void Gone();
  // Says that nothing follows and reads what still comes: closing at once would reset the
  // connection, and the peer might lose the answer.
  void Linger();
  void Discard();
  // The answer is complete or the connection is over.
  void EndExchange();

  template <typename Fields>
  void SetCommonFields(Fields& response, bool keep_alive) {
    response.keep_alive(keep_alive);
    response.set(http::field::server, "quern");
    // By it `quern doctor` sees a clock that is off.
    response.set(http::field::date,
                 absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone()));
  }

  const std::shared_ptr<SSL_CTX> tls_;  // null: without
  HttpStream stream_;
  beast::flat_buffer buffer_;
  const std::shared_ptr<Shared> shared_;
  std::optional<http::request_parser<http::string_body>> parser_;

  State state_ = State::kReading;
  uint64_t serial_ = 0;  // of the request under way
  bool keep_alive_ = false;
  bool is_head_ = false;
  bool watching_ = false;
  bool sending_ = false;
  bool sending_last_ = false;  // and nothing of the answer follows
  bool gone_ = false;
  bool in_exchange_ = false;
  bool lingers_ = false;
  std::optional<Principal> certificate_;  // whom the client's stands for
  Principal principal_;                   // whose request it is
  std::function<void()> on_gone_;

  http::response<http::string_body> response_;
  std::optional<http::response_serializer<http::string_body>> serializer_;
  http::response<http::empty_body> stream_head_;
  std::optional<http::response_serializer<http::empty_body>> head_serializer_;
  std::deque<std::string> pieces_;
  std::string piece_;  // on its way
};

class Exchange final : public HttpExchange {
 public:
  Exchange(HttpRequest request, std::shared_ptr<Connection> connection, uint64_t serial)
      : request_(std::move(request)), connection_(std::move(connection)), serial_(serial) {}
  // Here on any thread; the connection, should this be its last reference, goes on its own.
  ~Exchange() override {
    const asio::any_io_executor executor = connection_->executor();
    asio::post(executor, [connection = std::move(connection_), serial = serial_] {
      // Ignored when there is an answer.
      connection->Respond(serial, {.status = 500, .body = "internal error\n"});
    });
  }

  const HttpRequest& request() const override { return request_; }
  void Respond(HttpResponse response) override {
    Run([response = std::move(response)](Connection& c, uint64_t serial) mutable {
      c.Respond(serial, std::move(response));
    });
  }
  void StartStream(std::string content_type) override {
    Run([content_type = std::move(content_type)](Connection& c, uint64_t serial) {
      c.StartStream(serial, content_type);
    });
  }
  void Write(std::string piece) override {
    Run([piece = std::move(piece)](Connection& c, uint64_t serial) mutable {
      c.Write(serial, std::move(piece));
    });
  }
  void EndStream() override {
    Run([](Connection& c, uint64_t serial) { c.EndStream(serial); });
  }
  void WhenGone(std::function<void()> on_gone) override {
    Run([on_gone = std::move(on_gone)](Connection& c, uint64_t serial) mutable {
      c.WhenGone(serial, std::move(on_gone));
    });
  }
  void Post(std::function<void()> work) override {
    asio::post(connection_->executor(), std::move(work));
  }

 private:
  template <typename Work>
  void Run(Work work) {
    asio::post(connection_->executor(),
               [connection = connection_, serial = serial_, work = std::move(work)]() mutable {
                 work(*connection, serial);
               });
  }

  const HttpRequest request_;
  std::shared_ptr<Connection> connection_;
  const uint64_t serial_;
};

void Connection::Start() {
  if (!stream_.is_tls()) return ReadRequest();
  stream_.tcp().expires_after(
      std::min(kHandshakeTimeout, absl::ToChronoMilliseconds(shared_->options.timeout)));
  stream_.async_handshake([self = shared_from_this()](beast::error_code error) {
    // Letting go closes the connection of one that is no client, or not of our CA.
    if (!error) self->OnHandshake();
  });
}

void Connection::OnHandshake() {
  X509* certificate = SSL_get1_peer_certificate(stream_.ssl());
  if (certificate != nullptr) {
    certificate_ = PrincipalOfCertificate(*certificate);
    X509_free(certificate);
  }
  ReadRequest();
}

void Connection::ReadRequest() {
  state_ = State::kReading;
  if (shared_->stopping) return;
  parser_.emplace();
  parser_->header_limit(shared_->options.max_header_bytes);
  parser_->body_limit(shared_->options.max_body_bytes);
  Expire();
  http::async_read_header(stream_, buffer_, *parser_,
                          [self = shared_from_this()](beast::error_code error, size_t) {
                            if (error) return self->OnReadError(error);
                            self->OnHead();
                          });
}

void Connection::OnHead() {
  auto judged = CheckHttpHead(parser_->get(), shared_->options.security, certificate_);
  if (const auto* refused = std::get_if<HttpHeadRefusal>(&judged)) {
    HttpResponse refusal = Refusal(refused->status, refused->message);
    if (refused->status == 401) refusal.headers.emplace_back("WWW-Authenticate", "Bearer");
    return Refuse(std::move(refusal));
  }
  principal_ = std::get<Principal>(std::move(judged));
  if (!beast::iequals(parser_->get()[http::field::expect], "100-continue")) return ReadBody();
  stream_head_ = {http::status::continue_, 11};
  head_serializer_.emplace(stream_head_);
  http::async_write(stream_, *head_serializer_,
                    [self = shared_from_this()](beast::error_code error, size_t) {
                      if (!error) self->ReadBody();
                    });
}

void Connection::Refuse(HttpResponse refusal) {
  is_head_ = parser_->get().method() == http::verb::head;
  state_ = State::kEnding;
  SendWhole(std::move(refusal), /*keep_alive=*/false);
}

void Connection::ReadBody() {
  http::async_read(stream_, buffer_, *parser_,
                   [self = shared_from_this()](beast::error_code error, size_t) {
                     if (error) return self->OnReadError(error);
                     self->OnRequest();
                   });
}

void Connection::OnReadError(beast::error_code error) {
  int status = 0;
  absl::string_view message;
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    status = 431;
    message = "headers too large";
  } else if (error == http::error::body_limit) {
    status = 413;
    message = "the body of the request is too large";
  } else if (error.category() == http::make_error_code(http::error::bad_method).category() &&
             error != http::error::end_of_stream && error != http::error::partial_message) {
    status = 400;
    message = "bad request";
  } else {
    return;  // the peer is gone or too slow: letting go closes the connection
  }
  Refuse(Refusal(status, message));
}

HttpResponse Connection::Refusal(int status, absl::string_view message) const {
  if (shared_->options.refuse) return shared_->options.refuse(status, message);
  return {.status = status, .body = absl::StrCat(message, "\n")};
}

void Connection::OnRequest() {
  http::request<http::string_body>& parsed = parser_->get();
  const beast::string_view content_type = parsed[http::field::content_type];
  is_head_ = parsed.method() == http::verb::head;
  keep_alive_ = parsed.keep_alive();
  const beast::string_view method = parsed.method_string();
  HttpRequest request{
      .method = is_head_ ? "GET" : std::string(method.data(), method.size()),
      .path = std::string(PathOf(parsed)),
      .content_type = std::string(content_type.data(), content_type.size()),
      .body = std::move(parsed.body()),
      .principal = principal_.name,
  };
  if (shared_->stopping) {
    state_ = State::kEnding;
    return SendWhole(Refusal(503, "the server is shutting down"), /*keep_alive=*/false);
  }
  state_ = State::kWaiting;
  ++serial_;
  in_exchange_ = true;
  {
    MutexLock lock(&shared_->mutex);
    ++shared_->num_exchanges;
  }
  Watch();
  auto exchange = std::make_shared<Exchange>(std::move(request), shared_from_this(), serial_);
  try {
    shared_->handler(std::move(exchange));
  } catch (const std::exception& error) {
    LOG(ERROR) << "an HTTP handler threw error=" << error.what();
  }
}

void Connection::Watch() {
  // One request that came early is enough to keep.
  if (watching_ || gone_ || buffer_.size() > 0) return;
  watching_ = true;
  stream_.tcp().expires_never();
  stream_.async_read_some(buffer_.prepare(kWatchBytes),
                          [self = shared_from_this()](beast::error_code error, size_t size) {
                            self->watching_ = false;
                            if (error && error != asio::error::operation_aborted)
                              return self->Gone();
                            if (self->lingers_) return self->Linger();
                            self->buffer_.commit(size);
                            if (self->state_ == State::kReading) self->ReadRequest();
                          });
}

void Connection::Gone() {
  gone_ = true;
  if (state_ == State::kReading) return EndExchange();
  if (const auto on_gone = std::exchange(on_gone_, nullptr)) on_gone();
}

void Connection::WhenGone(uint64_t serial, std::function<void()> on_gone) {
  if (!IsCurrent(serial)) return;
  if (gone_) return on_gone();
  on_gone_ = std::move(on_gone);
}

void Connection::Respond(uint64_t serial, HttpResponse response) {
  if (!IsCurrent(serial) || state_ != State::kWaiting) return;
  state_ = State::kEnding;
  SendWhole(std::move(response), keep_alive_ && !shared_->stopping);
}

void Connection::SendWhole(HttpResponse response, bool keep_alive) {
  response_ = {static_cast<http::status>(response.status), 11};
  response_.set(http::field::content_type, response.content_type);
  for (const auto& [name, value] : response.headers) response_.set(name, value);
  response_.body() = std::move(response.body);
  SetCommonFields(response_, keep_alive);
  response_.prepare_payload();
  keep_alive_ = keep_alive;
  // A HEAD answer has the length of the GET answer and no body.
  if (is_head_) response_.body().clear();
  serializer_.emplace(response_);
  Expire();
  const auto done = [self = shared_from_this()](beast::error_code error, size_t) {
    self->OnSent(error);
  };
  sending_ = true;
  sending_last_ = true;
  if (is_head_) {
    http::async_write_header(stream_, *serializer_, done);
  } else {
    http::async_write(stream_, *serializer_, done);
  }
}

void Connection::StartStream(uint64_t serial, const std::string& content_type) {
  if (!IsCurrent(serial) || state_ != State::kWaiting) return;
  state_ = State::kStreaming;
  keep_alive_ = keep_alive_ && !shared_->stopping;
  stream_head_ = {http::status::ok, 11};
  stream_head_.set(http::field::content_type, content_type);
  stream_head_.set(http::field::cache_control, "no-store");
  SetCommonFields(stream_head_, keep_alive_);
  stream_head_.chunked(true);
  head_serializer_.emplace(stream_head_);
  sending_ = true;
  Expire();
  http::async_write_header(
      stream_, *head_serializer_,
      [self = shared_from_this()](beast::error_code error, size_t) { self->OnSent(error); });
}

void Connection::Write(uint64_t serial, std::string piece) {
  if (!IsCurrent(serial) || state_ != State::kStreaming || gone_ || piece.empty()) return;
  pieces_.push_back(std::move(piece));
  if (!sending_) SendNextPiece();
}

void Connection::EndStream(uint64_t serial) {
  if (!IsCurrent(serial) || state_ != State::kStreaming) return;
  state_ = State::kEnding;
  if (!sending_) SendNextPiece();
}

void Connection::SendNextPiece() {
  const auto done = [self = shared_from_this()](beast::error_code error, size_t) {
    self->OnSent(error);
  };
  sending_ = true;
  Expire();
  if (pieces_.empty()) {
    sending_last_ = true;
    asio::async_write(stream_, http::make_chunk_last(), done);
    return;
  }
  piece_.clear();
  for (const std::string& piece : pieces_) piece_ += piece;
  pieces_.clear();
  asio::async_write(stream_, http::make_chunk(asio::buffer(piece_)), done);
}

void Connection::OnSent(beast::error_code error) {
  sending_ = false;
  if (error) {
    Gone();
    return EndExchange();
  }
  if (state_ == State::kStreaming) {
    if (!pieces_.empty()) SendNextPiece();
    return;
  }
  if (!sending_last_) return SendNextPiece();
  EndExchange();
  if (!keep_alive_ || gone_) {
    if (gone_) return stream_.tcp().close();
    if (!watching_) return Linger();
    // Nothing came that would have to be read.
    if (!stream_.is_tls()) return stream_.tcp().close();
    lingers_ = true;
    return stream_.tcp().cancel();  // then it goes on with Linger
  }
  state_ = State::kReading;
  if (watching_) return stream_.tcp().cancel();  // then it goes on with ReadRequest
  ReadRequest();
}

void Connection::Linger() {
  stream_.tcp().expires_after(std::chrono::seconds(2));
  if (stream_.is_tls()) {
    // Its answer says that the peer has everything.
    return stream_.async_shutdown([self = shared_from_this()](beast::error_code) {});
  }
  beast::error_code ignored;
  stream_.tcp().socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  buffer_.clear();
  Discard();
}

void Connection::Discard() {
  stream_.async_read_some(buffer_.prepare(kWatchBytes),
                          [self = shared_from_this()](beast::error_code error, size_t) {
                            if (!error) self->Discard();
                          });
}

void Connection::EndExchange() {
  sending_last_ = false;
  on_gone_ = nullptr;
  ++serial_;
  if (!std::exchange(in_exchange_, false)) return;
  MutexLock lock(&shared_->mutex);
  if (--shared_->num_exchanges == 0) shared_->became_idle.SignalAll();
}

class HttpServerImpl final : public HttpServer {
 public:
  HttpServerImpl(const HttpServerOptions& options, Handler handler)
      : acceptor_(context_), shared_(std::make_shared<Shared>()) {
    shared_->options = options;
    shared_->handler = std::move(handler);
  }

  ~HttpServerImpl() override {
    context_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen() {
    const HttpServerOptions& options = shared_->options;
    const SecurityConfig config = options.security ? options.security->config() : SecurityConfig();
    ASSIGN_OR_RETURN(HostPort address, CheckListenAddress(options.flag, options.listen, config));
    WarnIfExposed(options.flag, address, config);
    const std::string host = address.host == "localhost" ? "127.0.0.1" : address.host;
    beast::error_code error;
    const asio::ip::address ip = asio::ip::make_address(host, error);
    if (error) {
      return absl::InvalidArgumentError(
          absl::StrCat(options.flag, ": '", host, "' is no IP address"));
    }
    const asio::ip::tcp::endpoint endpoint(ip, static_cast<uint16_t>(address.port));
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat(options.flag, ": cannot listen on ", options.listen, ": ", error.message()));
    }
    address.port = acceptor_.local_endpoint().port();
    address_ = address.ToString();
    Accept();
    thread_ = std::thread([this] { context_.run(); });
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  void Shutdown(absl::Duration grace) override {
    std::promise<void> stopping;
    asio::post(context_, [&] {
      shared_->stopping = true;
      beast::error_code ignored;
      acceptor_.close(ignored);
      retry_.cancel();
      stopping.set_value();
    });
    stopping.get_future().wait();
    const absl::Time deadline = absl::Now() + grace;
    MutexLock lock(&shared_->mutex);
    while (shared_->num_exchanges > 0) {
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) return;
      shared_->became_idle.WaitWithTimeout(&shared_->mutex, left);
    }
  }

 private:
  void Accept() {
    acceptor_.async_accept([this](beast::error_code error, asio::ip::tcp::socket socket) {
      if (error == asio::error::operation_aborted || shared_->stopping) return;
      if (error) {
        LOG(WARNING) << "connection not accepted listener=" << shared_->options.flag
                     << " error=" << error.message();
        // Out of descriptors: trying again at once would spin.
        retry_.expires_after(std::chrono::milliseconds(100));
        retry_.async_wait([this](beast::error_code stopped) {
          if (!stopped) Accept();
        });
        return;
      }
      // Pieces of a stream are small and each is to be seen at once.
      beast::error_code ignored;
      socket.set_option(asio::ip::tcp::no_delay(true), ignored);
      if (shared_->num_connections < shared_->options.max_connections) {
        std::make_shared<Connection>(std::move(socket), shared_)->Start();
      }
      Accept();
    });
  }

  asio::io_context context_{1};
  // Exchanges post to it also when no connection is left.
  asio::executor_work_guard<asio::io_context::executor_type> work_{context_.get_executor()};
  asio::ip::tcp::acceptor acceptor_;
  asio::steady_timer retry_{context_};
  std::shared_ptr<Shared> shared_;
  std::string address_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options,
                                                              Handler handler) {
  auto server = std::make_unique<HttpServerImpl>(options, std::move(handler));
  RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace quern
