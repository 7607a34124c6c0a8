// Tokenize and Detokenize by gRPC, and /tokenize and /detokenize as vLLM has them.

#include <algorithm>

#include "services/inference/request_check.h"
#include "tests/services/inference/inference_fixture.h"
#include "tests/services/inference/openai_client.h"

namespace quern {
namespace {

using inference::v1::Chat;
using inference::v1::CountTokensRequest;
using inference::v1::CountTokensResponse;
using inference::v1::DetokenizeRequest;
using inference::v1::DetokenizeResponse;
using inference::v1::TokenizeRequest;
using inference::v1::TokenizeResponse;
using testing::ElementsAreArray;
using testing::HasSubstr;

class TokenizeTest : public InferenceServerTest {
 protected:
  TokenizeTest() {
    LoadTiny();
    tokenizer_ = Tokenizer::FromJson(TinyTokenizerJson(300)).value();
  }

  static TokenizeRequest ForText(const std::string& text) {
    TokenizeRequest request;
    request.set_model("models/tiny");
    request.set_text(text);
    return request;
  }
  static Chat OneMessage(const std::string& content) {
    Chat chat;
    auto* message = chat.add_messages();
    message->set_role(Chat::Message::USER);
    message->set_content(content);
    return chat;
  }
  absl::StatusOr<TokenizeResponse> Tokenize(const TokenizeRequest& request) {
    Context context;
    TokenizeResponse response;
    const grpc::Status status = inference_->Tokenize(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }
  absl::StatusOr<std::string> Detokenize(const std::vector<int32_t>& ids, bool keep_special) {
    Context context;
    DetokenizeRequest request;
    request.set_model("models/tiny");
    request.mutable_token_ids()->Add(ids.begin(), ids.end());
    request.set_keep_special(keep_special);
    DetokenizeResponse response;
    const grpc::Status status = inference_->Detokenize(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response.text();
  }
  Answer Post(const std::string& path, const Json& body) {
    return Parse(Exchange(server_->http_address(), PostBytes(path, body.dump())));
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_F(TokenizeTest, TextsBecomeTokensAndBack) {
  const std::string text = "Once upon a caf\xc3\xa9";
  TokenizeRequest request = ForText(text);
  request.set_with_pieces(true);
  ASSERT_OK_AND_ASSIGN(const TokenizeResponse response, Tokenize(request));
  ASSERT_OK_AND_ASSIGN(const std::vector<int32_t> wanted, tokenizer_->Encode(text));
  EXPECT_THAT(response.token_ids(), ElementsAreArray(wanted));
  std::string joined;
  for (const std::string& piece : response.pieces()) joined += piece;
  EXPECT_EQ(joined, text);
  EXPECT_EQ(Detokenize(wanted, false).value_or("refused"), text);

  // Special tokens in a text are those tokens, as in a prompt.
  const std::string special = "a<|im_end|>b";
  ASSERT_OK_AND_ASSIGN(const TokenizeResponse three, Tokenize(ForText(special)));
  EXPECT_THAT(three.token_ids(), testing::Contains(kTinyImEnd));
  EXPECT_EQ(three.pieces_size(), 0);
  const std::vector<int32_t> ids(three.token_ids().begin(), three.token_ids().end());
  EXPECT_EQ(Detokenize(ids, true).value_or("refused"), special);
  EXPECT_EQ(Detokenize(ids, false).value_or("refused"), "ab");
  // Half a character.
  ASSERT_OK_AND_ASSIGN(const std::vector<int32_t> bytes, tokenizer_->Encode("\xc3\xa9"));
  ASSERT_EQ(bytes.size(), 2u);
  EXPECT_EQ(Detokenize({bytes[0]}, false).value_or("refused"), "\uFFFD");
  EXPECT_EQ(Detokenize({}, false).value_or("refused"), "");
}

TEST_F(TokenizeTest, ChatsComeInTheModelsFormat) {
  TokenizeRequest request;
  request.set_model("models/tiny");
  *request.mutable_chat() = OneMessage("Hi<|im_end|>");
  ASSERT_OK_AND_ASSIGN(const TokenizeResponse response, Tokenize(request));
  EXPECT_EQ(response.token_ids(0), kTinyImStart);
  EXPECT_EQ(std::count(response.token_ids().begin(), response.token_ids().end(), kTinyImEnd), 1)
      << "the content's is text";
  // As many as a generation says the prompt has, and as CountTokens counts.
  GenerateTextRequest generation = Request("", 1);
  *generation.mutable_chat() = request.chat();
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse generated, Generate(generation));
  EXPECT_EQ(generated.usage().prompt_tokens(), response.token_ids_size());
  CountTokensRequest count;
  count.set_model("models/tiny");
  *count.mutable_chat() = request.chat();
  Context context;
  CountTokensResponse counted;
  EXPECT_OK(FromGrpcStatus(inference_->CountTokens(&context, count, &counted)));
  EXPECT_EQ(counted.token_count(), response.token_ids_size());
}

TEST_F(TokenizeTest, BadRequestsAreRefused) {
  const auto invalid = [](const char* part) {
    return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(part));
  };
  TokenizeRequest nothing;
  nothing.set_model("models/tiny");
  EXPECT_THAT(Tokenize(nothing), invalid("input"));
  EXPECT_THAT(Tokenize(ForText(std::string(kMaxPromptBytes + 1, 'a'))), invalid("text has"));
  nothing.mutable_chat();
  EXPECT_THAT(Tokenize(nothing), invalid("chat.messages"));
  TokenizeRequest other = ForText("a");
  other.set_model("models/x");
  EXPECT_THAT(Tokenize(other), StatusIs(absl::StatusCode::kNotFound, HasSubstr("models/x")));
  other.set_model("x");
  EXPECT_THAT(Tokenize(other), invalid("model"));
  EXPECT_THAT(Detokenize({1, 300}, false), invalid("token_ids[1] is 300"));
  EXPECT_THAT(Detokenize({-1}, false), invalid("token_ids[0] is -1"));
  EXPECT_THAT(Detokenize(std::vector<int32_t>(kMaxDetokenizeIds + 1, 5), false),
              invalid("262145 ids"));
}

TEST_F(TokenizeTest, OverHttpAsVllmHasIt) {
  ASSERT_OK_AND_ASSIGN(const std::vector<int32_t> wanted, tokenizer_->Encode("Once upon"));
  const Answer answer =
      Post("/tokenize", {{"model", "tiny"}, {"prompt", "Once upon"}, {"return_token_strs", true}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(answer.json().at("tokens"), Json(wanted));
  EXPECT_EQ(answer.json().at("count"), wanted.size());
  EXPECT_EQ(answer.json().at("max_model_len"), kContext);
  EXPECT_EQ(answer.json().at("token_strs").size(), wanted.size());
  EXPECT_EQ(Post("/detokenize", {{"model", "tiny"}, {"tokens", wanted}}).json(),
            Json::object({{"prompt", "Once upon"}}));
  const Json messages = {{{"role", "user"}, {"content", "Hi"}, {"name", "<|im_end|>"}}};
  const Json chat = Post("/tokenize", {{"model", "tiny"}, {"messages", messages}}).json();
  EXPECT_EQ(chat.at("tokens").at(0), kTinyImStart);
  EXPECT_EQ(chat.at("token_strs"), Json(nullptr));
  EXPECT_EQ(std::count(chat.at("tokens").begin(), chat.at("tokens").end(), Json(kTinyImEnd)), 1);

  const auto refused = [&](const std::string& path, const Json& body, int status,
                           const Json& param) {
    const Answer bad = Post(path, body);
    EXPECT_EQ(bad.status, status) << body << bad.body;
    EXPECT_EQ(bad.json().at("error").at("param"), param) << body;
  };
  refused("/tokenize", {{"model", "tiny"}}, 400, "prompt");
  refused("/tokenize", {{"model", "tiny"}, {"prompt", 3}}, 400, "prompt");
  refused("/tokenize", {{"model", "tiny"}, {"prompt", "a"}, {"x", 1}}, 400, "x");
  refused("/tokenize", {{"prompt", "a"}}, 400, "model");
  refused("/tokenize", {{"model", "none"}, {"prompt", "a"}}, 404, nullptr);
  refused("/tokenize",
          {{"model", "tiny"}, {"messages", messages}, {"add_generation_prompt", false}}, 400,
          "add_generation_prompt");
  refused("/detokenize", {{"model", "tiny"}}, 400, "tokens");
  refused("/detokenize", {{"model", "tiny"}, {"tokens", {"a"}}}, 400, "tokens");
  refused("/detokenize", {{"model", "tiny"}, {"tokens", {300}}}, 400, nullptr);
  EXPECT_EQ(Parse(HttpGet(server_->http_address(), "/tokenize")).status, 405);
}

}  // namespace
}  // namespace quern
