#ifndef QUERN_TESTS_SERVICES_CLI_OPENAI_SERVER_H_
#define QUERN_TESTS_SERVICES_CLI_OPENAI_SERVER_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/base/mutex.h"
#include "services/common/http_server.h"
#include "tests/support/status_matchers.h"

namespace quern {

// An OpenAI-compatible server as far as its clients see it: `answer` gets each request with its
// number, counted from 0, and says whether it has answered it; if not, it stays open.
class FakeOpenAiServer {
 public:
  using Answer = std::function<bool(int number, HttpExchange& exchange)>;

  explicit FakeOpenAiServer(Answer answer) {
    auto server = HttpServer::Start(
        {.flag = "--test",
         .max_body_bytes = 1 << 20,
         .refuse =
             [](int status, absl::string_view message) {
               return HttpResponse{.status = status, .body = std::string(message)};
             }},
        [this, answer = std::move(answer)](std::shared_ptr<HttpExchange> exchange) {
          int number = 0;
          {
            MutexLock lock(&mutex_);
            number = static_cast<int>(requests_.size());
            requests_.push_back(exchange->request());
          }
          if (answer(number, *exchange)) return;
          MutexLock lock(&mutex_);
          open_.push_back(exchange);
        });
    EXPECT_OK(server);
    server_ = *std::move(server);
  }

  ~FakeOpenAiServer() {
    server_->Shutdown(absl::ZeroDuration());
    MutexLock lock(&mutex_);
    open_.clear();
  }

  std::string url() const { return "http://" + server_->address(); }
  std::vector<HttpRequest> requests() const {
    MutexLock lock(&mutex_);
    return requests_;
  }

  // A stream of these pieces as llama-server sends them, for completions and for chats.
  static bool Stream(HttpExchange& exchange, const std::vector<std::string>& pieces) {
    const bool chat = exchange.request().path == "/v1/chat/completions";
    const auto write = [&](const Json& event) { exchange.Write("data: " + event.dump() + "\n\n"); };
    exchange.StartStream("text/event-stream");
    if (chat) {
      write({{"choices",
              {{{"index", 0}, {"delta", {{"role", "assistant"}, {"content", nullptr}}}}}}});
    }
    for (const std::string& piece : pieces) {
      Json choice = {{"index", 0}, {"finish_reason", nullptr}};
      if (chat) {
        choice["delta"] = {{"content", piece}};
      } else {
        choice["text"] = piece;
      }
      write({{"choices", {choice}}});
    }
    write({{"choices", {{{"index", 0}, {"text", ""}, {"finish_reason", "length"}}}},
           {"usage", {{"prompt_tokens", 5}, {"completion_tokens", 2 * pieces.size()}}}});
    exchange.Write("data: [DONE]\n\n");
    exchange.EndStream();
    return true;
  }

 private:
  mutable Mutex mutex_;
  std::vector<HttpRequest> requests_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<HttpExchange>> open_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<HttpServer> server_;
};

}  // namespace quern

#endif  // QUERN_TESTS_SERVICES_CLI_OPENAI_SERVER_H_
