// Log-probabilities of prompts by both fronts, for those who only score.

#include "core/base/utf8.h"
#include "tests/services/inference/inference_fixture.h"
#include "tests/services/inference/openai_client.h"

namespace quern {
namespace {

using inference::v1::TokenLogprobs;
using testing::HasSubstr;

class PromptLogprobsTest : public InferenceServerTest {
 protected:
  PromptLogprobsTest() { LoadTiny(); }
  Answer Post(const Json& body) {
    return Parse(Exchange(server_->http_address(), PostBytes(kCompletions, body.dump())));
  }
  static Json Body() {
    return {{"model", "tiny"}, {"prompt", "Once upon a time"}, {"max_tokens", 0}, {"seed", 1}};
  }
};

TEST_F(PromptLogprobsTest, ComeWithTheFirstMessage) {
  GenerateTextRequest request = Request();
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse plain, Generate(request));
  request.set_num_prompt_logprobs(2);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse whole, Generate(request));
  EXPECT_EQ(whole.text(), plain.text());
  ASSERT_EQ(whole.prompt_logprobs_size(), whole.usage().prompt_tokens());
  std::string text;
  for (int i = 0; i < whole.prompt_logprobs_size(); ++i) {
    const TokenLogprobs& token = whole.prompt_logprobs(i);
    text += token.token().text();
    EXPECT_EQ(token.most_probable_size(), i == 0 ? 0 : 2);
    EXPECT_EQ(token.token().logprob() < 0, i > 0) << i;
  }
  EXPECT_EQ(text, "Once upon a time");
  ASSERT_OK_AND_ASSIGN(const auto messages, Stream(request));
  EXPECT_EQ(messages.front().prompt_logprobs_size(), whole.prompt_logprobs_size());
  for (size_t i = 1; i < messages.size(); ++i) EXPECT_EQ(messages[i].prompt_logprobs_size(), 0);
}

TEST_F(PromptLogprobsTest, PromptOnlyGeneratesNothing) {
  GenerateTextRequest request = Request("Once upon a time", 0);
  request.set_num_prompt_logprobs(0);
  request.set_prompt_only(true);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse whole, Generate(request));
  EXPECT_EQ(whole.text(), "");
  EXPECT_EQ(whole.usage().output_tokens(), 0);
  EXPECT_EQ(whole.finish_reason(), GenerateTextResponse::MAX_OUTPUT_TOKENS);
  EXPECT_EQ(whole.prompt_logprobs_size(), whole.usage().prompt_tokens());
  ASSERT_OK_AND_ASSIGN(const auto messages, Stream(request));
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].prompt_logprobs_size(), whole.prompt_logprobs_size());
  request.set_max_output_tokens(1);
  EXPECT_THAT(Generate(request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("prompt_only")));
  request.clear_prompt_only();
  request.set_num_prompt_logprobs(21);
  EXPECT_THAT(Generate(request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_prompt_logprobs is 21")));
}

// What evaluation harnesses ask for.
TEST_F(PromptLogprobsTest, EchoWithLogprobs) {
  GenerateTextRequest request = Request("Once upon a time", 3);
  request.set_num_prompt_logprobs(1);
  request.set_num_logprobs(1);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse wanted, Generate(request));
  std::vector<float> logprobs;
  Json ids = Json::array();
  for (const auto* list : {&wanted.prompt_logprobs(), &wanted.logprobs()}) {
    for (const TokenLogprobs& token : *list) logprobs.push_back(token.token().logprob());
  }
  for (const TokenLogprobs& token : wanted.prompt_logprobs()) {
    ids.push_back(token.token().token_id());
  }
  const auto num_prompt = static_cast<size_t>(wanted.prompt_logprobs_size());
  for (const Json& prompt : {Json("Once upon a time"), ids}) {
    for (const int max_tokens : {0, 3}) {
      Json body = Body();
      body.update({{"prompt", prompt},
                   {"echo", true},
                   {"logprobs", 1},
                   {"temperature", 0},
                   {"max_tokens", max_tokens}});
      const Answer answer = Post(body);
      ASSERT_EQ(answer.status, 200) << answer.body;
      const Json choice = answer.json().at("choices").at(0);
      EXPECT_EQ(choice.at("text"), "Once upon a time" + (max_tokens > 0 ? wanted.text() : ""));
      EXPECT_EQ(choice.at("finish_reason"), "length");
      EXPECT_FALSE(choice.contains("prompt_logprobs"));
      const Json& got = choice.at("logprobs").at("token_logprobs");
      ASSERT_EQ(got.size(), num_prompt + max_tokens);
      EXPECT_EQ(got.at(0), Json(nullptr));
      EXPECT_EQ(choice.at("logprobs").at("top_logprobs").at(0), Json(nullptr));
      for (size_t i = 1; i < got.size(); ++i) EXPECT_EQ(got.at(i).get<float>(), logprobs[i]);
      EXPECT_EQ(choice.at("logprobs").at("tokens").at(0), wanted.prompt_logprobs(0).token().text());
      EXPECT_EQ(answer.json().at("usage").at("completion_tokens"), max_tokens);
    }
  }
}

