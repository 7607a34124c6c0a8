#ifndef QUERN_SERVICES_COMMON_METRICS_ENDPOINT_H_
#define QUERN_SERVICES_COMMON_METRICS_ENDPOINT_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <absl/types/span.h>
#include <prometheus/registry.h>

#include <functional>
#include <memory>
#include <string>

#include "services/common/http_server.h"

namespace quern {

struct MetricsEndpointOptions {
  std::string listen = "127.0.0.1:0";
  // Outlives the endpoint. Of no account on loopback, where the endpoint is plain and open: what it
  // tells is for the machine's own Prometheus.
  const Security* security = nullptr;
  // Each runs on the endpoint's thread and must be quick and thread-safe; unset means OK.
  std::function<absl::Status()> live;   // of /healthz: not OK means restart me
  std::function<absl::Status()> ready;  // of /readyz: not OK means send me nothing now
  std::function<void()> before_scrape;  // brings gauges up to date
  // Of all headers together; the request line is counted apart.
  int max_header_bytes = 8 << 10;
  int max_connections = 64;
  // To receive a whole request or send a whole answer.
  absl::Duration timeout = absl::Seconds(10);
};

// A small HTTP/1.1 server on a thread of its own: GET and HEAD of /metrics (Prometheus text
// format), /healthz and /readyz. Anything else is 404, other methods 405, headers over the limit
// 431, what is no HTTP 400; connections over the limit are closed at once.
class MetricsEndpoint {
 public:
  // `registry` must outlive the endpoint. FAILED_PRECONDITION for an address that is refused,
  // UNAVAILABLE when it cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsEndpoint>> Start(
      const MetricsEndpointOptions& options, const prometheus::Registry& registry);

  // What is served.
  static absl::Span<const absl::string_view> Paths();

  // "127.0.0.1:43211": the address with the real port.
  const std::string& address() const { return server_->address(); }

 private:
  explicit MetricsEndpoint(std::unique_ptr<HttpServer> server);
  std::unique_ptr<HttpServer> server_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_METRICS_ENDPOINT_H_
