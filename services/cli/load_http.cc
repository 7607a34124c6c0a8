// Load over HTTP: OpenAI's API, on one thread with Boost.Asio.

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include <array>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <set>

#include "core/base/status_macros.h"
#include "services/cli/load.h"
#include "services/cli/openai_stream.h"

namespace quern::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

using Endpoints = asio::ip::tcp::resolver::results_type;

// What is kept of the body of an error.
constexpr size_t kMaxErrorBytes = 16 << 10;

std::string BodyOf(const LoadRequest& request, const LoadClientOptions& options) {
  Json body = {{"model", options.model},
               {"max_tokens", request.max_tokens},
               {"temperature", 0},
               {"stream", true},
               {"stream_options", {{"include_usage", true}}}};
  // Not OpenAI's own, but Quern's, llama-server's and vLLM's.
  if (options.ignore_end_of_text) body["ignore_eos"] = true;
  if (request.messages.is_array()) {
    body["messages"] = request.messages;
  } else if (!request.prompt_ids.empty()) {
    body["prompt"] = request.prompt_ids;
  } else {
    body["prompt"] = request.prompt;
  }
  return body.dump();
}

// One request on a connection of its own; every step starts the next.
class HttpLoadCall {
 public:
  using OnDone = std::function<void(HttpLoadCall*)>;

  HttpLoadCall(asio::io_context& context, http::request<http::string_body> request,
               const LoadStart& start, LoadClient::OnOutcome on_outcome, OnDone on_done)
      : stream_(context),
        request_(std::move(request)),
        recorder_(start),
        on_outcome_(std::move(on_outcome)),
        on_done_(std::move(on_done)) {
    parser_.body_limit(boost::none);
  }

  void Connect(const Endpoints& endpoints) {
    stream_.async_connect(endpoints,
                          [this](beast::error_code error, const asio::ip::tcp::endpoint&) {
                            if (Failed(error, "connecting")) return;
                            stream_.socket().set_option(asio::ip::tcp::no_delay(true), error);
                            Send();
                          });
  }
  // The step under way fails soon.
  void Cancel() {
    cancelled_ = true;
    stream_.cancel();
  }
  void HandOver() {
    const LoadClient::OnOutcome on_outcome = std::move(on_outcome_);
    on_outcome(recorder_.End(std::move(status_), answer_.usage()));
  }

 private:
  void Send() {
    http::async_write(stream_, request_, [this](beast::error_code error, size_t) {
      if (Failed(error, "sending the request")) return;
      http::async_read_header(stream_, buffer_, parser_, [this](beast::error_code error, size_t) {
        if (Failed(error, "waiting for the answer")) return;
        Read();
      });
    });
  }

  void Read() {
    if (parser_.is_done()) return Done(EndOfBody());
    auto& body = parser_.get().body();
    body.data = chunk_.data();
    body.size = chunk_.size();
    body.more = true;
    http::async_read_some(stream_, buffer_, parser_, [this](beast::error_code error, size_t) {
      if (error == http::error::need_buffer) error = {};
      // A body without a length ends with its connection.
      if (error == http::error::end_of_stream && parser_.is_done()) error = {};
      if (Failed(error, "reading the answer")) return;
      const absl::Status status = Take({chunk_.data(), chunk_.size() - parser_.get().body().size});
      if (!status.ok()) return Done(status);
      Read();
    });
  }

  absl::Status Take(absl::string_view bytes) {
    if (parser_.get().result() != http::status::ok) {
      error_body_.append(bytes.data(), std::min(bytes.size(), kMaxErrorBytes - error_body_.size()));
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const int num_pieces, answer_.Feed(bytes));
    for (int i = 0; i < num_pieces; ++i) recorder_.Piece(1);
    return absl::OkStatus();
  }

  absl::Status EndOfBody() const {
    const int code = parser_.get().result_int();
    if (code != 200) {
      return absl::Status(CodeOfHttpStatus(code),
                          absl::StrCat("HTTP ", code, ": ", OpenAiErrorMessage(error_body_)));
    }
    if (!answer_.complete()) {
      return absl::DataLossError("the stream ended before the answer did");
    }
    return absl::OkStatus();
  }

