#include "tests/services/jobs/jobs_fixture.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::_;
using testing::AllOf;
using testing::HasSubstr;

using QuantizationServiceTest = JobsServerTest;

TEST_F(QuantizationServiceTest, CreatedJobHasResolvedSettingsAndAPlan) {
  auto request = CreateRequest();
  auto& task = *request.mutable_quantization_job()->mutable_quantize();
  task.set_method(quantization::v1::QuantizeTask::BLOCK_AP_E2E_QP);
  task.set_preset(quantization::v1::QuantizeTask::QUICK);
  task.mutable_block_ap()->set_sample_count(7);
  task.mutable_block_ap()->set_sequence_length_tokens(64);
  task.mutable_e2e_qp()->set_sequence_length_tokens(64);
  task.mutable_calibration()->set_path("text.txt");
  (*request.mutable_quantization_job()->mutable_labels())["team"] = "a team";
  ASSERT_OK_AND_ASSIGN(const Job job, Create(request));
  EXPECT_THAT(job.name(), testing::MatchesRegex("quantizationJobs/[0-9a-f]{16}"));
  EXPECT_EQ(job.state(), Job::QUEUED);
  EXPECT_EQ(job.labels().at("team"), "a team");
  EXPECT_EQ(job.quantize().resolved().block_ap().sample_count(), 7);
  EXPECT_TRUE(job.quantize().resolved().block_ap().has_weight_learning_rate());
  EXPECT_EQ(job.quantize().resolved().e2e_qp().loss(),
            quantization::v1::E2eQpSettings::DISTILLATION);
  EXPECT_GT(job.plan().stages_size(), 2);
  EXPECT_GT(job.plan().artifact_size_bytes(), 0);
  for (const auto& stage : job.plan().stages()) EXPECT_NE(stage.stage(), 0);
  EXPECT_EQ(Get(job.name()).value().SerializeAsString(), job.SerializeAsString());
}

TEST_F(QuantizationServiceTest, ValidateOnlyMakesNothing) {
  auto request = CreateRequest();
  request.set_validate_only(true);
  ASSERT_OK_AND_ASSIGN(const Job job, Create(request));
  EXPECT_EQ(job.name(), "");
  EXPECT_GT(job.plan().artifact_size_bytes(), 0);
  request.mutable_quantization_job()->mutable_quantize()->mutable_checkpoint()->set_path("none");
  EXPECT_THAT(Create(request), StatusIs(StatusCode::kInvalidArgument, HasSubstr("checkpoint")));
  Context context;
  quantization::v1::ListQuantizationJobsResponse jobs;
  ASSERT_TRUE(jobs_->ListQuantizationJobs(&context, {}, &jobs).ok());
  EXPECT_EQ(jobs.quantization_jobs_size(), 0);
}

TEST_F(QuantizationServiceTest, PlansCountOnTheSpeedThatAWorkerReported) {
  auto request = CreateRequest();
  request.set_validate_only(true);
  request.mutable_quantization_job()->mutable_quantize()->set_method(
      quantization::v1::QuantizeTask::BLOCK_AP);
  const auto planned = [&] {
    const auto job = Create(request);
    EXPECT_OK(job);
    absl::Duration total;
    for (const auto& stage : job->plan().stages()) {
      if (stage.stage() != quantization::v1::Progress::BLOCK_AP) continue;
      total +=
          absl::Seconds(stage.duration().seconds()) + absl::Nanoseconds(stage.duration().nanos());
    }
    return absl::ToDoubleSeconds(total);
  };
  const auto report = [&](double gflops, const std::string& id, double bfloat16_gflops = 0) {
    auto lease = LeaseRequest(id);
    lease.mutable_capabilities()->set_gflops(gflops);
    lease.mutable_capabilities()->set_bfloat16_gflops(bfloat16_gflops);
    EXPECT_OK(LeaseJob(lease));
  };
  report(100, "a");
  const double slow = planned();
  ASSERT_GT(slow, 1e-3);
  report(400, "b");
  const double fast = planned();
  EXPECT_LT(fast, 0.7 * slow);
  report(1600, "c");
  const double faster = planned();
  // A quarter each time, but for what each step takes at any rate.
  EXPECT_NEAR(slow - fast, 4 * (fast - faster), slow / 100);
  report(0, "e");  // one that does not know
  EXPECT_EQ(planned(), faster);
  report(100, "d", 400);
  EXPECT_LT(planned(), 0.8 * slow);
}

TEST_F(QuantizationServiceTest, WhatNoWorkerHasMemoryForIsRefusedAtSubmit) {
  const auto report = [&](int64_t memory_bytes, const std::string& id) {
    auto lease = LeaseRequest(id);
    lease.mutable_capabilities()->set_memory_bytes(memory_bytes);
    EXPECT_OK(LeaseJob(lease));
  };
  auto request = CreateRequest();
  request.set_validate_only(true);
  EXPECT_OK(Create(request));  // no worker yet: nothing is known
  report(int64_t{64} << 20, "a");
  const auto refused = Create(request);
  EXPECT_THAT(refused, StatusIs(StatusCode::kFailedPrecondition,
                                AllOf(HasSubstr("GiB of memory, the machine has 0.1 GiB"),
                                      HasSubstr("use a larger machine"))));
  report(int64_t{8} << 30, "b");
  EXPECT_OK(Create(request));
  report(int64_t{64} << 20, "c");  // the larger one is still there, as far as is known
  EXPECT_OK(Create(request));
}

