#include "services/worker/quantizer_events.h"

#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using absl::StatusCode;
using quantization::v1::JobError;
using quantization::v1::Progress;
using testing::_;

template <typename T>
T Parse(const std::string& line) {
  return std::get<T>(ParseQuantizerEvent(line).value());
}

TEST(QuantizerEventsTest, ReadsEachKind) {
  const auto device = Parse<worker::v1::WorkerCapabilities>(
      R"({"event":"device","device":"cuda","name":"GPU 0","memory_bytes":80000000000,)"
      R"("gflops":20000.5,"bfloat16_gflops":90000})");
  EXPECT_EQ(device.device(), worker::v1::WorkerCapabilities::CUDA);
  EXPECT_EQ(device.device_name(), "GPU 0");
  EXPECT_EQ(device.memory_bytes(), 80'000'000'000);
  EXPECT_EQ(device.gflops(), 20000.5);
  EXPECT_EQ(device.bfloat16_gflops(), 90000);
  const auto progress = Parse<Progress>(
      R"({"event":"progress","stage":"BLOCK_AP","completed":3,"total":30,"loss":0.5,)"
      R"("remaining_seconds":123.25})");
  EXPECT_EQ(progress.stage(), Progress::BLOCK_AP);
  EXPECT_EQ(progress.completed_count(), 3);
  EXPECT_EQ(progress.total_count(), 30);
  EXPECT_EQ(progress.loss(), 0.5);
  EXPECT_EQ(progress.remaining().seconds(), 123);
  EXPECT_EQ(progress.remaining().nanos(), 250'000'000);
  EXPECT_FALSE(Parse<Progress>(R"({"event":"progress","stage":"LOADING"})").has_loss());
  EXPECT_EQ(Parse<QuantizerLog>(R"({"event":"log","message":"hi"})").message, "hi");
  const auto result = Parse<QuantizerResult>(
      R"({"event":"result","artifact":"aa","directory":"/x/artifact","evaluation":{"rows":[)"
      R"({"model":"rtn","perplexity":17.5,"tokenCount":"99"}],"artifactSizeBytes":"7"}})");
  EXPECT_EQ(result.directory, "/x/artifact");
  EXPECT_EQ(result.evaluation.rows(0).token_count(), 99);
  EXPECT_EQ(result.evaluation.artifact_size_bytes(), 7);
  const auto error =
      Parse<JobError>(R"({"event":"error","code":13,"reason":"DIVERGED","message":"block 3"})");
  EXPECT_EQ(error.code(), 13);
  EXPECT_EQ(error.reason(), "DIVERGED");
  EXPECT_EQ(error.message(), "block 3");
}

TEST(QuantizerEventsTest, RefusesWhatIsNoEvent) {
  for (const char* line : {"",
                           "x",
                           "[]",
                           "{}",
                           "null",
                           R"({"event":1})",
                           R"({"event":"other"})",
                           R"({"event":"progress"})",
                           R"({"event":"progress","stage":"NOPE"})",
                           R"({"event":"progress","stage":"STAGE_UNSPECIFIED"})",
                           R"({"event":"progress","stage":"LOADING","completed":-1})",
                           R"({"event":"progress","stage":"LOADING","total":1.5})",
                           R"({"event":"device"})",
                           R"({"event":"device","device":"tpu"})",
                           R"({"event":"device","device":"cpu","memory_bytes":-1})",
                           R"({"event":"log"})",
                           R"({"event":"result"})",
                           R"({"event":"result","directory":"/x","evaluation":{"rows":7}})",
                           R"({"event":"error"})",
                           R"({"event":"error","code":0})",
                           R"({"event":"error","code":17})",
                           R"({"event":"log","event":"log","message":"twice"})"}) {
    EXPECT_THAT(ParseQuantizerEvent(line), StatusIs(StatusCode::kInvalidArgument, _)) << line;
  }
}

TEST(QuantizerEventsTest, TextsComeInTheFormThatJobsTakes) {
  EXPECT_EQ(Parse<QuantizerLog>(R"({"event":"log","message":"a\u001b[31mb\n"})").message,
            "a [31mb ");
  EXPECT_EQ(
      Parse<QuantizerLog>("{\"event\":\"log\",\"message\":\"" + std::string(9000, 'x') + "\"}")
          .message.size(),
      4096);
  EXPECT_EQ(Parse<JobError>(R"({"event":"error","code":13,"reason":"not upper"})").reason(),
            "UNKNOWN");
  EXPECT_EQ(Parse<Progress>(R"({"event":"progress","stage":"LOADING","completed":9,"total":3})")
                .completed_count(),
            3);
  // Cut in the middle of a character.
  EXPECT_EQ(CleanText("ab\xc3\xa4", 3), "ab");
  EXPECT_EQ(CleanText("a\xff z", 10), "a? z");
}

}  // namespace
}  // namespace quern
