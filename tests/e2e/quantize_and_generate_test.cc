// The main job, with the real programs: a checkpoint goes in, tokens come out.

#include <quern/artifact/v1/artifact_service.grpc.pb.h>

#include <fstream>

#include "tests/e2e/clients.h"
#include "tests/e2e/deployment.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using inference::v1::GenerateTextRequest;
using inference::v1::GenerateTextResponse;
using inference::v1::Model;
using quantization::v1::JobEvent;
using quantization::v1::QuantizationJob;

class QuantizeAndGenerateTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(WriteTinyCheckpoint(deployment_.model_root() + "/tiny"));
    ASSERT_OK(deployment_.StartAll());
    jobs_ = deployment_.JobsChannel();
    inference_ = deployment_.InferenceChannel();
  }

  Deployment deployment_;
  std::shared_ptr<grpc::Channel> jobs_;
  std::shared_ptr<grpc::Channel> inference_;
};

TEST_F(QuantizeAndGenerateTest, CheckpointBecomesTokens) {
  ASSERT_OK_AND_ASSIGN(const QuantizationJob submitted, Submit(*jobs_, TinyJob("tiny")));
  int64_t last_sequence = 0;
  ASSERT_OK_AND_ASSIGN(const QuantizationJob job,
                       Watch(*jobs_, submitted.name(), [&](const JobEvent& event) {
                         EXPECT_GT(event.sequence(), last_sequence);
                         last_sequence = event.sequence();
                         return true;
                       }));
  ASSERT_EQ(job.state(), QuantizationJob::SUCCEEDED) << job.error().message();
  EXPECT_EQ(job.attempt_count(), 1);

  // The evaluation compares source, round to nearest and result on text the source sampled.
  ASSERT_EQ(job.evaluation().rows_size(), 3);
  EXPECT_EQ(job.evaluation().rows(0).model(), "source");
  EXPECT_EQ(job.evaluation().rows(0).kl_divergence(), 0);
  EXPECT_EQ(job.evaluation().rows(1).model(), "rtn");
  EXPECT_EQ(job.evaluation().rows(2).model(), "result");
  EXPECT_GT(job.evaluation().rows(2).kl_divergence(), 0);
  EXPECT_LT(job.evaluation().artifact_size_bytes(), job.evaluation().source_size_bytes());

  ASSERT_OK_AND_ASSIGN(const Model model,
                       LoadModel(*inference_, "tiny-w4", FromArtifact(job.artifact())));
  ASSERT_EQ(model.state(), Model::ACTIVE) << model.failure_message();
  EXPECT_EQ(model.chat_format(), "chatml");

  GenerateTextRequest request;
  request.set_model(model.name());
  auto* message = request.mutable_chat()->add_messages();
  message->set_role(inference::v1::Chat::Message::USER);
  message->set_content("hello");
  request.set_max_output_tokens(12);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse first, Stream(*inference_, request));
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse second, Stream(*inference_, request));
  EXPECT_GT(first.usage().output_tokens(), 0);
  EXPECT_NE(first.finish_reason(), GenerateTextResponse::FINISH_REASON_UNSPECIFIED);
  EXPECT_EQ(first.text(), second.text());
  // One lineage from the job to every response.
  EXPECT_THAT(first.system_fingerprint(),
              testing::StartsWith(job.artifact().substr(sizeof("artifacts/") - 1, 12)));

  // Metrics say what was really done.
  ASSERT_OK_AND_ASSIGN(const std::string inference_metrics,
                       HttpGet(deployment_.inference().metrics_address, "/metrics"));
  EXPECT_EQ(MetricValue(inference_metrics, "quern_generated_tokens_total{model=\"tiny-w4\"}")
                .value_or(-1),
            first.usage().output_tokens() + second.usage().output_tokens());
  EXPECT_EQ(
      MetricValue(inference_metrics, "quern_prompt_tokens_total{model=\"tiny-w4\"}").value_or(-1),
      first.usage().prompt_tokens() + second.usage().prompt_tokens());
  ASSERT_OK_AND_ASSIGN(const std::string jobs_metrics,
                       HttpGet(deployment_.jobs().metrics_address, "/metrics"));
  EXPECT_EQ(MetricValue(jobs_metrics, "quern_jobs{state=\"SUCCEEDED\"}").value_or(-1), 1);
  ASSERT_OK(HttpGet(deployment_.worker().metrics_address, "/metrics"));
}

TEST_F(QuantizeAndGenerateTest, EqualTasksGiveEqualArtifactsWhateverTheMethod) {
  auto request = TinyJob("tiny", 3);
  ASSERT_OK_AND_ASSIGN(const QuantizationJob first, Submit(*jobs_, request));
  ASSERT_OK_AND_ASSIGN(const QuantizationJob second, Submit(*jobs_, request));
  EXPECT_NE(first.name(), second.name());
  ASSERT_OK_AND_ASSIGN(const QuantizationJob first_end, Watch(*jobs_, first.name()));
  ASSERT_OK_AND_ASSIGN(const QuantizationJob second_end, Watch(*jobs_, second.name()));
  ASSERT_EQ(first_end.state(), QuantizationJob::SUCCEEDED) << first_end.error().message();
  EXPECT_EQ(first_end.artifact(), second_end.artifact());

  request.mutable_quantization_job()->mutable_quantize()->set_method(
      quantization::v1::QuantizeTask::RTN);
  request.mutable_quantization_job()->mutable_quantize()->clear_block_ap();
  request.mutable_quantization_job()->mutable_quantize()->clear_e2e_qp();
  ASSERT_OK_AND_ASSIGN(const QuantizationJob rtn, Submit(*jobs_, request));
  ASSERT_OK_AND_ASSIGN(const QuantizationJob rtn_end, Watch(*jobs_, rtn.name()));
  ASSERT_EQ(rtn_end.state(), QuantizationJob::SUCCEEDED) << rtn_end.error().message();
  EXPECT_NE(rtn_end.artifact(), first_end.artifact());
}