  bool Failed(const beast::error_code& error, absl::string_view step) {
    if (cancelled_) {
      Done(absl::CancelledError("given up by this client"));
    } else if (error) {
      Done(absl::UnavailableError(absl::StrCat(step, ": ", error.message())));
    } else {
      return false;
    }
    return true;
  }

  // The owner deletes this call.
  void Done(absl::Status status) {
    status_ = std::move(status);
    on_done_(this);
  }

  beast::tcp_stream stream_;
  const http::request<http::string_body> request_;
  beast::flat_buffer buffer_;
  http::response_parser<http::buffer_body> parser_;
  std::array<char, 8192> chunk_;
  std::string error_body_;
  OpenAiStream answer_;
  bool cancelled_ = false;
  absl::Status status_;
  LoadRecorder recorder_;
  LoadClient::OnOutcome on_outcome_;
  const OnDone on_done_;
};

class HttpLoadClient final : public LoadClient {
 public:
  HttpLoadClient(const HttpUrl& url, const LoadClientOptions& options)
      : url_(url), options_(options) {
    absl::string_view base = url_.target;
    absl::ConsumeSuffix(&base, "/");
    absl::ConsumeSuffix(&base, "/v1");
    base_ = std::string(base);
  }
  ~HttpLoadClient() override {
    closing_ = true;
    CancelAll();
    // Steps that were cancelled still run, on calls that are there.
    while (!open_.empty()) context_.run_one();
  }

  absl::Status Resolve() {
    asio::ip::tcp::resolver resolver(context_);
    beast::error_code error;
    endpoints_ = resolver.resolve(url_.host_port.host, absl::StrCat(url_.host_port.port), error);
    if (!error) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat(url_.host_port.ToString(), ": no address: ", error.message()));
  }

  void Start(const LoadRequest& request, const LoadStart& start, OnOutcome on_outcome) override {
    http::request<http::string_body> message(
        http::verb::post,
        absl::StrCat(base_,
                     request.messages.is_array() ? "/v1/chat/completions" : "/v1/completions"),
        11);
    message.set(http::field::host, url_.host_port.ToString());
    message.set(http::field::user_agent, "quern");
    message.set(http::field::content_type, "application/json");
    message.set(http::field::accept, "text/event-stream");
    message.set(http::field::connection, "close");
    message.body() = BodyOf(request, options_);
    message.prepare_payload();
    auto* call = new HttpLoadCall(context_, std::move(message), start, std::move(on_outcome),
                                  [this](HttpLoadCall* done) { Close(done); });
    open_.insert(call);
    call->Connect(endpoints_);
  }

  void HandleUntil(absl::Time time) override {
    const std::chrono::system_clock::time_point deadline = absl::ToChronoTime(time);
    while (!open_.empty() && context_.run_one_until(deadline) > 0 &&
           std::chrono::system_clock::now() < deadline) {
    }
  }

  void CancelAll() override {
    for (HttpLoadCall* call : open_) call->Cancel();
  }
  int num_open() const override { return static_cast<int>(open_.size()); }

 private:
  void Close(HttpLoadCall* done) {
    const std::unique_ptr<HttpLoadCall> over(done);
    open_.erase(done);
    if (!closing_) done->HandOver();
  }

  const HttpUrl url_;
  const LoadClientOptions options_;
  std::string base_;  // of the paths
  asio::io_context context_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{context_.get_executor()};
  Endpoints endpoints_;
  bool closing_ = false;          // nobody waits for outcomes
  std::set<HttpLoadCall*> open_;  // owned; their steps are in the context
};

}  // namespace

absl::StatusOr<std::unique_ptr<LoadClient>> MakeHttpLoadClient(const HttpUrl& url,
                                                               const LoadClientOptions& options) {
  auto client = std::make_unique<HttpLoadClient>(url, options);
  RETURN_IF_ERROR(client->Resolve());
  return client;
}

}  // namespace quern::cli
