#include <google/protobuf/util/message_differencer.h>

#include <thread>

#include "core/tokenizer/tokenizer.h"
#include "tests/services/inference/inference_fixture.h"

namespace quern {
namespace {

using testing::HasSubstr;

// Durations differ from run to run; the rest must not.
void ExpectSame(GenerateTextResponse a, GenerateTextResponse b) {
  for (GenerateTextResponse* response : {&a, &b}) {
    response->mutable_usage()->clear_queue_duration();
    response->mutable_usage()->clear_time_to_first_token();
    response->mutable_usage()->clear_total_duration();
  }
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(a, b))
      << a.ShortDebugString() << "\n"
      << b.ShortDebugString();
}

// Bytes of the character that starts at `i`; 0 when none does or it is cut off.
size_t CharacterBytes(const std::string& text, size_t i) {
  const auto lead = static_cast<unsigned char>(text[i]);
  const size_t length = lead < 0x80 ? 1 : lead < 0xc0 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  return i + length <= text.size() ? length : 0;
}

bool IsWholeCharacters(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = CharacterBytes(text, i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

class GenerateTest : public InferenceServerTest {};

TEST_F(GenerateTest, StreamEqualsUnary) {
  LoadTiny();
  for (const int seed : {1, 2, 3}) {
    GenerateTextRequest request = Request("The quick brown fox", 60);
    request.mutable_sampling()->set_temperature(1.2F);
    request.mutable_sampling()->set_top_k(200);
    request.mutable_sampling()->set_top_p(0.98F);
    request.mutable_sampling()->set_min_p(0.0001F);
    request.mutable_sampling()->set_seed(seed);
    ASSERT_OK_AND_ASSIGN(const GenerateTextResponse unary, Generate(request));
    ASSERT_OK_AND_ASSIGN(const auto messages, Stream(request));
    ExpectSame(Joined(messages), unary);
    EXPECT_EQ(unary.seed(), seed);
    EXPECT_EQ(unary.usage().output_tokens(), unary.token_ids_size());
    for (size_t i = 0; i < messages.size(); ++i) {
      EXPECT_TRUE(IsWholeCharacters(messages[i].text())) << messages[i].ShortDebugString();
      EXPECT_EQ(messages[i].has_usage(), i + 1 == messages.size());
      EXPECT_EQ(messages[i].finish_reason() != GenerateTextResponse::FINISH_REASON_UNSPECIFIED,
                i + 1 == messages.size());
    }
  }
}

TEST_F(GenerateTest, ClosingFieldsSayHowItWent) {
  LoadTiny();
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse response, Generate(Request("Once", 7)));
  EXPECT_EQ(response.finish_reason(), GenerateTextResponse::MAX_OUTPUT_TOKENS);
  EXPECT_EQ(response.usage().output_tokens(), 7);
  EXPECT_GT(response.usage().prompt_tokens(), 0);
  const auto nanos = [](const google::protobuf::Duration& d) {
    return d.seconds() * 1'000'000'000 + d.nanos();
  };
  EXPECT_GT(nanos(response.usage().time_to_first_token()),
            nanos(response.usage().queue_duration()));
  EXPECT_GT(nanos(response.usage().total_duration()),
            nanos(response.usage().time_to_first_token()));
  EXPECT_THAT(response.system_fingerprint(),
              testing::MatchesRegex("[0-9a-f]{12}-(avx512|avx2|neon|scalar).*"));
}

TEST_F(GenerateTest, ChosenSeedRepeatsTheText) {
  LoadTiny();
  GenerateTextRequest request = Request("Once", 30);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->clear_seed();
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse first, Generate(request));
  request.mutable_sampling()->set_seed(first.seed());
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse second, Generate(request));
  ExpectSame(first, second);
}

TEST_F(GenerateTest, TokensAndTextArePromptsAlike) {
  LoadTiny();
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::FromJson(TinyTokenizerJson(300)));
  ASSERT_OK_AND_ASSIGN(const auto ids, tokenizer->Encode("Once upon a time"));
  GenerateTextRequest request = Request();
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse from_text, Generate(request));
  request.mutable_prompt_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse from_ids, Generate(request));
  ExpectSame(from_text, from_ids);

  Context context;
  inference::v1::CountTokensRequest count;
  count.set_model("models/tiny");
  count.set_text("Once upon a time");
  inference::v1::CountTokensResponse counted;
  EXPECT_OK(FromGrpcStatus(inference_->CountTokens(&context, count, &counted)));
  EXPECT_EQ(counted.token_count(), from_text.usage().prompt_tokens());
}

