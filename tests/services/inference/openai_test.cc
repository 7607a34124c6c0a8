// OpenAI's HTTP API by raw sockets, beside gRPC on the same server.

#include <absl/strings/str_split.h>

#include <nlohmann/json.hpp>

#include "tests/services/inference/inference_fixture.h"
#include "tests/services/inference/openai_client.h"

namespace quern {
namespace {

using testing::HasSubstr;

// The data of server-sent events.
std::vector<std::string> Events(const std::string& body) {
  std::vector<std::string> events;
  for (absl::string_view event : absl::StrSplit(body, "\n\n", absl::SkipEmpty())) {
    EXPECT_TRUE(absl::ConsumePrefix(&event, "data: ")) << event;
    events.emplace_back(event);
  }
  return events;
}

class OpenAiTest : public InferenceServerTest {
 protected:
  Answer Send(const std::string& bytes) { return Parse(Exchange(server_->http_address(), bytes)); }
  Answer Post(const std::string& path, const Json& body) {
    return Send(PostBytes(path, body.dump()));
  }
  Answer HttpGetPath(const std::string& path) {
    return Parse(HttpGet(server_->http_address(), path));
  }
  void ExpectRefused(const std::string& path, const Json& body, int status,
                     const std::string& param, const std::string& message) {
    const Answer answer = Post(path, body);
    EXPECT_EQ(answer.status, status) << body << answer.body;
    const Json error = answer.json().at("error");
    EXPECT_THAT(error.at("message").get<std::string>(), HasSubstr(message)) << body;
    EXPECT_EQ(error.at("param"), param.empty() ? Json(nullptr) : Json(param)) << body;
    EXPECT_TRUE(error.contains("type") && error.contains("code")) << error;
    ++num_refused_;
  }

  int num_refused_ = 0;
};

Json CompletionBody() {
  return {{"model", "tiny"},
          {"prompt", "Once upon a time"},
          {"max_tokens", 20},
          {"temperature", 0},
          {"seed", 1}};
}
Json ChatBody() {
  return {{"model", "tiny"},
          {"messages", {{{"role", "user"}, {"content", "Hello"}}}},
          {"max_tokens", 20},
          {"temperature", 0},
          {"seed", 1}};
}

TEST_F(OpenAiTest, CompletionIsWhatGrpcGives) {
  LoadTiny();
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse wanted, Generate(Request()));
  const Answer answer = Post(kCompletions, CompletionBody());
  ASSERT_EQ(answer.status, 200) << answer.body;
  const Json body = answer.json();
  EXPECT_EQ(body.at("object"), "text_completion");
  EXPECT_EQ(body.at("model"), "tiny");
  EXPECT_EQ(body.at("system_fingerprint"), wanted.system_fingerprint());
  EXPECT_THAT(body.at("id").get<std::string>(), testing::StartsWith("cmpl-"));
  ASSERT_EQ(body.at("choices").size(), 1u);
  EXPECT_EQ(body["choices"][0].at("text"), wanted.text());
  EXPECT_EQ(body["choices"][0].at("finish_reason"), "length");
  EXPECT_EQ(body["usage"].at("prompt_tokens"), wanted.usage().prompt_tokens());
  EXPECT_EQ(body["usage"].at("completion_tokens"), 20);
  EXPECT_EQ(body["usage"].at("total_tokens"), wanted.usage().prompt_tokens() + 20);
}

TEST_F(OpenAiTest, StreamJoinsToTheWholeAnswer) {
  LoadTiny();
  for (const bool chat : {false, true}) {
    Json body = chat ? ChatBody() : CompletionBody();
    const char* path = chat ? kChat : kCompletions;
    const Json whole = Post(path, body).json();
    body["stream"] = true;
    body["stream_options"] = {{"include_usage", true}};
    const Answer answer = Post(path, body);
    ASSERT_EQ(answer.status, 200);
    EXPECT_THAT(answer.head, HasSubstr("Content-Type: text/event-stream"));
    std::vector<std::string> events = Events(answer.body);
    ASSERT_GE(events.size(), 3u) << "text, usage and the end at least; pieces may be joined";
    EXPECT_EQ(events.back(), "[DONE]");
    events.pop_back();
    const Json last = Json::parse(events.back());
    EXPECT_EQ(last.at("choices"), Json::array());
    EXPECT_EQ(last.at("usage").at("completion_tokens"), 20);
    events.pop_back();
    std::string text;
    Json reason;
    for (size_t i = 0; i < events.size(); ++i) {
      const Json event = Json::parse(events[i]);
      EXPECT_EQ(event.at("object"), chat ? "chat.completion.chunk" : "text_completion");
      EXPECT_EQ(event.at("id"), Json::parse(events[0]).at("id"));
      const Json& choice = event.at("choices").at(0);
      if (chat) {
        EXPECT_EQ(choice.at("delta").contains("role"), i == 0);
        text += choice.at("delta").value("content", "");
      } else {
        text += choice.at("text").get<std::string>();
      }
      EXPECT_TRUE(reason.is_null()) << "nothing follows the end of a choice";
      reason = choice.at("finish_reason");
    }
    EXPECT_EQ(reason, "length");
    const Json& choice = whole.at("choices").at(0);
    EXPECT_EQ(text, chat ? choice.at("message").at("content") : choice.at("text"));
  }
}

TEST_F(OpenAiTest, ChatIsRenderedAndMayHaveParts) {
  LoadTiny();
  GenerateTextRequest request = Request();
  auto* message = request.mutable_chat()->add_messages();
  message->set_role(inference::v1::Chat::Message::SYSTEM);
  message->set_content("Be brief.");
  message = request.mutable_chat()->add_messages();
  message->set_role(inference::v1::Chat::Message::USER);
  message->set_content("Hello there");
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse wanted, Generate(request));
  Json body = ChatBody();
  body["messages"] = {
      {{"role", "developer"}, {"content", "Be brief."}},
      {{"role", "user"},
       {"name", "ann"},
       {"content",
        {{{"type", "text"}, {"text", "Hello "}}, {{"type", "text"}, {"text", "there"}}}}}};
  const Json answer = Post(kChat, body).json();
  const Json& choice = answer.at("choices").at(0);
  EXPECT_EQ(choice.at("message").at("role"), "assistant");
  EXPECT_EQ(choice.at("message").at("content"), wanted.text());
  EXPECT_EQ(answer.at("usage").at("prompt_tokens"), wanted.usage().prompt_tokens());
}

