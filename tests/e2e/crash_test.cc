// Killed programs lose nothing that was acknowledged, and the answer stays the same.

#include <absl/time/clock.h>
#include <signal.h>

#include "tests/e2e/clients.h"
#include "tests/e2e/deployment.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using quantization::v1::JobEvent;
using quantization::v1::Progress;
using quantization::v1::QuantizationJob;

class CrashTest : public testing::Test {
 protected:
  void SetUp() override {
    TinyModelOptions options;
    options.num_hidden_layers = 4;
    ASSERT_OK(WriteTinyCheckpoint(deployment_.model_root() + "/tiny", options));
    ASSERT_OK(deployment_.StartJobs());
  }

  // A job with blocks of about two seconds, so that there is time to break in.
  static quantization::v1::CreateQuantizationJobRequest SlowJob(int epochs) {
    auto request = TinyJob("tiny");
    auto& settings = *request.mutable_quantization_job()->mutable_quantize()->mutable_block_ap();
    settings.set_sample_count(16);
    settings.set_epoch_count(epochs);
    return request;
  }

  // Follows a job until its first finished block.
  void WatchUntilABlockIsDone(const std::string& name) {
    const auto job = Watch(*deployment_.JobsChannel(), name, [](const JobEvent& event) {
      return !(event.has_progress() && event.progress().stage() == Progress::BLOCK_AP &&
               event.progress().completed_count() >= 1);
    });
    ASSERT_OK(job);
  }

  void Kill(Service& service) {
    ASSERT_OK(service.process->Signal(SIGKILL));
    ASSERT_OK_AND_ASSIGN(const ExitStatus status, service.process->Wait(E2eDeadline()));
    ASSERT_EQ(status.signal, SIGKILL);
  }

  absl::StatusOr<std::string> UndisturbedArtifact() {
    auto channel = deployment_.JobsChannel();
    ASSIGN_OR_RETURN(const QuantizationJob job, Submit(*channel, SlowJob(24)));
    ASSIGN_OR_RETURN(const QuantizationJob end, Watch(*channel, job.name()));
    return end.artifact();
  }

  Deployment deployment_;
};

TEST_F(CrashTest, KilledWorkerCostsNoWorkAndChangesNothing) {
  // A short lease, so that the job is free again soon after its worker died.
  ASSERT_OK(deployment_.StartJobs({"--lease-seconds=2"}));
  ASSERT_OK(deployment_.StartWorker());
  ASSERT_OK_AND_ASSIGN(const QuantizationJob job, Submit(*deployment_.JobsChannel(), SlowJob(24)));
  WatchUntilABlockIsDone(job.name());
  Kill(deployment_.worker());
  ASSERT_OK(deployment_.StartWorker());
  ASSERT_OK_AND_ASSIGN(const QuantizationJob end, Watch(*deployment_.JobsChannel(), job.name()));
  ASSERT_EQ(end.state(), QuantizationJob::SUCCEEDED) << end.error().message();
  EXPECT_EQ(end.attempt_count(), 2);
  ASSERT_OK_AND_ASSIGN(const std::string undisturbed, UndisturbedArtifact());
  EXPECT_EQ(end.artifact(), undisturbed);
}

TEST_F(CrashTest, KilledJobServiceLosesNothing) {
  ASSERT_OK_AND_ASSIGN(const QuantizationJob queued,
                       Submit(*deployment_.JobsChannel(), TinyJob("tiny")));
  Kill(deployment_.jobs());
  ASSERT_OK(deployment_.StartJobs());
  ASSERT_OK(deployment_.StartWorker());
  ASSERT_OK_AND_ASSIGN(const QuantizationJob end, Watch(*deployment_.JobsChannel(), queued.name()));
  EXPECT_EQ(end.state(), QuantizationJob::SUCCEEDED) << end.error().message();
}

TEST_F(CrashTest, JobServiceRestartedUnderARunningJob) {
  const std::string listen = absl::StrCat("--listen=", deployment_.jobs().grpc_address);
  ASSERT_OK(deployment_.StartWorker());
  ASSERT_OK_AND_ASSIGN(const QuantizationJob job, Submit(*deployment_.JobsChannel(), SlowJob(24)));
  WatchUntilABlockIsDone(job.name());
  Kill(deployment_.jobs());
  // The same address, as a supervisor would start it again.
  ASSERT_OK(deployment_.StartJobs({listen}));
  ASSERT_OK_AND_ASSIGN(const QuantizationJob end, Watch(*deployment_.JobsChannel(), job.name()));
  EXPECT_EQ(end.state(), QuantizationJob::SUCCEEDED) << end.error().message();
  EXPECT_EQ(end.attempt_count(), 1);
}

TEST_F(CrashTest, CancelStopsARunningJob) {
  ASSERT_OK(deployment_.StartWorker());
  auto channel = deployment_.JobsChannel();
  ASSERT_OK_AND_ASSIGN(const QuantizationJob job, Submit(*channel, SlowJob(64)));
  ASSERT_OK(Watch(*channel, job.name(), [](const JobEvent& event) {
    return !(event.has_progress() && event.progress().stage() == Progress::BLOCK_AP);
  }));
  quantization::v1::CancelQuantizationJobRequest cancel;
  cancel.set_name(job.name());
  grpc::ClientContext call;
  QuantizationJob answer;
  ASSERT_OK(
      FromGrpcStatus(quantization::v1::QuantizationService::NewStub(channel)->CancelQuantizationJob(
          &call, cancel, &answer)));
  ASSERT_OK_AND_ASSIGN(const QuantizationJob end, Watch(*channel, job.name()));
  EXPECT_EQ(end.state(), QuantizationJob::CANCELLED);
  EXPECT_TRUE(end.artifact().empty());
}

TEST_F(CrashTest, ServicesDrainOnSigterm) {
  ASSERT_OK(deployment_.StartWorker());
  ASSERT_OK(deployment_.StartInference());
  for (Service* service : {&deployment_.inference(), &deployment_.worker(), &deployment_.jobs()}) {
    ASSERT_OK(service->process->Signal(SIGTERM));
    ASSERT_OK_AND_ASSIGN(const ExitStatus status, service->process->Wait(E2eDeadline()));
    EXPECT_TRUE(status.success()) << status.ToString();
  }
}

}  // namespace
}  // namespace quern
