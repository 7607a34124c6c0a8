// What a server does that is asked for more than it can give.

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpc/health/v1/health.grpc.pb.h>

#include "core/base/retry_delay.h"
#include "services/inference/engine_watch.h"
#include "tests/core/engine/engine_test_util.h"
#include "tests/services/inference/inference_fixture.h"
#include "tests/services/inference/openai_client.h"

namespace quern {
namespace {

using testing::HasSubstr;

class OverloadTest : public InferenceServerTest {
 protected:
  // A stream that holds its place until it is cancelled or the test is over.
  struct Holder {
    Context context;
    std::unique_ptr<grpc::ClientReader<GenerateTextResponse>> reader;
  };
  std::unique_ptr<Holder> Hold() {
    auto holder = std::make_unique<Holder>();
    GenerateTextRequest request = Request("Once upon", 16000, "long");
    request.set_ignore_end_of_text(true);
    holder->reader = inference_->StreamGenerateText(&holder->context, request);
    GenerateTextResponse message;
    EXPECT_TRUE(holder->reader->Read(&message));
    return holder;
  }
  void Restart(int64_t max_queued_tokens) {
    config_.max_queued_tokens = max_queued_tokens;
    Start();
    LoadLong();
  }
  Answer Complete(const Json& body) {
    return Parse(Exchange(server_->http_address(), PostBytes(kCompletions, body.dump())));
  }
};

TEST_F(OverloadTest, RefusalsSayWhenToTryAgain) {
  Restart(/*max_queued_tokens=*/17'000);
  const auto holder = Hold();
  grpc::ClientContext context;
  GenerateTextResponse response;
  const grpc::Status status =
      inference_->GenerateText(&context, Request("Once upon", 8000, "long"), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("limit of 17000"));
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(details.message(), status.error_message());
  ASSERT_EQ(details.details_size(), 1);
  EXPECT_EQ(details.details(0).type_url(), "type.googleapis.com/google.rpc.RetryInfo");
  google::rpc::RetryInfo info;
  ASSERT_TRUE(details.details(0).UnpackTo(&info));
  EXPECT_GE(info.retry_delay().seconds(), 1);
  EXPECT_LE(info.retry_delay().seconds(), 60);
  EXPECT_THAT(RetryDelayOf(FromGrpcStatus(status)),
              testing::Optional(testing::Ge(absl::Seconds(1))));

  const Answer answer =
      Complete({{"model", "long"}, {"prompt", "Once upon"}, {"max_tokens", 8000}});
  EXPECT_EQ(answer.status, 429);
  EXPECT_THAT(answer.head, testing::ContainsRegex("Retry-After: [1-6]?[0-9]"));
  EXPECT_EQ(Metric("quern_requests_rejected_total{reason=\"queue_tokens\"}"), 2);
  EXPECT_EQ(Metric("quern_requests_total{model=\"long\",outcome=\"resource_exhausted\"}"), 2);
  EXPECT_GT(Metric("quern_queued_tokens"), 16'000);
  // What fits goes on being served.
  EXPECT_OK(Generate(Request("Once", 5, "long")));
  holder->context.TryCancel();
  EXPECT_TRUE(Eventually([&] { return Metric("quern_queued_tokens") == 0; }));
}

TEST_F(OverloadTest, WhoWouldWaitForTooLongIsRefusedUnlessThePriorityIsLow) {
  config_.max_sequences = 1;
  config_.max_queue_wait = absl::ZeroDuration();
  Restart(/*max_queued_tokens=*/1 << 20);
  const auto holder = Hold();
  // By then it has made a step and knows how long one takes.
  GenerateTextResponse message;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(holder->reader->Read(&message));
  EXPECT_THAT(Generate(Request("Once", 5, "long")),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("would wait for about")));
  const Answer answer = Complete({{"model", "long"}, {"prompt", "Once"}, {"max_tokens", 5}});
  EXPECT_EQ(answer.status, 429);
  EXPECT_THAT(answer.head, HasSubstr("Retry-After: "));
  EXPECT_EQ(Metric("quern_requests_rejected_total{reason=\"queue_wait\"}"), 2);
  // It waits, and is served once there is a place.
  grpc::ClientContext context;
  GenerateTextRequest low = Request("Once", 5, "long");
  low.set_priority(GenerateTextRequest::LOW);
  const auto reader = inference_->StreamGenerateText(&context, low);
  EXPECT_TRUE(Eventually([&] { return Metric("quern_requests_waiting") == 1; }));
  holder->context.TryCancel();
  while (reader->Read(&message)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(OverloadTest, AFullQueueRefusesBeforeItReadsThePrompt) {
  // One token of room: nothing but what is there.
  Restart(/*max_queued_tokens=*/1);
  const auto holder = Hold();
  // That there is no such model is not even looked up.
  GenerateTextRequest request = Request(std::string(1 << 20, 'x'), 5, "none");
  EXPECT_THAT(Generate(request),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("unfinished")));
}

TEST_F(OverloadTest, TimeLimitEndsTheTextAndIsSaid) {
  LoadLong();
  GenerateTextRequest request = Request("Once upon", 0, "long");
  request.set_ignore_end_of_text(true);
  request.mutable_time_limit()->set_nanos(150'000'000);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse response, Generate(request));
  EXPECT_EQ(response.finish_reason(), GenerateTextResponse::TIME_LIMIT);
  EXPECT_EQ(response.usage().output_tokens(), response.token_ids_size());
  EXPECT_EQ(Metric("quern_requests_total{model=\"long\",outcome=\"time_limit\"}"), 1);
}

TEST_F(OverloadTest, BadTimeLimitsAndPrioritiesAreRefused) {
  LoadTiny();
  const auto refused = [&](int64_t seconds, int nanos) {
    GenerateTextRequest request = Request();
    request.mutable_time_limit()->set_seconds(seconds);
    request.mutable_time_limit()->set_nanos(nanos);
    EXPECT_THAT(Generate(request), StatusIs(kInvalid, HasSubstr("time_limit is")));
  };
  refused(0, 0);
  refused(-1, 0);
  refused(0, -1);
  refused(0, 1'000'000'000);
  refused(std::numeric_limits<int64_t>::max(), 0);
  GenerateTextRequest request = Request();
  request.set_priority(static_cast<GenerateTextRequest::Priority>(4));
  EXPECT_THAT(Generate(request), StatusIs(kInvalid, HasSubstr("priority must be")));
  request.set_priority(GenerateTextRequest::HIGH);
  EXPECT_OK(Generate(request));
  Json body = {{"model", "tiny"}, {"prompt", "Once"}, {"max_tokens", 3}, {"priority", 2}};
  const Answer answer = Complete(body);
  EXPECT_EQ(answer.status, 400);
  EXPECT_EQ(answer.json().at("error").at("param"), "priority");
  body["priority"] = -1;
  EXPECT_EQ(Complete(body).status, 200);
}

TEST_F(OverloadTest, RequestTimeoutBoundsBothFronts) {
  config_.request_timeout = absl::Seconds(1);
  Start();
  LoadLong();
  GenerateTextRequest request = Request("Once upon", 16000, "long");
  request.set_ignore_end_of_text(true);
  EXPECT_THAT(Generate(request), StatusIs(absl::StatusCode::kDeadlineExceeded, testing::_));
  const Json body = {
      {"model", "long"}, {"prompt", "Once upon"}, {"max_tokens", 16000}, {"ignore_eos", true}};
  EXPECT_EQ(Complete(body).status, 504);
  EXPECT_GT(Metric("quern_discarded_tokens_total{model=\"long\",reason=\"deadline\"}"), 0);
}

// A stuck engine: the sink of a request holds its thread, and the test moves the time.
TEST(EngineWatchTest, HealthTurnsWhileTheEngineIsStuckAndBack) {
  ManualClock clock;
  ASSERT_OK_AND_ASSIGN(const auto engine,
                       Engine::Create({.kv_cache_bytes = 1 << 20}, nullptr, &clock));
  ASSERT_OK_AND_ASSIGN(const ModelHandle model, engine->Load(TinySource({})));
  prometheus::Registry registry;
  ASSERT_OK_AND_ASSIGN(const auto server, GrpcServer::Start({}, {}, registry));
  server->SetServing(true);
  const auto health = grpc::health::v1::Health::NewStub(
      grpc::CreateChannel(server->address(), grpc::InsecureChannelCredentials()));
  const auto status = [&] {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120));
    grpc::health::v1::HealthCheckResponse response;
    EXPECT_TRUE(health->Check(&context, {}, &response).ok());
    return response.status();
  };
  EngineWatch watch(*engine, [&](bool getting_on) { server->SetServing(getting_on); });
  Event reached;
  Event opened;
  auto sink = Start(*engine, model, Greedy(Prompt(4, 1), 5), [&](CollectingSink& s) {
    if (s.ids().size() != 2) return;
    reached.Notify();
    opened.Wait();
  });
  reached.Wait();
  watch.Look();
  EXPECT_EQ(status(), grpc::health::v1::HealthCheckResponse::SERVING);
  clock.Advance(absl::Seconds(5) - kLookPeriod);
  watch.Look();
  EXPECT_EQ(status(), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  opened.Notify();
  EXPECT_OK(sink->Wait());
  watch.Look();
  EXPECT_EQ(status(), grpc::health::v1::HealthCheckResponse::SERVING);
}

}  // namespace
}  // namespace quern