TEST_F(OpenAiTest, ChoicesAreTheirOwn) {
  LoadTiny();
  Json body = CompletionBody();
  body["prompt"] = {"Once", "Twice"};
  body["n"] = 2;
  body["echo"] = true;
  body["temperature"] = 1;
  body["ignore_eos"] = true;
  const Json answer = Post(kCompletions, body).json();
  ASSERT_EQ(answer.at("choices").size(), 4u) << answer;
  int64_t prompt_tokens = 0;
  for (int i = 0; i < 4; ++i) {
    const std::string prompt = i < 2 ? "Once" : "Twice";
    GenerateTextRequest request = Request(prompt, 20);
    request.mutable_sampling()->set_temperature(1);
    request.mutable_sampling()->set_seed(1 + i % 2);
    request.set_ignore_end_of_text(true);
    ASSERT_OK_AND_ASSIGN(const GenerateTextResponse wanted, Generate(request));
    EXPECT_EQ(answer["choices"][i].at("index"), i);
    EXPECT_EQ(answer["choices"][i].at("text"), prompt + wanted.text());
    if (i % 2 == 0) prompt_tokens += wanted.usage().prompt_tokens();
  }
  EXPECT_EQ(answer.at("usage").at("completion_tokens"), 80);
  EXPECT_EQ(answer.at("usage").at("prompt_tokens"), prompt_tokens);
}

TEST_F(OpenAiTest, LogprobsComeInBothForms) {
  LoadTiny();
  Json body = CompletionBody();
  body["logprobs"] = 3;
  const Json completion = Post(kCompletions, body).json().at("choices").at(0).at("logprobs");
  ASSERT_EQ(completion.at("tokens").size(), 20u);
  ASSERT_EQ(completion.at("token_logprobs").size(), 20u);
  EXPECT_LE(completion.at("token_logprobs").at(0).get<float>(), 0);
  body = ChatBody();
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  const Json chat = Post(kChat, body).json().at("choices").at(0).at("logprobs").at("content");
  ASSERT_EQ(chat.size(), 20u);
  ASSERT_EQ(chat.at(0).at("top_logprobs").size(), 2u);
  // Greedy: the token is the most probable one.
  EXPECT_EQ(chat.at(0).at("logprob"), chat.at(0).at("top_logprobs").at(0).at("logprob"));
}

