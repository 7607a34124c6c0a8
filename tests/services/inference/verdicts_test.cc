// Bad requests as a client of either front can write them: the same verdict from both, and a server
// that goes on.

#include <functional>
#include <limits>

#include "services/inference/openai_response.h"
#include "services/inference/request_check.h"
#include "tests/services/inference/inference_fixture.h"
#include "tests/services/inference/openai_client.h"

namespace quern {
namespace {

constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
constexpr int32_t kMost = std::numeric_limits<int32_t>::max();

class VerdictsTest : public InferenceServerTest {
 protected:
  using SpoilGrpc = std::function<void(GenerateTextRequest&)>;

  VerdictsTest() { LoadTiny(); }
  ~VerdictsTest() override {
    EXPECT_OK(Generate(Request()));
    EXPECT_EQ(Post(kCompletions, Completion()).status, 200);
    EXPECT_EQ(Metric("quern_requests_running"), 0);
    EXPECT_EQ(Metric("quern_kv_pages{state=\"used\"}"), 0);
  }

  static Json Completion() {
    return {{"model", "tiny"}, {"prompt", "Once upon a time"}, {"max_tokens", 20}};
  }
  static Json Chat() {
    return {{"model", "tiny"}, {"messages", {{{"role", "user"}, {"content", "Hello"}}}}};
  }
  Answer Post(const std::string& path, const Json& body) {
    return Parse(Exchange(server_->http_address(), PostBytes(path, body.dump())));
  }

  // By gRPC, whole and as a stream.
  absl::StatusCode ByGrpc(const SpoilGrpc& spoil) {
    GenerateTextRequest request = Request();
    spoil(request);
    const absl::Status whole = Generate(request).status();
    EXPECT_EQ(Stream(request).status(), whole);
    EXPECT_FALSE(whole.message().empty());
    return whole.code();
  }
  // By HTTP, whole and as a stream; 0 when they differ or the error is none of OpenAI's form.
  int ByHttp(const std::string& path, Json body) {
    const int whole = PostBody(path, body.dump());
    body["stream"] = true;
    EXPECT_EQ(PostBody(path, body.dump()), whole);
    return whole;
  }
  int PostBody(const std::string& path, const std::string& bytes) {
    const Answer answer = Parse(Exchange(server_->http_address(), PostBytes(path, bytes)));
    const Json json = Json::parse(answer.body, nullptr, false);
    EXPECT_TRUE(json.is_object() && json.contains("error") &&
                !json["error"].value("message", "").empty() && json["error"].contains("type"))
        << answer.body;
    return answer.status;
  }

  // The same fault on both sides; `body` as it goes over HTTP.
  void Both(const std::string& what, absl::StatusCode code, const SpoilGrpc& spoil,
            const std::string& path, const Json& body) {
    SCOPED_TRACE(what);
    EXPECT_EQ(ByGrpc(spoil), code);
    EXPECT_EQ(ByHttp(path, body), ErrorResponse(absl::Status(code, "x")).status);
    num_cases_ += 2;
  }
  void BothInvalid(const std::string& field, const Json& value, const SpoilGrpc& spoil) {
    Json body = Completion();
    body[field] = value;
    Both(absl::StrCat(field, "=", value.dump().substr(0, 80)), absl::StatusCode::kInvalidArgument,
         spoil, kCompletions, body);
  }
  // What only HTTP can write.
  void HttpInvalid(const std::string& bytes) {
    for (const char* path : {kCompletions, kChat}) {
      EXPECT_EQ(PostBody(path, bytes), 400) << path << " " << bytes.substr(0, 200);
      ++num_cases_;
    }
  }
  void HttpInvalidField(const std::string& field, const Json& value) {
    Json completion = Completion();
    completion[field] = value;
    HttpInvalid(completion.dump());
    Json chat = Chat();
    chat[field] = value;
    EXPECT_EQ(PostBody(kChat, chat.dump()), 400) << chat;
    ++num_cases_;
  }

