#include "services/inference/config.h"

#include <absl/strings/match.h>
#include <absl/time/clock.h>
#include <grpcpp/grpcpp.h>
#include <quern/inference/v1/inference_service.grpc.pb.h>

#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "core/base/file.h"
#include "core/base/subprocess.h"
#include "tests/support/eventually.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::HasSubstr;

TEST(InferenceConfigTest, EachFieldIsChecked) {
  EXPECT_OK(InferenceConfig().Validate());
  const auto expect = [](const char* flag, auto spoil) {
    InferenceConfig config;
    spoil(config);
    const absl::Status status = config.Validate();
    EXPECT_FALSE(status.ok()) << flag;
    EXPECT_THAT(std::string(status.message()), HasSubstr(flag));
  };
  expect("--listen", [](auto& config) { config.listen = "nowhere"; });
  expect("--listen", [](auto& config) { config.listen = "0.0.0.0:0"; });
  expect("--http-listen", [](auto& config) { config.http_listen = "0.0.0.0:80"; });
  expect("--metrics-listen", [](auto& config) { config.metrics_listen = "127.0.0.1:99999"; });
  expect("--jobs", [](auto& config) { config.jobs = "jobs"; });
  expect("--cache-directory", [](auto& config) { config.cache_directory = ""; });
  expect("--threads", [](auto& config) { config.threads = -1; });
  expect("--kv-cache-mib", [](auto& config) { config.kv_cache_mib = 0; });
  expect("--max-sequences", [](auto& config) { config.max_sequences = 0; });
  expect("--max-sequences", [](auto& config) { config.max_sequences = 4097; });
  expect("--max-step-tokens", [](auto& config) { config.max_step_tokens = 63; });
  expect("--max-step-tokens", [](auto& config) { config.max_step_tokens = 65537; });
  expect("--max-queue-wait", [](auto& config) { config.max_queue_wait = -absl::Seconds(1); });
  expect("--max-queued-requests", [](auto& config) { config.max_queued_requests = -1; });
  expect("--max-queued-tokens", [](auto& config) { config.max_queued_tokens = 0; });
  expect("--request-timeout", [](auto& config) { config.request_timeout = absl::ZeroDuration(); });
  expect("--request-timeout",
         [](auto& config) { config.request_timeout = absl::InfiniteDuration(); });
  expect("--model-memory-mib", [](auto& config) { config.model_memory_mib = -1; });
  expect("--model-memory-mib", [](auto& config) { config.model_memory_mib = (1 << 30) + 1; });
  expect("--idle-model-timeout",
         [](auto& config) { config.idle_model_timeout = -absl::Seconds(1); });
  expect("--kv-cache-type", [](auto& config) { config.kv_cache_type = "int2"; });
}

class InferenceBinaryTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* bin = std::getenv("QUERN_BIN_DIR");
    if (bin == nullptr) GTEST_SKIP() << "QUERN_BIN_DIR is not set; ctest sets it";
    bin_ = bin;
  }
  std::string bin_;
};

TEST_F(InferenceBinaryTest, LinksNoLibTorch) {
  for (const char* name : {"quern-inference", "quern"}) {
    ASSERT_OK_AND_ASSIGN(auto ldd, Subprocess::Start({.argv = {"/usr/bin/ldd", bin_ + "/" + name},
                                                      .capture_output = true}));
    bool grpc = false;
    while (true) {
      ASSERT_OK_AND_ASSIGN(const std::optional<std::string> line,
                           ldd->ReadLine(absl::Now() + absl::Seconds(20)));
      if (!line.has_value()) break;
      grpc = grpc || absl::StrContains(*line, "libgrpc");
      EXPECT_FALSE(absl::StrContains(*line, "torch") || absl::StrContains(*line, "libc10"))
          << name << ": " << *line;
    }
    EXPECT_TRUE(grpc) << name;
  }
}

TEST_F(InferenceBinaryTest, RefusesOtherMachinesWithoutLeave) {
  const TempDirectory directory;
  ASSERT_OK_AND_ASSIGN(auto process,
                       Subprocess::Start({.argv = {bin_ + "/quern-inference", "--listen=0.0.0.0:0",
                                                   "--cache-directory=" + directory.Path("cache")},
                                          .capture_error = true}));
  ASSERT_OK_AND_ASSIGN(const auto line, process->ReadErrorLine(absl::Now() + absl::Seconds(20)));
  EXPECT_THAT(line.value_or(""), HasSubstr("--allow-insecure-network"));
  ASSERT_OK_AND_ASSIGN(const ExitStatus status, process->Wait(absl::Now() + absl::Seconds(20)));
  EXPECT_EQ(status.exit_code, 78);
}