TEST_F(OpenAiTest, ModelsAreListed) {
  EXPECT_EQ(HttpGetPath("/v1/models").json(), (Json{{"object", "list"}, {"data", Json::array()}}));
  LoadTiny();
  const Json list = HttpGetPath("/v1/models").json();
  ASSERT_EQ(list.at("data").size(), 1u);
  EXPECT_EQ(list["data"][0].at("id"), "tiny");
  EXPECT_EQ(list["data"][0].at("context_tokens"), kContext);
  EXPECT_EQ(HttpGetPath("/v1/models/tiny").json(), list["data"][0]);
  EXPECT_EQ(HttpGetPath("/v1/models/none").status, 404);
}

TEST_F(OpenAiTest, AnAliasIsAModelToo) {
  LoadTiny();
  ASSERT_OK(SetAlias("prod", "tiny"));
  const Json list = HttpGetPath("/v1/models").json();
  ASSERT_EQ(list.at("data").size(), 2u);
  EXPECT_EQ(list["data"][0].at("id"), "tiny");
  EXPECT_EQ(list["data"][0].at("root"), "tiny");
  EXPECT_EQ(list["data"][1].at("id"), "prod");
  EXPECT_EQ(list["data"][1].at("root"), "tiny");
  EXPECT_EQ(HttpGetPath("/v1/models/prod").json(), list["data"][1]);
  Json body = CompletionBody();
  body["model"] = "prod";
  const Json answer = Post(kCompletions, body).json();
  EXPECT_EQ(answer.at("model"), "prod");
  EXPECT_EQ(answer.at("choices").at(0).at("text"),
            Post(kCompletions, CompletionBody()).json().at("choices").at(0).at("text"));
}

TEST_F(OpenAiTest, WhatIsNotSupportedIsRefusedByName) {
  LoadTiny();
  const auto with = [](Json body, const std::string& name, Json value) {
    body[name] = std::move(value);
    return body;
  };
  const struct {
    std::string name;
    Json value;
  } kUnsupported[] = {
      {"suffix", "x"},
      {"best_of", 2},
      {"service_tier", "priority"},
      {"no_such_field", 1},
  };
  for (const auto& [name, value] : kUnsupported) {
    ExpectRefused(kCompletions, with(CompletionBody(), name, value), 400, name, name);
  }
  const struct {
    std::string name;
    Json value;
  } kUnsupportedChat[] = {
      {"tools", {{{"type", "function"}}}},
      {"tool_choice", "auto"},
      {"functions", {1}},
      {"modalities", {"audio"}},
      {"store", true},
      {"reasoning_effort", "high"},
      {"prompt", "x"},
  };
  for (const auto& [name, value] : kUnsupportedChat) {
    ExpectRefused(kChat, with(ChatBody(), name, value), 400, name, name);
  }
  // What they mean without it passes.
  Json harmless = ChatBody();
  harmless["tools"] = Json::array();
  harmless["response_format"] = {{"type", "text"}};
  harmless["user"] = "ann";
  harmless["stop"] = nullptr;
  EXPECT_EQ(Post(kChat, harmless).status, 200);
}