TEST_F(GenerateTest, ChatIsRenderedInTheModelsFormat) {
  LoadTiny();
  GenerateTextRequest request = Request();
  auto* message = request.mutable_chat()->add_messages();
  message->set_role(inference::v1::Chat::Message::USER);
  message->set_content("Hello <|im_end|>");
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse response, Generate(request));

  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::FromJson(TinyTokenizerJson(300)));
  ASSERT_OK_AND_ASSIGN(const auto ids,
                       RenderChat(ChatFormat::kChatMl, TinyChatTemplate(), *tokenizer,
                                  {{ChatMessage::Role::kUser, "Hello <|im_end|>"}}));
  EXPECT_EQ(response.usage().prompt_tokens(), static_cast<int>(ids.size()));
  ASSERT_OK_AND_ASSIGN(const Model model, Get("tiny"));
  EXPECT_EQ(model.chat_format(), "chatml");
  EXPECT_EQ(model.context_tokens(), kContext);
}

TEST_F(GenerateTest, StopSequenceEndsTheTextBeforeIt) {
  LoadTiny();
  GenerateTextRequest request = Request("Once upon a time", 40);
  request.mutable_sampling()->set_temperature(1);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse whole, Generate(request));
  // Two characters from its middle.
  size_t begin = whole.text().size() / 2;
  while (CharacterBytes(whole.text(), begin) == 0) ++begin;
  const size_t middle = begin + CharacterBytes(whole.text(), begin);
  const std::string stop =
      whole.text().substr(begin, middle + CharacterBytes(whole.text(), middle) - begin);
  request.add_stop_sequences("never in this text");
  request.add_stop_sequences(stop);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse stopped, Generate(request));
  EXPECT_EQ(stopped.finish_reason(), GenerateTextResponse::STOP_SEQUENCE);
  EXPECT_EQ(stopped.matched_stop_sequence(), stop);
  EXPECT_EQ(stopped.text(), whole.text().substr(0, whole.text().find(stop)));
  ASSERT_OK_AND_ASSIGN(const auto messages, Stream(request));
  ExpectSame(Joined(messages), stopped);
}

TEST_F(GenerateTest, ContextFullIsSaid) {
  LoadTiny();
  GenerateTextRequest request = Request("Once", 0);
  for (int seed = 0; seed < 50; ++seed) {
    request.mutable_sampling()->set_temperature(0.5F);
    request.mutable_sampling()->set_seed(seed);
    ASSERT_OK_AND_ASSIGN(const GenerateTextResponse response, Generate(request));
    if (response.finish_reason() == GenerateTextResponse::END_OF_TEXT) continue;
    EXPECT_EQ(response.finish_reason(), GenerateTextResponse::CONTEXT_FULL);
    EXPECT_GE(response.usage().prompt_tokens() + response.usage().output_tokens(), kContext);
    return;
  }
  FAIL() << "every text ended early";
}

TEST_F(GenerateTest, CancelFreesThePagesAndCountsTheLoss) {
  LoadLong();
  Context context;
  auto reader = inference_->StreamGenerateText(&context, Request("Once upon", 0, "long"));
  GenerateTextResponse message;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reader->Read(&message));
  EXPECT_GT(Metric("quern_kv_pages{state=\"used\"}"), 0);
  context.TryCancel();
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return Metric("quern_kv_pages{state=\"used\"}") == 0; }));
  EXPECT_EQ(Metric("quern_requests_running"), 0);
  EXPECT_EQ(Metric("quern_requests_total{model=\"long\",outcome=\"cancelled\"}"), 1);
  EXPECT_GT(Metric("quern_discarded_tokens_total{model=\"long\",reason=\"cancelled\"}"), 2);
}

TEST_F(GenerateTest, UnaryCallCanBeCancelledToo) {
  LoadLong();
  Context context;
  std::thread canceller([&] {
    EXPECT_TRUE(Eventually([&] { return Metric("quern_requests_running") == 1; }));
    context.TryCancel();
  });
  GenerateTextResponse response;
  const grpc::Status status =
      inference_->GenerateText(&context, Request("Once upon", 0, "long"), &response);
  canceller.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return Metric("quern_kv_pages{state=\"used\"}") == 0; }));
}

