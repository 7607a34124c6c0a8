#ifndef QUERN_SERVICES_COMMON_HTTP_SERVER_H_
#define QUERN_SERVICES_COMMON_HTTP_SERVER_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "services/common/security.h"

namespace quern {

struct HttpRequest {
  std::string method;  // "GET"; HEAD comes as GET, its answer goes without the body
  std::string path;    // of the target, as it came, without the query
  std::string content_type;
  std::string body;
  std::string principal;  // whose request it is; empty where no credential is asked for
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers = {};
};

// One request and the way to answer it: either Respond, once, or StartStream, Write, EndStream.
// When the last reference goes without an answer, that is 500. Thread-safe; nothing here blocks.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  virtual const HttpRequest& request() const = 0;
  virtual void Respond(HttpResponse response) = 0;
  // 200 and a body in pieces, each sent as soon as the one before it is.
  virtual void StartStream(std::string content_type) = 0;
  virtual void Write(std::string piece) = 0;
  virtual void EndStream() = 0;
  // `on_gone` is called on the server's thread, once, if the client goes before the answer is
  // complete, also if it has gone already. At most one call of this.
  virtual void WhenGone(std::function<void()> on_gone) = 0;
  // Runs `work` on the server's thread.
  virtual void Post(std::function<void()> work) = 0;
};

struct HttpServerOptions {
  std::string flag;  // names the listening address in messages and logs: "--http-listen"
  std::string listen = "127.0.0.1:0";
  // Outlives the server; null: loopback only, without TLS and open to all.
  const Security* security = nullptr;
  // Of all headers together; the request line is counted apart.
  int max_header_bytes = 8 << 10;
  int max_body_bytes = 0;
  int max_connections = 64;
  // To receive a whole request, the wait for its beginning included, or to send a piece.
  absl::Duration timeout = absl::Seconds(10);
  // Answers what is refused before a handler sees it: 400 for what is no HTTP, 413, 431, 503.
  std::function<HttpResponse(int status, absl::string_view message)> refuse;
};

// A small HTTP/1.1 server on a thread of its own, with keep-alive and "Expect: 100-continue".
// Connections over the limit are closed at once. Where `security` asks for a credential, a request
// without one (401) or without the role that its path takes (403) is refused before its body is
// read; so are more than 64 header fields (431) and a target beyond 8 KiB (414).
class HttpServer {
 public:
  // Runs on the server's thread for each request and must be quick.
  using Handler = std::function<void(std::shared_ptr<HttpExchange>)>;

  // FAILED_PRECONDITION for an address that is refused, INVALID_ARGUMENT for one that is none,
  // UNAVAILABLE when it cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options,
                                                           Handler handler);
  // Closes what is still open. Exchanges must be gone.
  virtual ~HttpServer() = default;

  // "127.0.0.1:43211": the address with the real port.
  virtual const std::string& address() const = 0;

  // Takes no new connections and no new requests on those that are there; no handler begins once
  // this returns. Waits until all that are under way are answered, at most for `grace`.
  virtual void Shutdown(absl::Duration grace) = 0;
};

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_HTTP_SERVER_H_