TEST_F(OpenAiTest, ResponseFormatIsKept) {
  LoadTiny();
  const auto content = [&](Json format) {
    Json body = ChatBody();
    body["max_tokens"] = 200;
    body["temperature"] = 1;
    body["seed"] = 5;
    body["response_format"] = std::move(format);
    const Answer answer = Post(kChat, body);
    EXPECT_EQ(answer.status, 200) << answer.body;
    const Json choice = answer.json()["choices"][0];
    EXPECT_EQ(choice["finish_reason"], "stop");
    return choice["message"]["content"].get<std::string>();
  };
  EXPECT_TRUE(Json::parse(content({{"type", "json_object"}})).is_object());
  // As a client writes it: "z" first. The library that makes bodies here would sort.
  const std::string schema =
      R"({"type":"object","properties":{"z":{"type":"boolean"},"a":{"enum":[1,2]}},)"
      R"("required":["z","a"],"additionalProperties":false})";
  const std::string with_schema = content(
      {{"type", "json_schema"},
       {"json_schema", {{"name", "x"}, {"strict", true}, {"schema", Json::parse(schema)}}}});
  const Json value = Json::parse(with_schema);
  EXPECT_TRUE(value.at("z").is_boolean() && (value.at("a") == 1 || value.at("a") == 2)) << value;
  EXPECT_EQ(value.size(), 2u);
  const Answer answer = Send(PostBytes(
      kCompletions, absl::StrCat(R"({"model":"tiny","prompt":"x","max_tokens":200,"temperature":0,)"
                                 R"("structured_outputs":{"json":)",
                                 schema, "}}")));
  ASSERT_EQ(answer.status, 200) << answer.body;
  const std::string text = answer.json()["choices"][0]["text"];
  EXPECT_LT(text.find("\"z\""), text.find("\"a\"")) << text;
}

TEST_F(OpenAiTest, StructuredOutputsAreKept) {
  LoadTiny();
  const auto text = [&](Json outputs) {
    Json body = CompletionBody();
    body["max_tokens"] = 100;
    body["structured_outputs"] = std::move(outputs);
    const Answer answer = Post(kCompletions, body);
    EXPECT_EQ(answer.status, 200) << answer.body;
    return answer.json()["choices"][0]["text"].get<std::string>();
  };
  EXPECT_THAT(text({{"regex", "[0-9]{3}-[0-9]{4}"}}), testing::MatchesRegex("...-...."));
  EXPECT_THAT(text({{"choice", {"yes", "no"}}}), testing::AnyOf("yes", "no"));
  EXPECT_EQ(Json::parse(text({{"json", R"({"const": [1, "a"]})"}})), Json({1, "a"}));
  // The limit may cut it off.
  EXPECT_THAT(text({{"json_object", true}}), testing::StartsWith("{"));
  EXPECT_EQ(text({{"json", {{"const", nullptr}}}, {"regex", nullptr}}), "null");
}

TEST_F(OpenAiTest, BadConstraintsAreNamed) {
  LoadTiny();
  const auto refused = [&](const char* name, Json value, const std::string& param,
                           const std::string& message) {
    for (const char* path : {kCompletions, kChat}) {
      Json body = path == std::string(kChat) ? ChatBody() : CompletionBody();
      body[name] = value;
      ExpectRefused(path, body, 400, param, message);
    }
  };
  refused("response_format", "json", "response_format", "wanted an object");
  refused("response_format", {{"type", "grammar"}}, "response_format.type", "wanted text");
  refused("response_format", {{"type", "json_schema"}}, "response_format.json_schema", "wanted");
  refused("response_format", {{"type", "json_schema"}, {"json_schema", {{"name", "x"}}}},
          "response_format.json_schema.schema", "wanted a JSON schema");
  refused("response_format", {{"type", "text"}, {"schema", true}}, "response_format.schema",
          "unknown field");
  refused("structured_outputs", Json::object(), "structured_outputs", "exactly one of");
  refused("structured_outputs", {{"regex", "a"}, {"choice", {"a"}}}, "structured_outputs",
          "exactly one of");
  refused("structured_outputs", {{"grammar", "root ::= x"}}, "structured_outputs.grammar",
          "does not support");
  refused("structured_outputs", {{"choice", {"a", 1}}}, "structured_outputs.choice",
          "array of texts");
  refused("structured_outputs", {{"choice", Json::array()}}, "", "wanted 1 to 1024");
  refused("structured_outputs", {{"regex", "(a"}}, "", "regular expression, offset 2");
  refused("structured_outputs", {{"json", {{"multipleOf", 3}}}}, "", "\"multipleOf\"");
  refused("guided_regex", "a", "guided_regex", "unknown field");
  Json both = ChatBody();
  both["response_format"] = {{"type", "json_object"}};
  both["structured_outputs"] = {{"regex", "a"}};
  ExpectRefused(kChat, both, 400, "structured_outputs", "not together");
}

