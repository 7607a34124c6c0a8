#include "services/common/metrics_endpoint.h"

#include <absl/strings/str_cat.h>
#include <prometheus/text_serializer.h>

#include <utility>

#include "core/base/status_macros.h"

namespace quern {
namespace {

constexpr absl::string_view kPaths[] = {"/metrics", "/healthz", "/readyz"};

HttpResponse Check(const std::function<absl::Status()>& check) {
  const absl::Status status = check ? check() : absl::OkStatus();
  if (status.ok()) return {.body = "ok\n"};
  return {.status = 503, .body = absl::StrCat(status.message(), "\n")};
}

HttpResponse Answer(const MetricsEndpointOptions& options, const prometheus::Registry& registry,
                    const HttpRequest& request) {
  const absl::string_view path = request.path;
  if (!PathIsOneOf(MetricsEndpoint::Paths(), path)) {
    return {.status = 404, .body = "try /metrics, /healthz or /readyz\n"};
  }
  if (request.method != "GET") {
    return {.status = 405, .body = "GET or HEAD only\n", .headers = {{"Allow", "GET, HEAD"}}};
  }
  if (path == "/healthz") return Check(options.live);
  if (path == "/readyz") return Check(options.ready);
  if (options.before_scrape) options.before_scrape();
  return {.content_type = "text/plain; version=0.0.4; charset=utf-8",
          .body = prometheus::TextSerializer().Serialize(registry.Collect())};
}

}  // namespace

absl::Span<const absl::string_view> MetricsEndpoint::Paths() { return kPaths; }

MetricsEndpoint::MetricsEndpoint(std::unique_ptr<HttpServer> server) : server_(std::move(server)) {}

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(
    const MetricsEndpointOptions& options, const prometheus::Registry& registry) {
  const absl::StatusOr<HostPort> address = ParseHostPort(options.listen);
  const bool loopback = address.ok() && IsLoopback(address->host);
  const HttpServerOptions server_options{.flag = "--metrics-listen",
                                         .listen = options.listen,
                                         .security = loopback ? nullptr : options.security,
                                         .max_header_bytes = options.max_header_bytes,
                                         .max_connections = options.max_connections,
                                         .timeout = options.timeout};
  ASSIGN_OR_RETURN(std::unique_ptr<HttpServer> server,
                   HttpServer::Start(server_options, [options, &registry](
                                                         std::shared_ptr<HttpExchange> exchange) {
                     exchange->Respond(Answer(options, registry, exchange->request()));
                   }));
  return std::unique_ptr<MetricsEndpoint>(new MetricsEndpoint(std::move(server)));
}

}  // namespace quern
