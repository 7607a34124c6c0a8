#include "tests/services/inference/inference_fixture.h"

namespace quern {
namespace {

using testing::HasSubstr;

class MetricsTest : public InferenceServerTest {};

TEST_F(MetricsTest, SayWhatWasDone) {
  const std::string artifact = PublishArtifact();
  ASSERT_EQ(Load(ArtifactRequest("tiny", artifact)).state(), Model::ACTIVE);
  int prompt = 0;
  int output = 0;
  int ended = 0;
  std::string kernel;
  for (int i = 0; i < 5; ++i) {
    ASSERT_OK_AND_ASSIGN(const GenerateTextResponse response,
                         Generate(Request(absl::StrCat("Story ", i), 10 + i)));
    prompt += response.usage().prompt_tokens();
    kernel = response.system_fingerprint().substr(13);
    output += response.usage().output_tokens();
    if (response.finish_reason() == GenerateTextResponse::END_OF_TEXT) ++ended;
  }
  EXPECT_FALSE(Generate(Request("", 5)).ok());
  EXPECT_FALSE(Generate(Request("Once", 1000)).ok());

  const std::string scrape = Scrape();
  const auto expect = [&](const std::string& series, double value) {
    EXPECT_EQ(ScrapedValue(scrape, series), value) << series;
  };
  expect("quern_requests_total{model=\"tiny\",outcome=\"max_output_tokens\"}", 5 - ended);
  expect("quern_requests_total{model=\"tiny\",outcome=\"end_of_text\"}", ended);
  // The empty prompt was refused before its model was looked up.
  expect("quern_requests_total{model=\"tiny\",outcome=\"invalid_argument\"}", 1);
  expect("quern_requests_rejected_total{reason=\"invalid\"}", 2);
  expect("quern_requests_rejected_total{reason=\"queue_full\"}", 0);
  expect("quern_prompt_tokens_total{model=\"tiny\"}", prompt);
  expect("quern_generated_tokens_total{model=\"tiny\"}", output);
  expect("quern_discarded_tokens_total{model=\"tiny\",reason=\"cancelled\"}", 0);
  expect("quern_time_to_first_token_seconds_count{model=\"tiny\"}", 5);
  expect("quern_inter_token_latency_seconds_count{model=\"tiny\"}", output - 5);
  expect("quern_request_queue_seconds_count{model=\"tiny\"}", 5);
  expect("quern_request_seconds_count{model=\"tiny\"}", 6);
  expect("quern_requests_running", 0);
  expect("quern_requests_waiting", 0);
  expect("quern_kv_pages{state=\"used\"}", 0);
  expect("quern_kv_usage_ratio", 0);
  expect("quern_model_info{artifact=\"" + artifact.substr(10, 12) +
             "\",bits=\"4\",group_size=\"64\",kernel=\"" + kernel + "\",model=\"tiny\"}",
         1);
  // One sequence at a time: the steps computed each prompt and all but the last token of each text.
  expect("quern_step_tokens_sum", prompt + output - 5);
  EXPECT_EQ(ScrapedValue(scrape, "quern_step_seconds_count"),
            ScrapedValue(scrape, "quern_batch_sequences_sum"));
  EXPECT_GT(ScrapedValue(scrape, "quern_kv_pages{state=\"free\"}"), 0);
  EXPECT_GT(ScrapedValue(scrape, "quern_engine_last_step_timestamp_seconds"), 1.7e9);
  EXPECT_GT(ScrapedValue(scrape, "quern_model_load_seconds{model=\"tiny\"}"), 0);
  const auto bytes = [&](const char* kind) {
    return ScrapedValue(scrape,
                        absl::StrCat("quern_model_bytes{kind=\"", kind, "\",model=\"tiny\"}"));
  };
  ASSERT_OK_AND_ASSIGN(const Model model, Get("tiny"));
  EXPECT_EQ(bytes("weights") + bytes("kv"), model.memory_bytes());
  expect(
      "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"GenerateText\",grpc_service="
      "\"quern.inference.v1.InferenceService\",grpc_type=\"unary\"}",
      5);
}

TEST_F(MetricsTest, UnloadedModelLeavesItsCountersOnly) {
  LoadTiny();
  EXPECT_OK(Generate(Request("Once", 5)));
  EXPECT_OK(Delete("tiny"));
  const std::string scrape = Scrape();
  EXPECT_THAT(scrape, testing::Not(HasSubstr("quern_model_info{")));
  EXPECT_THAT(scrape, testing::Not(HasSubstr("quern_model_bytes{")));
  EXPECT_EQ(ScrapedValue(scrape, "quern_time_to_first_token_seconds_count{model=\"tiny\"}"), 1);
  // Under the same name they go on.
  LoadTiny();
  EXPECT_OK(Generate(Request("Once", 5)));
  EXPECT_EQ(Metric("quern_time_to_first_token_seconds_count{model=\"tiny\"}"), 2);
}

TEST_F(MetricsTest, BucketsAreFineForSmallModels) {
  LoadTiny();
  const std::string scrape = Scrape();
  EXPECT_THAT(scrape,
              HasSubstr("quern_inter_token_latency_seconds_bucket{model=\"tiny\",le=\"0.0025\"}"));
  EXPECT_THAT(scrape,
              HasSubstr("quern_time_to_first_token_seconds_bucket{model=\"tiny\",le=\"2560\"}"));
  EXPECT_THAT(scrape, HasSubstr("quern_request_seconds_bucket{model=\"tiny\",le=\"7680\"}"));
}

TEST_F(MetricsTest, ProbesSayReady) {
  EXPECT_THAT(HttpGet(server_->metrics_address(), "/readyz"), HasSubstr("200 OK"));
  EXPECT_THAT(HttpGet(server_->metrics_address(), "/healthz"), HasSubstr("200 OK"));
}

}  // namespace
}  // namespace quern