TEST_F(OpenAiTest, BadFieldsAreNamed) {
  LoadTiny();
  const auto bad = [&](const char* path, const std::string& name, Json value,
                       const std::string& message) {
    Json body = std::string(path) == kChat ? ChatBody() : CompletionBody();
    body[name] = std::move(value);
    ExpectRefused(path, body, 400, name, message);
  };
  const auto type = [&](const std::string& name, const Json& value) {
    bad(kCompletions, name, value, "wanted");
    bad(kChat, name, value, "wanted");
  };
  type("model", 7);
  type("model", "");
  type("stream", "yes");
  type("temperature", "hot");
  type("top_p", true);
  type("seed", 1.5);
  type("seed", "abc");
  type("n", 0);
  type("n", 33);
  type("stop", 3);
  type("stop", {1, 2});
  type("logit_bias", {{"a", 1}});
  type("logit_bias", {{"1", "x"}});
  type("max_tokens", -1);
  type("max_tokens", 1e12);
  type("stop_token_ids", "x");
  type("stop_token_ids", {-1});
  bad(kCompletions, "logprobs", 21, "wanted");
  bad(kCompletions, "prompt", 3, "wanted");
  bad(kCompletions, "prompt", {{"a", 1}}, "wanted");
  bad(kChat, "messages", "hello", "wanted");
  bad(kChat, "top_logprobs", 2, "only allowed when logprobs is true");
  {
    Json body = ChatBody();
    body["messages"] = {1};
    ExpectRefused(kChat, body, 400, "messages[0]", "wanted an object");
  }
  const auto message_fault = [&](const Json& message, const std::string& param) {
    Json body = ChatBody();
    body["messages"] = {message};
    ExpectRefused(kChat, body, 400, param, param);
  };
  message_fault({{"role", "tool"}, {"content", "x"}}, "messages[0].role");
  message_fault({{"role", "user"}}, "messages[0].content");
  message_fault({{"role", "user"}, {"content", {{{"type", "image_url"}}}}}, "messages[0].content");
  message_fault({{"role", "user"}, {"content", "x"}, {"extra", 1}}, "messages[0].extra");
  // The engine's own checks, in the same form.
  const auto engine = [&](const std::string& name, const Json& value, const std::string& message) {
    Json body = CompletionBody();
    body[name] = value;
    ExpectRefused(kCompletions, body, 400, "", message);
  };
  engine("temperature", 101, "temperature is 101");
  engine("temperature", -1, "temperature is -1");
  engine("top_p", 0, "top_p is 0");
  engine("min_p", 1, "min_p is 1");
  engine("typical_p", 0, "typical_p is 0");
  engine("repetition_penalty", 0, "repetition_penalty is 0");
  engine("presence_penalty", 101, "presence_penalty is 101");
  engine("frequency_penalty", -101, "frequency_penalty is -101");
  engine("logit_bias", {{"100000", 1}}, "token 100000");
  engine("min_tokens", 21, "min_output_tokens is 21");
  engine("stop", {"a", "b", "c", "d", "e"}, "5 stop sequences");
  engine("stop", "", "0 bytes");
  engine("prompt", "", "prompt must not be empty");
  engine("prompt", Json::array(), "prompt_tokens.ids must not be empty");
  engine("prompt", {100000}, "prompt_tokens.ids[0] is 100000");
  engine("prompt", std::string(3000, '!'), "the context of models/tiny is 256");
  ExpectRefused(kCompletions, {{"model", "none"}, {"prompt", "x"}}, 404, "", "models/none");
  EXPECT_GE(num_refused_, 55);
  // None of them hurt.
  EXPECT_EQ(Post(kCompletions, CompletionBody()).status, 200);
  EXPECT_EQ(Metric("quern_kv_pages{state=\"used\"}"), 0);
}