TEST_F(InferenceBinaryTest, DrainsAtSigterm) {
  const TempDirectory directory;
  ASSERT_OK_AND_ASSIGN(
      auto process,
      Subprocess::Start({.argv = {bin_ + "/quern-inference", "--listen=127.0.0.1:0",
                                  "--http-listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0",
                                  "--jobs=", "--ready-file=" + directory.Path("ready.json"),
                                  "--cache-directory=" + directory.Path("cache")},
                         .capture_error = true}));
  ASSERT_OK_AND_ASSIGN(const auto line, process->ReadErrorLine(absl::Now() + absl::Seconds(20)));
  EXPECT_THAT(line.value_or(""), HasSubstr("serving grpc=127.0.0.1:"));
  ASSERT_OK_AND_ASSIGN(const std::string ready, ReadFile(directory.Path("ready.json"), 4096));
  EXPECT_THAT(ready, HasSubstr("\"grpc_address\":\"127.0.0.1:"));
  EXPECT_THAT(ready, HasSubstr("\"http_address\":\"127.0.0.1:"));
  EXPECT_OK(process->Signal(SIGTERM));
  ASSERT_OK_AND_ASSIGN(const ExitStatus status, process->Wait(absl::Now() + absl::Seconds(20)));
  EXPECT_TRUE(status.success()) << status.ToString();
}

TEST_F(InferenceBinaryTest, ASecondSignalEndsItAtOnce) {
  const TempDirectory directory;
  std::filesystem::create_directories(directory.Path("models"));
  ASSERT_OK(WriteTinyCheckpoint(directory.Path("models/long"), {.max_position_embeddings = 16384}));
  ASSERT_OK_AND_ASSIGN(
      auto process, Subprocess::Start({.argv = {bin_ + "/quern-inference", "--listen=127.0.0.1:0",
                                                "--http-listen=", "--metrics-listen=127.0.0.1:0",
                                                "--jobs=", "--threads=1",
                                                "--model-root=" + directory.Path("models"),
                                                "--ready-file=" + directory.Path("ready.json"),
                                                "--cache-directory=" + directory.Path("cache")},
                                       .capture_error = true}));
  const auto wait_for_line = [&](const char* text) {
    while (true) {
      const auto line = process->ReadErrorLine(absl::Now() + absl::Seconds(60));
      ASSERT_OK(line);
      ASSERT_TRUE(line->has_value()) << "it ended before it said " << text;
      if (absl::StrContains(**line, text)) return;
    }
  };
  wait_for_line("serving grpc=");
  ASSERT_OK_AND_ASSIGN(const std::string ready, ReadFile(directory.Path("ready.json"), 4096));
  const auto channel =
      grpc::CreateChannel(nlohmann::json::parse(ready).at("grpc_address").get<std::string>(),
                          grpc::InsecureChannelCredentials());
  const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(120);
  grpc::ClientContext create_context;
  create_context.set_deadline(deadline);
  inference::v1::CreateModelRequest create;
  create.set_model_id("long");
  create.mutable_model()->set_checkpoint("long");
  inference::v1::Model model;
  ASSERT_TRUE(inference::v1::ModelService::NewStub(channel)
                  ->CreateModel(&create_context, create, &model)
                  .ok());
  wait_for_line("model loaded");
  // A stream that takes longer than the test; the model may yet have to become ACTIVE.
  inference::v1::GenerateTextRequest request;
  request.set_model("models/long");
  request.set_prompt("Once upon a time");
  request.set_max_output_tokens(16000);
  request.set_ignore_end_of_text(true);
  const auto inference = inference::v1::InferenceService::NewStub(channel);
  std::unique_ptr<grpc::ClientContext> context;
  std::unique_ptr<grpc::ClientReader<inference::v1::GenerateTextResponse>> reader;
  inference::v1::GenerateTextResponse message;
  ASSERT_TRUE(Eventually([&] {
    reader = nullptr;
    context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(deadline);
    reader = inference->StreamGenerateText(context.get(), request);
    if (reader->Read(&message)) return true;
    static_cast<void>(reader->Finish());
    return false;
  }));
  ASSERT_OK(process->Signal(SIGTERM));
  wait_for_line("engine draining");
  ASSERT_OK(process->Signal(SIGTERM));
  ASSERT_OK_AND_ASSIGN(const ExitStatus status, process->Wait(absl::Now() + absl::Seconds(20)));
  EXPECT_EQ(status.exit_code, 128 + SIGTERM);
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace quern