TEST_F(QuantizeAndGenerateTest, ATunedArtifactIsServedOnItsBase) {
  auto quantize = TinyJob("tiny");
  quantize.mutable_quantization_job()->mutable_quantize()->set_method(
      quantization::v1::QuantizeTask::RTN);
  quantize.mutable_quantization_job()->mutable_quantize()->clear_block_ap();
  quantize.mutable_quantization_job()->mutable_quantize()->clear_e2e_qp();
  ASSERT_OK_AND_ASSIGN(const QuantizationJob quantized, Submit(*jobs_, quantize));
  ASSERT_OK_AND_ASSIGN(const QuantizationJob base, Watch(*jobs_, quantized.name()));
  ASSERT_EQ(base.state(), QuantizationJob::SUCCEEDED) << base.error().message();

  std::ofstream data(deployment_.data_root() + "/chat.jsonl");
  for (int i = 0; i < 20; ++i) {
    data << R"({"prompt":"say )" << i << R"(","response":"the the the the"})"
         << "\n";
  }
  data.close();
  quantization::v1::CreateQuantizationJobRequest tune;
  auto& task = *tune.mutable_quantization_job()->mutable_tune();
  task.set_base(base.artifact());
  task.mutable_data()->set_path("chat.jsonl");
  task.mutable_settings()->set_epoch_count(3);
  task.mutable_settings()->set_learning_rate(0.02);
  ASSERT_OK_AND_ASSIGN(const QuantizationJob submitted, Submit(*jobs_, tune));
  EXPECT_EQ(submitted.tune().resolved().batch_size(), 8);
  EXPECT_GT(submitted.plan().stages_size(), 3);
  ASSERT_OK_AND_ASSIGN(const QuantizationJob job, Watch(*jobs_, submitted.name()));
  ASSERT_EQ(job.state(), QuantizationJob::SUCCEEDED) << job.error().message();
  ASSERT_EQ(job.evaluation().rows_size(), 2);
  EXPECT_EQ(job.evaluation().rows(0).model(), "base");
  EXPECT_LT(job.evaluation().rows(1).perplexity(), job.evaluation().rows(0).perplexity());

  ASSERT_OK_AND_ASSIGN(const Model model,
                       LoadModel(*inference_, "tuned", FromArtifact(job.artifact())));
  ASSERT_EQ(model.state(), Model::ACTIVE) << model.failure_message();
  GenerateTextRequest request;
  request.set_model(model.name());
  request.set_prompt("say");
  request.set_max_output_tokens(3);
  ASSERT_OK(Stream(*inference_, request));

  // Measured as a job: the delta beside its base, no artifact out.
  std::ofstream(deployment_.data_root() + "/text.txt") << std::string(600, 'a') << " b c d";
  quantization::v1::CreateQuantizationJobRequest evaluate;
  evaluate.mutable_quantization_job()->mutable_evaluate()->set_artifact(job.artifact());
  auto& text = *evaluate.mutable_quantization_job()->mutable_evaluate()->add_texts();
  text.set_path("text.txt");
  text.set_chunk_tokens(32);
  ASSERT_OK_AND_ASSIGN(const QuantizationJob asked, Submit(*jobs_, evaluate));
  ASSERT_OK_AND_ASSIGN(const QuantizationJob measured, Watch(*jobs_, asked.name()));
  ASSERT_EQ(measured.state(), QuantizationJob::SUCCEEDED) << measured.error().message();
  EXPECT_EQ(measured.artifact(), "");
  ASSERT_EQ(measured.evaluation().rows_size(), 2);
  EXPECT_EQ(measured.evaluation().rows(0).model(), "base");
  EXPECT_EQ(measured.evaluation().rows(1).model(), "artifact");

  // A delta is no base.
  task.set_base(job.artifact());
  EXPECT_THAT(Submit(*jobs_, tune), StatusIs(absl::StatusCode::kInvalidArgument,
                                             testing::HasSubstr("is a scale delta, wanted")));
}

TEST_F(QuantizeAndGenerateTest, CheckpointIsServedAsItIs) {
  ASSERT_OK_AND_ASSIGN(const Model model, LoadModel(*inference_, "source", FromCheckpoint("tiny")));
  ASSERT_EQ(model.state(), Model::ACTIVE) << model.failure_message();
  GenerateTextRequest request;
  request.set_model(model.name());
  request.set_prompt("the");
  request.set_max_output_tokens(5);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(7);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse first, Stream(*inference_, request));
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse second, Stream(*inference_, request));
  EXPECT_EQ(first.seed(), 7);
  EXPECT_THAT(first.token_ids(), testing::ElementsAreArray(second.token_ids()));
}

}  // namespace
}  // namespace quern