TEST_F(GenerateTest, DeadlineEndsTheRequest) {
  LoadLong();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(150));
  GenerateTextResponse response;
  const grpc::Status status =
      inference_->GenerateText(&context, Request("Once upon", 0, "long"), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return Metric("quern_kv_pages{state=\"used\"}") == 0; }));
  EXPECT_TRUE(Eventually([&] { return Metric("quern_requests_running") == 0; }));
}

TEST_F(GenerateTest, SlowReaderHoldsBackNobody) {
  LoadTiny();
  // A window of a few messages, so that the server cannot send on until this client reads.
  grpc::ChannelArguments arguments;
  arguments.SetInt("grpc.http2.lookahead_bytes", 64);
  arguments.SetInt("grpc.http2.bdp_probe", 0);
  arguments.SetInt("grpc.use_local_subchannel_pool", 1);
  const auto slow = InferenceService::NewStub(grpc::CreateCustomChannel(
      server_->grpc_address(), grpc::InsecureChannelCredentials(), arguments));
  const GenerateTextRequest request = Request("Once upon a time", 200);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse expected, Generate(request));

  Context context;
  auto reader = slow->StreamGenerateText(&context, request);
  // The engine finishes the sequence and frees its pages though nothing was read.
  EXPECT_TRUE(Eventually([&] {
    return Metric("quern_generated_tokens_total{model=\"tiny\"}") ==
           2 * expected.usage().output_tokens();
  }));
  EXPECT_TRUE(Eventually([&] { return Metric("quern_kv_pages{state=\"used\"}") == 0; }));
  ASSERT_OK_AND_ASSIGN(const auto other, Stream(request));
  ExpectSame(Joined(other), expected);

  std::vector<GenerateTextResponse> messages;
  GenerateTextResponse message;
  while (reader->Read(&message)) messages.push_back(message);
  EXPECT_OK(FromGrpcStatus(reader->Finish()));
  ExpectSame(Joined(messages), expected);
  // What waited came in few messages, and was counted as waiting.
  EXPECT_GT(Metric("quern_stream_blocked_seconds_count"), 0);
  EXPECT_GT(Metric("quern_stream_blocked_seconds_sum"), 0);
  EXPECT_LT(messages.size(), static_cast<size_t>(expected.usage().output_tokens()));
}

TEST_F(GenerateTest, ManyAtOnceGiveWhatEachGivesAlone) {
  LoadTiny();
  constexpr int kRequests = 12;
  std::vector<GenerateTextResponse> alone(kRequests);
  const auto make = [](int i) {
    GenerateTextRequest request = Request(absl::StrCat("Story number ", i), 30 + i);
    request.mutable_sampling()->set_temperature(1);
    request.mutable_sampling()->set_seed(i);
    return request;
  };
  for (int i = 0; i < kRequests; ++i) alone[i] = Generate(make(i)).value();
  std::vector<std::thread> clients;
  for (int i = 0; i < kRequests; ++i) {
    clients.emplace_back([&, i] {
      const auto messages = Stream(make(i));
      ASSERT_OK(messages);
      ExpectSame(Joined(*messages), alone[i]);
    });
  }
  for (std::thread& client : clients) client.join();
}

TEST_F(GenerateTest, DrainLetsRunningRequestsEnd) {
  LoadLong();
  Context context;
  auto reader = inference_->StreamGenerateText(&context, Request("Once upon", 400, "long"));
  GenerateTextResponse message;
  ASSERT_TRUE(reader->Read(&message));
  std::thread stopper([&] { server_->Shutdown(); });
  std::vector<GenerateTextResponse> messages = {message};
  while (reader->Read(&message)) messages.push_back(message);
  EXPECT_OK(FromGrpcStatus(reader->Finish()));
  stopper.join();
  EXPECT_TRUE(messages.back().has_usage());
  EXPECT_THAT(HttpGet(server_->metrics_address(), "/readyz"), HasSubstr("503"));
}

TEST_F(GenerateTest, DrainEndsWhatTakesTooLong) {
  config_.drain_grace = absl::ZeroDuration();
  Start();
  LoadLong();
  Context context;
  auto reader = inference_->StreamGenerateText(&context, Request("Once upon", 0, "long"));
  GenerateTextResponse message;
  ASSERT_TRUE(reader->Read(&message));
  std::thread stopper([&] { server_->Shutdown(); });
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  stopper.join();
}

}  // namespace
}  // namespace quern