TEST_F(QuantizationServiceTest, SameRequestIdGivesTheSameJobEvenAfterTheFilesMoved) {
  auto request = CreateRequest();
  request.set_request_id("4e7a4ee8-0b9c-4d0e-8a6a-2d5a0e1f9a10");
  for (const char* key : {"a", "b", "c", "d"}) {
    (*request.mutable_quantization_job()->mutable_labels())[key] = key;
  }
  ASSERT_OK_AND_ASSIGN(const Job first, Create(request));
  std::filesystem::rename(directory_ / "models/tiny", directory_ / "models/moved");
  EXPECT_EQ(Create(request).value().name(), first.name());
  Start();
  EXPECT_EQ(Create(request).value().name(), first.name());
  request.mutable_quantization_job()->mutable_quantize()->set_seed(8);
  EXPECT_THAT(Create(request), StatusIs(StatusCode::kAlreadyExists, HasSubstr("request_id")));
}

TEST_F(QuantizationServiceTest, OutputOnlyFieldsAreIgnored) {
  auto request = CreateRequest();
  Job& job = *request.mutable_quantization_job();
  job.set_name("quantizationJobs/mine");
  job.set_state(Job::SUCCEEDED);
  job.set_artifact("artifacts/x");
  job.set_attempt_count(7);
  job.mutable_quantize()->mutable_resolved()->mutable_block_ap()->set_batch_size(99);
  ASSERT_OK_AND_ASSIGN(const Job created, Create(request));
  EXPECT_NE(created.name(), job.name());
  EXPECT_EQ(created.state(), Job::QUEUED);
  EXPECT_EQ(created.artifact(), "");
  EXPECT_EQ(created.attempt_count(), 0);
  EXPECT_NE(created.quantize().resolved().block_ap().batch_size(), 99);
}

TEST_F(QuantizationServiceTest, ListsPagesAndStates) {
  std::vector<std::string> names;
  for (int i = 0; i < 3; ++i) names.insert(names.begin(), CreateName());
  ASSERT_OK(Cancel(names[1]));
  quantization::v1::ListQuantizationJobsRequest request;
  request.set_page_size(2);
  quantization::v1::ListQuantizationJobsResponse page;
  {
    Context context;
    ASSERT_TRUE(jobs_->ListQuantizationJobs(&context, request, &page).ok());
  }
  ASSERT_EQ(page.quantization_jobs_size(), 2);
  EXPECT_EQ(page.quantization_jobs(0).name(), names[0]);
  request.set_page_token(page.next_page_token());
  {
    Context context;
    page.Clear();
    ASSERT_TRUE(jobs_->ListQuantizationJobs(&context, request, &page).ok());
  }
  ASSERT_EQ(page.quantization_jobs_size(), 1);
  EXPECT_EQ(page.quantization_jobs(0).name(), names[2]);
  EXPECT_EQ(page.next_page_token(), "");
  quantization::v1::ListQuantizationJobsRequest cancelled;
  cancelled.add_states(Job::CANCELLED);
  Context context;
  page.Clear();
  ASSERT_TRUE(jobs_->ListQuantizationJobs(&context, cancelled, &page).ok());
  ASSERT_EQ(page.quantization_jobs_size(), 1);
  EXPECT_EQ(page.quantization_jobs(0).name(), names[1]);
}

TEST_F(QuantizationServiceTest, CancelAndDelete) {
  const std::string name = CreateName();
  const auto remove = [&] {
    Context context;
    quantization::v1::DeleteQuantizationJobRequest request;
    request.set_name(name);
    google::protobuf::Empty response;
    return FromGrpcStatus(jobs_->DeleteQuantizationJob(&context, request, &response));
  };
  EXPECT_THAT(remove(), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("not ended")));
  EXPECT_EQ(Cancel(name).value().state(), Job::CANCELLED);
  EXPECT_EQ(Cancel(name).value().state(), Job::CANCELLED);
  EXPECT_OK(remove());
  EXPECT_THAT(Get(name), StatusIs(StatusCode::kNotFound, _));
  EXPECT_THAT(remove(), StatusIs(StatusCode::kNotFound, _));
}

TEST_F(QuantizationServiceTest, NothingAcknowledgedIsLostByARestart) {
  auto request = CreateRequest();
  (*request.mutable_quantization_job()->mutable_labels())["k"] = "v";
  const std::string queued = Create(request).value().name();
  const std::string artifact = PublishArtifact("a");
  Start();
  Context context;
  quantization::v1::ListQuantizationJobsResponse jobs;
  ASSERT_TRUE(jobs_->ListQuantizationJobs(&context, {}, &jobs).ok());
  ASSERT_EQ(jobs.quantization_jobs_size(), 2);
  artifact::v1::GetArtifactRequest get;
  get.set_name(artifact);
  artifact::v1::Artifact found;
  Context get_context;
  EXPECT_TRUE(artifacts_->GetArtifact(&get_context, get, &found).ok());
  EXPECT_GE(found.files_size(), 2);
  EXPECT_EQ(Get(queued).value().labels().at("k"), "v");
}

TEST_F(QuantizationServiceTest, ASecondServiceOnTheDataDirectoryIsRefused) {
  EXPECT_THAT(JobsServer::Start(config_, clock_),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("in use by process")));
}

TEST_F(QuantizationServiceTest, ConfigIsChecked) {
  const auto refused = [](JobsConfig config, const std::string& part) {
    EXPECT_THAT(std::string(config.Validate().message()), HasSubstr(part));
  };
  JobsConfig config = config_;
  config.listen = "0.0.0.0:0";
  refused(config, "--listen");
  config = config_;
  config.metrics_listen = "nope";
  refused(config, "--metrics-listen");
  config = config_;
  config.data_directory = "";
  refused(config, "--data-directory");
  config = config_;
  config.model_root = "";
  refused(config, "--model-root");
  config = config_;
  config.data_root = directory_ / "data/text.txt";
  refused(config, "--data-root");
}

}  // namespace
}  // namespace quern
