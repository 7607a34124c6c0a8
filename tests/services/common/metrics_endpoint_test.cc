#include "services/common/metrics_endpoint.h"

#include <prometheus/counter.h>

#include <atomic>
#include <thread>

#include "tests/services/common/http_client.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class MetricsEndpointTest : public testing::Test {
 protected:
  void Start(MetricsEndpointOptions options = {}) {
    options.ready = [this]() -> absl::Status {
      return ready_ ? absl::OkStatus() : absl::UnavailableError("not yet");
    };
    options.before_scrape = [this] { ++scrapes_; };
    auto endpoint = MetricsEndpoint::Start(options, registry_);
    ASSERT_OK(endpoint);
    endpoint_ = *std::move(endpoint);
  }
  std::string Get(const std::string& target) { return HttpGet(endpoint_->address(), target); }
  std::string Send(const std::string& bytes) { return Exchange(endpoint_->address(), bytes); }

  prometheus::Registry registry_;
  std::atomic<bool> ready_ = false;
  std::atomic<int> scrapes_ = 0;
  std::unique_ptr<MetricsEndpoint> endpoint_;
};

TEST_F(MetricsEndpointTest, ServesTheRegistry) {
  Start();
  prometheus::BuildCounter()
      .Name("quern_things_total")
      .Help("Things.")
      .Register(registry_)
      .Add({{"kind", "good"}})
      .Increment(3);
  const std::string answer = Get("/metrics");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4"));
  EXPECT_THAT(answer, testing::ContainsRegex(
                          "Date: [A-Z][a-z]+, [0-9]+ [A-Z][a-z]+ 20[0-9]+ [0-9:]+ GMT\r"));
  EXPECT_EQ(ScrapedValue(answer, "quern_things_total{kind=\"good\"}"), 3);
  EXPECT_EQ(scrapes_, 1);
}

TEST_F(MetricsEndpointTest, SaysWhetherItIsAliveAndReady) {
  Start();
  EXPECT_THAT(Get("/healthz"), AllOf(StartsWith("HTTP/1.1 200"), EndsWith("\r\n\r\nok\n")));
  EXPECT_THAT(Get("/readyz"), AllOf(StartsWith("HTTP/1.1 503"), EndsWith("not yet\n")));
  ready_ = true;
  EXPECT_THAT(Get("/readyz?verbose"), StartsWith("HTTP/1.1 200"));
}

TEST_F(MetricsEndpointTest, HeadHasTheLengthAndNoBody) {
  Start();
  EXPECT_THAT(
      Send("HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
      AllOf(StartsWith("HTTP/1.1 200"), HasSubstr("Content-Length: 3\r\n"), EndsWith("\r\n\r\n")));
}

TEST_F(MetricsEndpointTest, KeepsAConnectionOpen) {
  Start();
  const std::string answer = Send(
      "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
      "GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(answer, AllOf(HasSubstr("HTTP/1.1 200"), HasSubstr("HTTP/1.1 404")));
}

TEST_F(MetricsEndpointTest, RefusesWhatItDoesNotServe) {
  MetricsEndpointOptions options;
  options.timeout = absl::Milliseconds(200);
  Start(options);
  const std::string close = "Host: x\r\nConnection: close\r\n\r\n";
  EXPECT_THAT(Get("/"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Get("/metrics/../etc/passwd"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Send("POST /metrics HTTP/1.1\r\n" + close),
              AllOf(StartsWith("HTTP/1.1 405"), HasSubstr("Allow: GET, HEAD")));
  EXPECT_THAT(Send("POST /metrics HTTP/1.1\r\nContent-Length: 100\r\n" + close + "body"),
              StartsWith("HTTP/1.1 413"));
  EXPECT_THAT(Send("GET /" + std::string(9000, 'a') + " HTTP/1.1\r\n" + close),
              StartsWith("HTTP/1.1 431"));
  EXPECT_THAT(Send("GET / HTTP/1.1\r\nX: " + std::string(9000, 'a') + "\r\n" + close),
              StartsWith("HTTP/1.1 431"));
  EXPECT_THAT(Send("rubbish\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(Send("GET / HTTP/9.9\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(Send("GET / HTTP/1.1\r\nbad header\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  // Half a request: closed without an answer when its time is up.
  EXPECT_EQ(Send("GET /metrics HT"), "");
  // And it still serves.
  EXPECT_THAT(Get("/healthz"), StartsWith("HTTP/1.1 200"));
}

TEST_F(MetricsEndpointTest, BoundsHeadsToTheByte) {
  MetricsEndpointOptions options;
  options.max_header_bytes = 16 << 10;
  Start(options);
  const std::string rest = " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
  const auto with_fields = [&](int num_fields) {
    std::string head = "GET /healthz" + rest;
    for (int i = 2; i < num_fields; ++i) absl::StrAppend(&head, "X-", i, ": x\r\n");
    return Send(head + "\r\n");
  };
  EXPECT_THAT(with_fields(64), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(with_fields(65), StartsWith("HTTP/1.1 431"));
  const auto with_target = [&](size_t bytes) {
    const std::string path = "/healthz?";
    return Send("GET " + path + std::string(bytes - path.size(), 'q') + rest + "\r\n");
  };
  EXPECT_THAT(with_target(8 << 10), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(with_target((8 << 10) + 1), StartsWith("HTTP/1.1 414"));
  const auto with_head = [&](size_t bytes) {
    std::string head = "GET /healthz" + rest + "X: ";
    return Send(head + std::string(bytes - head.size() - 4, 'x') + "\r\n\r\n");
  };
  EXPECT_THAT(with_head((16 << 10) - 8), StartsWith("HTTP/1.1 200"));
  // The request line is counted apart.
  EXPECT_THAT(with_head((16 << 10) + 64), StartsWith("HTTP/1.1 431"));
}

TEST_F(MetricsEndpointTest, BoundsItsConnections) {
  MetricsEndpointOptions options;
  options.max_connections = 0;
  Start(options);
  EXPECT_THAT(Send(""), Not(HasSubstr("HTTP")));
}

TEST_F(MetricsEndpointTest, ServesManyAtOnce) {
  Start();
  std::vector<std::thread> clients;
  std::atomic<int> good = 0;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&] {
      for (int j = 0; j < 10; ++j) good += Get("/metrics").starts_with("HTTP/1.1 200") ? 1 : 0;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(good, 80);
}

TEST_F(MetricsEndpointTest, RefusesAddresses) {
  MetricsEndpointOptions options;
  options.listen = "0.0.0.0:0";
  EXPECT_THAT(MetricsEndpoint::Start(options, registry_),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("--metrics-listen")));
  options.listen = "localhost:0";
  EXPECT_OK(MetricsEndpoint::Start(options, registry_));
  Start();
  options.listen = endpoint_->address();
  EXPECT_THAT(MetricsEndpoint::Start(options, registry_),
              StatusIs(StatusCode::kUnavailable, HasSubstr(endpoint_->address())));
}

}  // namespace
}  // namespace quern
