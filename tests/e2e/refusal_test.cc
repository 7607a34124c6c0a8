// What the running services refuse, as a client sees it.

#include <quern/inference/v1/inference_service.grpc.pb.h>

#include <filesystem>
#include <fstream>

#include "core/base/file.h"
#include "tests/e2e/clients.h"
#include "tests/e2e/deployment.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using inference::v1::Model;
using quantization::v1::QuantizationJob;
using testing::HasSubstr;

class RefusalTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(WriteTinyCheckpoint(deployment_.model_root() + "/tiny"));
    // A readable model outside the root, and a link to it inside.
    ASSERT_OK(WriteTinyCheckpoint(deployment_.root() + "/outside"));
    std::filesystem::create_directory_symlink(deployment_.root() + "/outside",
                                              deployment_.model_root() + "/link");
  }
  Deployment deployment_;
};

TEST_F(RefusalTest, NothingOutsideTheModelRoot) {
  ASSERT_OK(deployment_.StartJobs());
  ASSERT_OK(deployment_.StartInference());
  auto jobs = deployment_.JobsChannel();
  auto inference = deployment_.InferenceChannel();
  for (const std::string& path :
       {std::string("../outside"), std::string("link"), deployment_.root() + "/outside",
        std::string("tiny/../../outside"), std::string("none")}) {
    const auto job = Submit(*jobs, TinyJob(path));
    EXPECT_FALSE(job.ok()) << path;
    EXPECT_NE(job.status().code(), absl::StatusCode::kInternal) << path << job.status();
    const auto model = LoadModel(*inference, "m", FromCheckpoint(path));
    EXPECT_TRUE(!model.ok() || model->state() == Model::FAILED) << path;
  }
}

TEST_F(RefusalTest, DamagedCheckpointMakesNoArtifact) {
  ASSERT_OK(deployment_.StartJobs());
  ASSERT_OK(deployment_.StartWorker());
  std::filesystem::copy(deployment_.model_root() + "/tiny", deployment_.model_root() + "/broken");
  std::filesystem::resize_file(deployment_.model_root() + "/broken/model.safetensors", 1000);
  auto jobs = deployment_.JobsChannel();
  // The submit reads the configuration alone; the weights are looked at by the run.
  ASSERT_OK_AND_ASSIGN(const QuantizationJob job, Submit(*jobs, TinyJob("broken")));
  ASSERT_OK_AND_ASSIGN(const QuantizationJob end, Watch(*jobs, job.name()));
  EXPECT_EQ(end.state(), QuantizationJob::FAILED);
  EXPECT_EQ(end.error().reason(), "CHECKPOINT_DAMAGED");
  EXPECT_EQ(end.error().code(), static_cast<int>(absl::StatusCode::kDataLoss));
  EXPECT_THAT(end.error().message(), HasSubstr("model.safetensors"));
  EXPECT_TRUE(end.artifact().empty());
  // A damaged configuration is refused at once.
  std::filesystem::resize_file(deployment_.model_root() + "/broken/config.json", 10);
  EXPECT_THAT(Submit(*jobs, TinyJob("broken")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("config.json")));
}

TEST_F(RefusalTest, DamagedArtifactServesNoToken) {
  ASSERT_OK(deployment_.StartAll());
  auto jobs = deployment_.JobsChannel();
  ASSERT_OK_AND_ASSIGN(const QuantizationJob job, Submit(*jobs, TinyJob("tiny")));
  ASSERT_OK_AND_ASSIGN(const QuantizationJob end, Watch(*jobs, job.name()));
  ASSERT_EQ(end.state(), QuantizationJob::SUCCEEDED) << end.error().message();
  // One bit of the largest blob turns in the store.
  std::filesystem::path largest;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(deployment_.jobs_data())) {
    if (entry.is_regular_file() && entry.path().string().find("blobs") != std::string::npos &&
        (largest.empty() || entry.file_size() > std::filesystem::file_size(largest))) {
      largest = entry.path();
    }
  }
  ASSERT_FALSE(largest.empty());
  std::filesystem::permissions(largest, std::filesystem::perms::owner_all);
  std::fstream file(largest, std::ios::in | std::ios::out | std::ios::binary);
  const auto middle = static_cast<std::streamoff>(std::filesystem::file_size(largest) / 2);
  file.seekg(middle);
  const char byte = static_cast<char>(file.get() ^ 1);
  file.seekp(middle);
  file.put(byte);
  file.close();
  ASSERT_OK_AND_ASSIGN(const Model model, LoadModel(*deployment_.InferenceChannel(), "m",
                                                    FromArtifact(end.artifact())));
  EXPECT_EQ(model.state(), Model::FAILED);
  EXPECT_THAT(model.failure_message(), HasSubstr("SHA-256"));
}

TEST_F(RefusalTest, OpenNetworkNeedsSayingSo) {
  for (const char* flag : {"--listen=0.0.0.0:0", "--metrics-listen=0.0.0.0:0"}) {
    ASSERT_OK_AND_ASSIGN(
        auto process,
        Subprocess::Start(
            {.argv = {ProgramPath("quern-jobs"), "--data-directory=" + deployment_.jobs_data(),
                      "--model-root=" + deployment_.model_root(),
                      "--data-root=" + deployment_.data_root(), "--listen=127.0.0.1:0",
                      "--metrics-listen=127.0.0.1:0", flag},
             .environment = {},
             .capture_error = true}));
    std::string error;
    while (true) {
      ASSERT_OK_AND_ASSIGN(const auto line, process->ReadErrorLine(E2eDeadline()));
      if (!line.has_value()) break;
      error += *line;
    }
    ASSERT_OK_AND_ASSIGN(const ExitStatus status, process->Wait(E2eDeadline()));
    EXPECT_EQ(status.exit_code, 78) << status.ToString();
    EXPECT_THAT(error, HasSubstr("--allow-insecure-network"));
  }
  ASSERT_OK(deployment_.StartJobs({"--listen=0.0.0.0:0", "--allow-insecure-network"}));
}

}  // namespace
}  // namespace quern