TEST_F(OpenAiTest, WhatIsNoSuchRequestIsRefused) {
  EXPECT_EQ(HttpGetPath("/").status, 404);
  EXPECT_EQ(HttpGetPath(kCompletions).status, 405);
  EXPECT_EQ(Send(PostBytes("/v1/models", "{}")).status, 405);
  EXPECT_EQ(Send(PostBytes(kCompletions, "{}", "text/plain")).status, 415);
  for (const char* body : {"", "{", "[]", "\"x\"", "{\"model\":\"\xff\"}", "null"}) {
    const Answer answer = Send(PostBytes(kCompletions, body));
    EXPECT_EQ(answer.status, 400) << body;
    EXPECT_EQ(answer.json().at("error").at("type"), "invalid_request_error");
  }
  EXPECT_EQ(Send("nonsense\r\n\r\n").status, 400);
  const std::string long_header(20'000, 'a');
  EXPECT_EQ(Send(absl::StrCat("GET / HTTP/1.1\r\nHost: x\r\nA: ", long_header, "\r\n\r\n")).status,
            431);
  const Answer large =
      Send(absl::StrCat("POST ", kCompletions,
                        " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                        "Content-Length: 5000000\r\n\r\n"));
  EXPECT_EQ(large.status, 413);
  EXPECT_TRUE(large.json().contains("error"));
  // A body of the limit itself is read.
  std::string body = CompletionBody().dump();
  body.resize(4 << 20, ' ');
  EXPECT_EQ(Send(PostBytes(kCompletions, body)).status, 404) << "no model is loaded";
  // Deep nesting is only a wrong type.
  EXPECT_EQ(Send(PostBytes(kCompletions, std::string(100'000, '['))).status, 400);
}

TEST_F(OpenAiTest, RequestsShareAConnection) {
  LoadTiny();
  const std::string body = CompletionBody().dump();
  const std::string one = absl::StrCat("POST ", kCompletions,
                                       " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n",
                                       "Content-Length: ", body.size(), "\r\n\r\n", body);
  // All three at once: the later ones wait for the first.
  const std::string bytes = Exchange(
      server_->http_address(),
      absl::StrCat(one, one, "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
  size_t answers = 0;
  for (size_t at = 0; (at = bytes.find("HTTP/1.1 200", at)) != std::string::npos; ++at) ++answers;
  EXPECT_EQ(answers, 3u) << bytes;
  EXPECT_THAT(bytes, HasSubstr("\"object\":\"list\""));
}

TEST_F(OpenAiTest, ExpectContinueIsAnswered) {
  LoadTiny();
  const std::string body = CompletionBody().dump();
  const std::string bytes =
      Exchange(server_->http_address(),
               absl::StrCat("POST ", kCompletions,
                            " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: "
                            "100-continue\r\nConnection: close\r\nContent-Length: ",
                            body.size(), "\r\n\r\n", body));
  EXPECT_THAT(bytes, testing::StartsWith("HTTP/1.1 100 Continue"));
  EXPECT_THAT(bytes, HasSubstr("HTTP/1.1 200 OK"));
}

TEST_F(OpenAiTest, AClientThatGoesFreesItsPages) {
  LoadLong();
  for (const bool stream : {false, true}) {
    Json body = CompletionBody();
    body["model"] = "long";
    body["max_tokens"] = 16000;
    body["ignore_eos"] = true;
    body["stream"] = stream;
    const std::string bytes = PostBytes(kCompletions, body.dump());
    const int fd = ConnectTo(server_->http_address());
    ASSERT_EQ(send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
    EXPECT_TRUE(Eventually([&] { return Metric("quern_kv_pages{state=\"used\"}") > 0; }));
    close(fd);
    EXPECT_TRUE(Eventually([&] { return Metric("quern_kv_pages{state=\"used\"}") == 0; }));
  }
  EXPECT_EQ(Metric("quern_requests_total{model=\"long\",outcome=\"cancelled\"}"), 2);
}

TEST_F(OpenAiTest, DrainLetsWhatRunsEnd) {
  LoadLong();
  Json body = CompletionBody();
  body["model"] = "long";
  body["stream"] = true;
  body["max_tokens"] = 1000;  // long enough to be seen running on any machine
  body["ignore_eos"] = true;
  Answer answer;
  std::thread client([&] { answer = Post(kCompletions, body); });
  EXPECT_TRUE(Eventually([&] { return Metric("quern_requests_running") > 0; }));
  server_->Shutdown();
  client.join();
  EXPECT_EQ(answer.status, 200);
  EXPECT_THAT(answer.body, testing::EndsWith("data: [DONE]\n\n"));
}

}  // namespace
}  // namespace quern
