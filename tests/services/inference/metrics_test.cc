#include <prometheus/text_serializer.h>

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
  expect("quern_request_prefill_seconds_count{model=\"tiny\"}", 5);
  expect("quern_request_decode_seconds_count{model=\"tiny\"}", 5);
  // Queue, prefill and decode are the whole of each request, less what the service adds around the
  // engine.
  const auto seconds = [&](const char* part) {
    return ScrapedValue(scrape,
                        absl::StrCat("quern_request_", part, "seconds_sum{model=\"tiny\"}"));
  };
  EXPECT_GT(seconds("prefill_"), 0);
  EXPECT_GT(seconds("decode_"), 0);
  EXPECT_LE(seconds("queue_") + seconds("prefill_") + seconds("decode_"), seconds("") + 0.001);
  expect("quern_preemptions_total", 0);
  expect("quern_model_load_failures_total", 0);
  expect("quern_request_seconds_count{model=\"tiny\"}", 6);
  expect("quern_requests_running", 0);
  expect("quern_requests_waiting", 0);
  expect("quern_kv_pages{state=\"used\"}", 0);
  expect("quern_kv_usage_ratio", 0);
  expect("quern_model_info{artifact=\"" + artifact.substr(10, 12) +
             "\",bits=\"4\",group_size=\"64\",kernel=\"" + kernel +
             "\",kv_cache_type=\"float16\",model=\"tiny\"}",
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

TEST_F(MetricsTest, ConstraintsAreCounted) {
  LoadTiny();
  GenerateTextRequest request = Request("Once", 50);
  EXPECT_OK(Generate(request));
  for (const char* pattern : {"[a-z]{3}", "[a-z]{3}", "[0-9]{2}", "[a-z]{3}"}) {
    request.set_regex(pattern);
    ASSERT_OK_AND_ASSIGN(const GenerateTextResponse response, Generate(request));
    EXPECT_EQ(response.finish_reason(), GenerateTextResponse::END_OF_TEXT);
    EXPECT_EQ(response.text().size(), pattern[1] == 'a' ? 3u : 2u);
  }
  request.set_regex("(");
  EXPECT_FALSE(Generate(request).ok());
  const std::string scrape = Scrape();
  EXPECT_EQ(ScrapedValue(scrape, "quern_constraints_total{outcome=\"compiled\"}"), 2);
  EXPECT_EQ(ScrapedValue(scrape, "quern_constraints_total{outcome=\"cached\"}"), 2);
  EXPECT_EQ(ScrapedValue(scrape, "quern_constraints_total{outcome=\"refused\"}"), 1);
  EXPECT_EQ(ScrapedValue(scrape, "quern_constraint_compile_seconds_count"), 2);
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

TEST_F(MetricsTest, ModelsThatLeftLongAgoAreForgotten) {
  LoadTiny();
  EXPECT_OK(Generate(Request("Once", 5)));
  EXPECT_OK(Delete("tiny"));
  for (const char* id : {"a", "b", "c"}) {
    ASSERT_EQ(Load(CheckpointRequest(id, "tiny")).state(), Model::ACTIVE);
  }
  const std::string scrape = Scrape();
  EXPECT_THAT(scrape, testing::Not(HasSubstr("model=\"tiny\"")));
  for (const char* id : {"a", "b", "c"}) {
    EXPECT_THAT(scrape, HasSubstr(absl::StrCat("model=\"", id, "\"")));
  }
  // What is in memory is never forgotten, and a forgotten one begins again.
  LoadTiny();
  EXPECT_EQ(Metric("quern_time_to_first_token_seconds_count{model=\"tiny\"}"), 0);
  EXPECT_EQ(Metric("quern_time_to_first_token_seconds_count{model=\"a\"}"), 0);
}

TEST_F(MetricsTest, SeriesLiveWhileARequestCounts) {
  prometheus::Registry registry;
  InferenceMetrics metrics(registry);
  auto held = metrics.ModelLoaded("held", {});
  metrics.ModelUnloaded("held");
  for (int i = 0; i < 1000; ++i) {
    metrics.ModelLoaded(absl::StrCat("model-", i), {});
    metrics.ModelUnloaded(absl::StrCat("model-", i));
  }
  held->prompt_tokens_total->Increment(3);
  const auto scrape = [&] { return prometheus::TextSerializer().Serialize(registry.Collect()); };
  EXPECT_EQ(ScrapedValue(scrape(), "quern_prompt_tokens_total{model=\"held\"}"), 3);
  EXPECT_LT(NumSeries("\r\n\r\n" + scrape()), 700);
  held = nullptr;
  metrics.ModelLoaded("last", {});
  EXPECT_THAT(scrape(), testing::Not(HasSubstr("model=\"held\"")));
  EXPECT_EQ(ScrapedValue(scrape(), "quern_prompt_tokens_total{model=\"last\"}"), 0);
}

TEST_F(MetricsTest, HundredModelsAndAThousandRequestsStaySmall) {
  for (int i = 0; i < 100; ++i) {
    const std::string id = absl::StrCat("model-", i);
    ASSERT_EQ(Load(CheckpointRequest(id, "tiny")).state(), Model::ACTIVE);
    for (int j = 0; j < 10; ++j) {
      ASSERT_OK(Generate(Request(absl::StrCat("Story ", 10 * i + j), 2, id)));
    }
    ASSERT_OK(Delete(id));
  }
  ExpectSmallScrape(server_->metrics_address());
}

TEST_F(MetricsTest, PreemptionsAddUp) {
  prometheus::Registry registry;
  EngineGauges gauges(registry);
  const auto value = [&] {
    return ScrapedValue(prometheus::TextSerializer().Serialize(registry.Collect()),
                        "quern_preemptions_total");
  };
  EXPECT_EQ(value(), 0);
  gauges.Update({.preemptions = 3});
  gauges.Update({.preemptions = 3});
  EXPECT_EQ(value(), 3);
  gauges.Update({.preemptions = 5});
  EXPECT_EQ(value(), 5);
}

TEST_F(MetricsTest, FailedLoadsAreCounted) {
  const std::string nowhere = "artifacts/" + std::string(64, 'a');
  ASSERT_EQ(Load(ArtifactRequest("gone", nowhere)).state(), Model::FAILED);
  EXPECT_EQ(Metric("quern_model_load_failures_total"), 1);
}

TEST_F(MetricsTest, SaysWhatTheProcessUses) {
  const std::string scrape = Scrape();
  EXPECT_EQ(
      ScrapedValue(scrape,
                   "quern_build_info{program=\"quern-inference\",version=\"" QUERN_VERSION "\"}"),
      1);
  EXPECT_GT(ScrapedValue(scrape, "process_resident_memory_bytes"), 1 << 20);
  EXPECT_GT(ScrapedValue(scrape, "quern_disk_free_bytes{directory=\"cache\"}"), 0);
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
