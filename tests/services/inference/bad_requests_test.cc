// Every field of a request out of its range: a code and a message that names it, and a server that
// goes on.

#include <cmath>
#include <limits>

#include "services/inference/request_check.h"
#include "tests/services/inference/inference_fixture.h"

namespace quern {
namespace {

using inference::v1::Chat;
using testing::AllOf;
using testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class BadRequestsTest : public InferenceServerTest {
 protected:
  BadRequestsTest() { LoadTiny(); }

  void ExpectRefused(const char* what, absl::StatusCode code, const std::string& field,
                     const std::function<void(GenerateTextRequest&)>& spoil) {
    SCOPED_TRACE(what);
    GenerateTextRequest request = Request();
    spoil(request);
    ++num_cases_;
    EXPECT_THAT(Generate(request), StatusIs(code, HasSubstr(field)));
    EXPECT_THAT(Stream(request), StatusIs(code, HasSubstr(field)));
  }
  void ExpectInvalid(const char* what, const std::string& field,
                     const std::function<void(GenerateTextRequest&)>& spoil) {
    ExpectRefused(what, absl::StatusCode::kInvalidArgument, field, spoil);
  }
  // The server still answers, and nothing of the bad ones is left in the engine.
  void ExpectAlive() {
    EXPECT_OK(Generate(Request()));
    EXPECT_EQ(Metric("quern_requests_running"), 0);
    EXPECT_EQ(Metric("quern_kv_pages{state=\"used\"}"), 0);
  }
  static void AddMessage(GenerateTextRequest& request, Chat::Message::Role role,
                         const std::string& content) {
    auto* message = request.mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content(content);
  }
  int num_cases_ = 0;
};

TEST_F(BadRequestsTest, Constraint) {
  ExpectInvalid("schema", "\"uniqueItems\" is not supported", [](auto& request) {
    request.set_json_schema(R"({"type": "array", "uniqueItems": true})");
  });
  ExpectInvalid("empty schema", "must not be empty",
                [](auto& request) { request.set_json_schema(""); });
  ExpectInvalid("long pattern", "at most 65536 are taken",
                [](auto& request) { request.set_regex(std::string(70000, 'a')); });
  ExpectInvalid("count", "more than 10000 times",
                [](auto& request) { request.set_regex("a{1,1000000}"); });
  ExpectInvalid("states", "more than 65536 states",
                [](auto& request) { request.set_regex("((a{1000}){1000}){1000}"); });
  ExpectInvalid("no choice", "wanted 1 to 1024", [](auto& request) { request.mutable_choice(); });
  ExpectInvalid("false", "json_object must be true",
                [](auto& request) { request.set_json_object(false); });
  ExpectInvalid("endless", "ignore_end_of_text", [](auto& request) {
    request.set_json_object(true);
    request.set_ignore_end_of_text(true);
  });
  ExpectAlive();
}

TEST_F(BadRequestsTest, Model) {
  for (const std::string& name :
       {std::string(), std::string("tiny"), std::string("models/"), std::string("models/UPPER"),
        std::string("models/../tiny"), std::string("models/ti\nny"), std::string("models/tiny/x"),
        "models/" + std::string(64, 'a'), "models/" + std::string(1 << 20, 'a')}) {
    ExpectInvalid("model", "model", [&](auto& request) { request.set_model(name); });
  }
  ExpectRefused("unknown", absl::StatusCode::kNotFound, "models/other",
                [](auto& request) { request.set_model("models/other"); });
  EXPECT_EQ(Metric("quern_requests_rejected_total{reason=\"no_model\"}"), 2);
  ExpectAlive();
}

TEST_F(BadRequestsTest, Prompt) {
  ExpectInvalid("nothing", "prompt, prompt_tokens and chat",
                [](auto& request) { request.clear_input(); });
  ExpectInvalid("empty", "prompt", [](auto& request) { request.set_prompt(""); });
  ExpectInvalid("too many bytes", "prompt has 1048577 bytes",
                [](auto& request) { request.set_prompt(std::string(kMaxPromptBytes + 1, 'a')); });
  ExpectInvalid("too many tokens", "the context of models/tiny is 256",
                [](auto& request) { request.set_prompt(std::string(10'000, '!')); });
  EXPECT_EQ(Metric("quern_requests_rejected_total{reason=\"too_long\"}"), 4);
  ExpectAlive();
}

TEST_F(BadRequestsTest, PromptTokens) {
  const auto set = [](GenerateTextRequest& request, std::vector<int32_t> ids) {
    request.mutable_prompt_tokens()->mutable_ids()->Assign(ids.begin(), ids.end());
  };
  ExpectInvalid("none", "prompt_tokens.ids", [&](auto& request) { set(request, {}); });
  ExpectInvalid("negative", "prompt_tokens.ids[1] is -1", [&](auto& request) {
    set(request, {5, -1});
  });
  ExpectInvalid("beyond the vocabulary", "prompt_tokens.ids[0] is 300",
                [&](auto& request) { set(request, {300}); });
  ExpectInvalid("far beyond", "prompt_tokens.ids[0]",
                [&](auto& request) { set(request, {std::numeric_limits<int32_t>::max()}); });
  ExpectInvalid("one too many", "257 tokens, the context of models/tiny is 256",
                [&](auto& request) { set(request, std::vector<int32_t>(257, 5)); });
  GenerateTextRequest full = Request();
  set(full, std::vector<int32_t>(256, 5));
  EXPECT_OK(Generate(full));
  ExpectAlive();
}

TEST_F(BadRequestsTest, ChatMessages) {
  ExpectInvalid("none", "chat.messages", [](auto& request) { request.mutable_chat(); });
  ExpectInvalid("the assistant last", "chat.messages[1].role", [](auto& request) {
    AddMessage(request, Chat::Message::USER, "a");
    AddMessage(request, Chat::Message::ASSISTANT, "b");
  });
  ExpectInvalid("no role", "chat.messages[0].role",
                [](auto& request) { AddMessage(request, Chat::Message::ROLE_UNSPECIFIED, "a"); });
  ExpectInvalid("unknown role", "chat.messages[0].role", [](auto& request) {
    AddMessage(request, static_cast<Chat::Message::Role>(77), "a");
  });
  ExpectInvalid("too many", "got 1025", [](auto& request) {
    for (int i = 0; i <= kMaxChatMessages; ++i) AddMessage(request, Chat::Message::USER, "a");
  });
  ExpectInvalid("too many bytes", "chat.messages: the contents have 1048577 bytes",
                [](auto& request) {
                  AddMessage(request, Chat::Message::USER, std::string(kMaxPromptBytes, 'a'));
                  AddMessage(request, Chat::Message::USER, "b");
                });
  ExpectInvalid("too many tokens", "the context of models/tiny is 256", [](auto& request) {
    AddMessage(request, Chat::Message::USER, std::string(5'000, '!'));
  });
  ExpectAlive();
}

TEST_F(BadRequestsTest, Sampling) {
  for (const float value : {-0.1F, 100.5F, kNan, kInfinity, -kInfinity, 1e30F}) {
    ExpectInvalid("temperature", "temperature",
                  [&](auto& request) { request.mutable_sampling()->set_temperature(value); });
  }
  for (const int value : {-1, std::numeric_limits<int32_t>::min()}) {
    ExpectInvalid("top_k", "top_k",
                  [&](auto& request) { request.mutable_sampling()->set_top_k(value); });
  }
  for (const float value : {0.0F, -0.5F, 1.0001F, kNan, kInfinity}) {
    ExpectInvalid("top_p", "top_p",
                  [&](auto& request) { request.mutable_sampling()->set_top_p(value); });
  }
  for (const float value : {-0.1F, 1.0F, 2.0F, kNan, kInfinity}) {
    ExpectInvalid("min_p", "min_p",
                  [&](auto& request) { request.mutable_sampling()->set_min_p(value); });
  }
  EXPECT_GE(num_cases_, 18);
  ExpectAlive();
}

TEST_F(BadRequestsTest, MaxOutputTokens) {
  for (const int value : {-1, std::numeric_limits<int32_t>::min(), kContext + 1,
                          std::numeric_limits<int32_t>::max()}) {
    ExpectInvalid("max_output_tokens", "max_output_tokens",
                  [&](auto& request) { request.set_max_output_tokens(value); });
  }
  EXPECT_OK(Generate(Request("Once", kContext)));
  ExpectAlive();
}

TEST_F(BadRequestsTest, StopSequences) {
  ExpectInvalid("five", "there are 5 stop sequences, at most 4", [](auto& request) {
    for (int i = 0; i < 5; ++i) request.add_stop_sequences("x");
  });
  ExpectInvalid("empty", "a stop sequence has 0 bytes", [](auto& request) {
    request.add_stop_sequences("x");
    request.add_stop_sequences("");
  });
  ExpectInvalid("65 bytes", "a stop sequence has 65 bytes",
                [](auto& request) { request.add_stop_sequences(std::string(65, 'x')); });
  ExpectInvalid("a mebibyte", "a stop sequence has 1048576 bytes",
                [](auto& request) { request.add_stop_sequences(std::string(1 << 20, 'x')); });
  GenerateTextRequest good = Request();
  for (int i = 0; i < 4; ++i) good.add_stop_sequences(std::string(64, 'x'));
  EXPECT_OK(Generate(good));
  ExpectAlive();
}

TEST_F(BadRequestsTest, ExtremesThatAreAllowed) {
  GenerateTextRequest request = Request();
  for (const float temperature : {0.0F, 1e-30F, 100.0F}) {
    request.mutable_sampling()->set_temperature(temperature);
    EXPECT_OK(Generate(request)) << temperature;
  }
  request.mutable_sampling()->set_top_k(std::numeric_limits<int32_t>::max());
  request.mutable_sampling()->set_top_p(1);
  request.mutable_sampling()->set_min_p(0);
  for (const int64_t seed :
       {std::numeric_limits<int64_t>::min(), int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    request.mutable_sampling()->set_seed(seed);
    ASSERT_OK_AND_ASSIGN(const GenerateTextResponse response, Generate(request));
    EXPECT_EQ(response.seed(), seed);
  }
}

TEST_F(BadRequestsTest, CountTokens) {
  const auto count = [&](const std::string& model, const std::string& text) {
    Context context;
    inference::v1::CountTokensRequest request;
    request.set_model(model);
    request.set_text(text);
    inference::v1::CountTokensResponse response;
    return FromGrpcStatus(inference_->CountTokens(&context, request, &response));
  };
  EXPECT_OK(count("models/tiny", ""));
  EXPECT_THAT(count("tiny", "a"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("model")));
  EXPECT_THAT(count("models/x", "a"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("models/x")));
  EXPECT_THAT(count("models/tiny", std::string(kMaxPromptBytes + 1, 'a')),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("text")));
}

TEST_F(BadRequestsTest, CreateModel) {
  const auto expect = [&](absl::StatusCode code, const char* field,
                          const inference::v1::CreateModelRequest& request) {
    EXPECT_THAT(Create(request), StatusIs(code, HasSubstr(field)));
  };
  using absl::StatusCode;
  for (const char* id : {"", "UPPER", "a/b", "..", "a b"}) {
    expect(StatusCode::kInvalidArgument, "model_id", CheckpointRequest(id, "tiny"));
  }
  expect(StatusCode::kInvalidArgument, "model_id", CheckpointRequest(std::string(64, 'a'), "tiny"));
  inference::v1::CreateModelRequest no_source;
  no_source.set_model_id("a");
  expect(StatusCode::kInvalidArgument, "model.source", no_source);
  inference::v1::CreateModelRequest no_such_type = CheckpointRequest("a", "tiny");
  no_such_type.mutable_model()->set_kv_cache_type(
      static_cast<inference::v1::Model::KvCacheType>(9));
  expect(StatusCode::kInvalidArgument, "model.kv_cache_type", no_such_type);
  for (const int guesses : {-1, 0, 8}) {
    inference::v1::CreateModelRequest request = CheckpointRequest("a", "tiny");
    request.mutable_model()->mutable_speculation()->set_max_guesses(guesses);
    expect(StatusCode::kInvalidArgument, "model.speculation.max_guesses", request);
  }
  inference::v1::CreateModelRequest no_draft = CheckpointRequest("a", "tiny");
  no_draft.mutable_model()->mutable_speculation()->set_max_guesses(1);
  no_draft.mutable_model()->mutable_speculation()->set_draft_artifact("models/tiny");
  expect(StatusCode::kInvalidArgument, "model.speculation.draft_artifact", no_draft);
  for (const std::string& artifact :
       {std::string(), std::string("artifacts/"), std::string(64, 'a'),
        "artifacts/" + std::string(63, 'a'), "artifacts/" + std::string(65, 'a'),
        "artifacts/" + std::string(64, 'A'), "artifacts/../" + std::string(61, 'a')}) {
    expect(StatusCode::kInvalidArgument, "model.artifact", ArtifactRequest("a", artifact));
  }
  expect(StatusCode::kInvalidArgument, "model.checkpoint", CheckpointRequest("a", ""));
  expect(StatusCode::kInvalidArgument, "..", CheckpointRequest("a", "../models/tiny"));
  expect(StatusCode::kInvalidArgument, "/etc", CheckpointRequest("a", "/etc"));
  expect(StatusCode::kNotFound, "nothing", CheckpointRequest("a", "nothing"));
  expect(StatusCode::kAlreadyExists, "models/tiny", CheckpointRequest("tiny", "tiny"));
  std::filesystem::create_symlink("/etc", directory_.Path("models/link"));
  EXPECT_FALSE(Create(CheckpointRequest("a", "link")).ok());
}

TEST_F(BadRequestsTest, OtherModelCalls) {
  EXPECT_THAT(Get("other"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("models/other")));
  EXPECT_THAT(Get("../x"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("name")));
  EXPECT_THAT(Delete("other"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("models/other")));
  EXPECT_THAT(Delete("X"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("name")));
  const auto list = [&](int page_size, const std::string& token) {
    Context context;
    inference::v1::ListModelsRequest request;
    request.set_page_size(page_size);
    request.set_page_token(token);
    inference::v1::ListModelsResponse response;
    return FromGrpcStatus(models_->ListModels(&context, request, &response));
  };
  EXPECT_THAT(list(-1, ""), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page_size")));
  EXPECT_THAT(list(0, "\n"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page_token")));
}

}  // namespace
}  // namespace quern