  int num_cases_ = 0;
};

TEST_F(VerdictsTest, NumbersOutOfTheirRange) {
  const auto sampling = [&](const std::string& field, const Json& value, auto set) {
    BothInvalid(field, value, [&](auto& request) { set(*request.mutable_sampling()); });
  };
  for (const float bad : {-0.1F, 100.5F, 1e30F, -1e30F}) {
    sampling("temperature", bad, [&](auto& to) { to.set_temperature(bad); });
    sampling("frequency_penalty", bad == -0.1F ? -100.5F : bad,
             [&](auto& to) { to.set_frequency_penalty(bad == -0.1F ? -100.5F : bad); });
    sampling("presence_penalty", bad == -0.1F ? -100.5F : bad,
             [&](auto& to) { to.set_presence_penalty(bad == -0.1F ? -100.5F : bad); });
    sampling("repetition_penalty", bad, [&](auto& to) { to.set_repetition_penalty(bad); });
  }
  for (const float bad : {0.0F, -0.5F, 1.0001F, 1e30F}) {
    sampling("top_p", bad, [&](auto& to) { to.set_top_p(bad); });
    sampling("typical_p", bad, [&](auto& to) { to.set_typical_p(bad); });
  }
  for (const float bad : {-0.1F, 1.0F, 2.0F}) {
    sampling("min_p", bad, [&](auto& to) { to.set_min_p(bad); });
  }
  for (const int bad : {-2, kLeast}) {
    sampling("top_k", bad, [&](auto& to) { to.set_top_k(bad); });
  }
  for (const float bad : {100.5F, -100.5F, 1e30F}) {
    sampling("logit_bias", {{"5", bad}}, [&](auto& to) { (*to.mutable_logit_bias())[5] = bad; });
  }
  for (const int id : {-1, 300, kLeast, kMost}) {
    sampling("logit_bias", {{std::to_string(id), 1}},
             [&](auto& to) { (*to.mutable_logit_bias())[id] = 1; });
  }
  // JSON has no word for them: it takes them for a fault of its grammar.
  using Limits = std::numeric_limits<float>;
  for (const float bad : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
    EXPECT_EQ(ByGrpc([&](auto& request) { request.mutable_sampling()->set_temperature(bad); }),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ByGrpc([&](auto& request) { request.mutable_sampling()->set_top_p(bad); }),
              absl::StatusCode::kInvalidArgument);
    num_cases_ += 2;
  }
  for (const char* number : {"NaN", "Infinity", "-Infinity", "1e400", "01", "+1", "0x1", "1."}) {
    HttpInvalid(absl::StrCat(R"({"model":"tiny","prompt":"a","temperature":)", number, "}"));
  }
  EXPECT_GE(num_cases_, 60);
}

TEST_F(VerdictsTest, LengthsAndStops) {
  for (const int bad : {-1, kLeast, kContext + 1, kMost}) {
    BothInvalid("max_tokens", bad, [&](auto& request) { request.set_max_output_tokens(bad); });
  }
  for (const int bad : {-1, 21, kMost}) {
    BothInvalid("min_tokens", bad, [&](auto& request) { request.set_min_output_tokens(bad); });
  }
  for (const int bad : {-1, 21, kMost}) {
    BothInvalid("logprobs", bad, [&](auto& request) { request.set_num_logprobs(bad); });
  }
  const std::vector<std::vector<std::string>> stops = {{""},
                                                       {"x", ""},
                                                       std::vector<std::string>(5, "x"),
                                                       std::vector<std::string>(10'000, "x"),
                                                       {std::string(65, 'x')},
                                                       {std::string(1 << 20, 'x')}};
  for (const std::vector<std::string>& bad : stops) {
    BothInvalid("stop", bad, [&](auto& request) {
      request.mutable_stop_sequences()->Assign(bad.begin(), bad.end());
    });
  }
  for (const std::vector<int32_t>& bad :
       {std::vector<int32_t>{-1}, {300}, {kMost}, std::vector<int32_t>(1000, 5)}) {
    BothInvalid("stop_token_ids", bad, [&](auto& request) {
      request.mutable_stop_token_ids()->Assign(bad.begin(), bad.end());
    });
  }
  EXPECT_GE(num_cases_, 40);
}

TEST_F(VerdictsTest, PromptsAndChats) {
  for (const std::string& bad :
       {std::string(), std::string(10'000, '!'), std::string(kMaxPromptBytes + 1, 'a')}) {
    BothInvalid("prompt", bad, [&](auto& request) { request.set_prompt(bad); });
  }
  for (const std::vector<int32_t>& bad :
       {std::vector<int32_t>{}, {-1}, {5, 300}, {kMost}, std::vector<int32_t>(kContext + 1, 5)}) {
    BothInvalid("prompt", bad, [&](auto& request) {
      request.mutable_prompt_tokens()->mutable_ids()->Assign(bad.begin(), bad.end());
    });
  }
  using Message = inference::v1::Chat::Message;
  const auto chat = [&](const std::string& what,
                        const std::vector<std::pair<Message::Role, std::string>>& messages) {
    Json body = Chat();
    body["messages"] = Json::array();
    for (const auto& [role, content] : messages) {
      body["messages"].push_back({{"role", role == Message::USER        ? "user"
                                           : role == Message::ASSISTANT ? "assistant"
                                           : role == Message::SYSTEM    ? "system"
                                                                        : "nobody"},
                                  {"content", content}});
    }
    Both(
        what, absl::StatusCode::kInvalidArgument,
        [&](auto& request) {
          request.mutable_chat();
          for (const auto& [role, content] : messages) {
            Message* message = request.mutable_chat()->add_messages();
            message->set_role(role);
            message->set_content(content);
          }
        },
        kChat, body);
  };
  chat("none", {});
  chat("the assistant last", {{Message::USER, "a"}, {Message::ASSISTANT, "b"}});
  chat("no such role", {{Message::ROLE_UNSPECIFIED, "a"}});
  chat("too many", std::vector<std::pair<Message::Role, std::string>>(kMaxChatMessages + 1,
                                                                      {Message::USER, "a"}));
  chat("too long", {{Message::USER, std::string(5'000, '!')}});
  chat("too many bytes",
       {{Message::USER, std::string(kMaxPromptBytes, 'a')}, {Message::USER, "b"}});
  EXPECT_GE(num_cases_, 26);
}

TEST_F(VerdictsTest, Models) {
  const auto model = [&](absl::StatusCode code, const std::string& name) {
    Json body = Completion();
    body["model"] = name;
    Both(
        name.substr(0, 80), code,
        [&](auto& request) { request.set_model(absl::StrCat("models/", name)); }, kCompletions,
        body);
  };
  for (const std::string& bad :
       {std::string(), std::string("UPPER"), std::string("../tiny"), std::string("ti\nny"),
        std::string("tiny/x"), std::string(64, 'a'), std::string(1 << 20, 'a'), std::string("t%n"),
        std::string("tiny';--")}) {
    model(absl::StatusCode::kInvalidArgument, bad);
  }
  model(absl::StatusCode::kNotFound, "other");
  model(absl::StatusCode::kNotFound, std::string(63, 'a'));
  EXPECT_GE(num_cases_, 22);
}

TEST_F(VerdictsTest, WhatOnlyJsonCanSay) {
  for (const char* bytes :
       {"", " ", "{", "}", "[]", "null", "7", "\"x\"", "{\"model\":\"tiny\",}",
        "{\"model\":\"tiny\" \"prompt\":\"a\"}", "{'model':'tiny'}", "{\"model\":\"\xff\"}",
        "{\"model\":\"\xed\xa0\x80\"}", "\xef\xbb\xbf{}", "{} {}", "{\"a\":tru}",
        "{\"model\":\"tiny\",\"model\":\"tiny\",\"prompt\":\"a\"}", "/**/{}"}) {
    HttpInvalid(bytes);
  }
  HttpInvalid(std::string(100'000, '['));
  HttpInvalid(absl::StrCat("{\"model\":", std::string(2'000'000, '{')));
  HttpInvalid(absl::StrCat("{\"model\":\"", std::string(3'000'000, 'a')));
  HttpInvalid(std::string("{\0}", 3));
  // UTF-16.
  HttpInvalid(std::string("\xff\xfe{\0}\0", 6));
  std::string many = "{";
  for (int i = 0; i < 100'000; ++i) absl::StrAppend(&many, "\"k", i, "\":0,");
  HttpInvalid(many + "\"model\":\"tiny\"}");

  for (const Json& bad : {Json("hot"), Json(true), Json::array(), Json::object()}) {
    HttpInvalidField("temperature", bad);
    HttpInvalidField("top_p", bad);
  }
  for (const Json& bad : {Json("1"), Json(1.5), Json(true), Json::array({1})}) {
    HttpInvalidField("seed", bad);
    HttpInvalidField("n", bad);
    HttpInvalidField("max_tokens", bad);
    HttpInvalidField("top_k", bad);
  }
  for (const Json& bad : {Json(0), Json(-1), Json(33), Json(kMost), Json(uint64_t{1} << 63)}) {
    HttpInvalidField("n", bad);
  }
  for (const Json& bad : {Json(3), Json{1, 2}, Json{{"a", 1}}, Json(true)}) {
    HttpInvalidField("stop", bad);
    HttpInvalidField("model", bad);
    HttpInvalidField("logit_bias", bad);
  }
  for (const Json& bad : {Json("yes"), Json(1), Json::array()}) {
    HttpInvalidField("stream", bad);
    HttpInvalidField("ignore_eos", bad);
  }
  for (const char* name : {"tools_", "prompt_", "no_such_field", "max_token", "__proto__"}) {
    HttpInvalidField(name, 1);
  }
  // One request, much work: the product is what is bounded.
  Json body = Completion();
  body["prompt"] = std::vector<std::string>(17, "a");
  body["n"] = 2;
  HttpInvalid(body.dump());
  body["prompt"] = std::vector<std::string>(100'000, "a");
  body["n"] = 1;
  HttpInvalid(body.dump());
  EXPECT_GE(num_cases_, 150);
}

}  // namespace
}  // namespace quern