TEST_F(PromptLogprobsTest, InVllmsField) {
  Json body = Body();
  body["prompt_logprobs"] = 1;
  const Answer answer = Post(body);
  ASSERT_EQ(answer.status, 200) << answer.body;
  const Json choice = answer.json().at("choices").at(0);
  EXPECT_EQ(choice.at("text"), "");
  EXPECT_EQ(choice.at("logprobs"), Json(nullptr));
  const Json& prompt = choice.at("prompt_logprobs");
  EXPECT_EQ(prompt.at(0), Json(nullptr));
  for (size_t i = 1; i < prompt.size(); ++i) {
    int num_ranked = 0;
    for (const Json& entry : prompt.at(i)) num_ranked += entry.at("rank") == 1;
    EXPECT_EQ(num_ranked, 1) << prompt.at(i);
    EXPECT_LE(prompt.at(i).size(), 2u);
  }
  const auto refused = [&](const Json& change, const std::string& message) {
    Json bad = Body();
    bad.update(change);
    const Answer refusal = Post(bad);
    EXPECT_EQ(refusal.status, 400);
    EXPECT_THAT(refusal.body, HasSubstr(message));
  };
  refused({{"prompt_logprobs", 21}}, "num_prompt_logprobs is 21");
  refused({{"prompt_logprobs", 2}, {"logprobs", 1}, {"echo", true}}, "only the number of logprobs");
  refused({{"max_tokens", -1}}, "max_tokens");
}

// The bytes are the token's own, also where its text cannot show them.
TEST_F(PromptLogprobsTest, BytesOfChatLogprobsAreExact) {
  const Json body = {{"model", "tiny"},  {"messages", {{{"role", "user"}, {"content", "Hello"}}}},
                     {"max_tokens", 12}, {"temperature", 0},
                     {"logprobs", true}, {"top_logprobs", 20}};
  const Answer answer = Parse(Exchange(server_->http_address(), PostBytes(kChat, body.dump())));
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto tokenizer = Tokenizer::FromJson(TinyTokenizerJson(300)).value();
  int num_partial = 0;
  const Json logprobs = answer.json().at("choices").at(0).at("logprobs");
  for (const Json& token : logprobs.at("content")) {
    for (const Json& candidate : token.at("top_logprobs")) {
      std::string bytes;
      for (const Json& byte : candidate.at("bytes")) {
        bytes.push_back(static_cast<char>(byte.get<int>()));
      }
      EXPECT_EQ(candidate.at("token"), ReplaceInvalidUtf8(bytes));
      num_partial += IsUtf8(bytes) ? 0 : 1;
    }
  }
  EXPECT_GT(num_partial, 0) << "of 240 candidates of a random model of bytes";
}

}  // namespace
}  // namespace quern
