// `quern` as a user types it: up, quantize, load, chat, and the machine-readable forms.

#include <signal.h>

#include <algorithm>
#include <map>

#include "core/base/file.h"
#include "core/base/json.h"
#include "tests/e2e/clients.h"
#include "tests/e2e/deployment.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::HasSubstr;

struct Outcome {
  std::string output;
  std::string error;
  ExitStatus status;
};

class CliTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(WriteTinyCheckpoint(deployment_.model_root() + "/tiny"));
    ASSERT_OK_AND_ASSIGN(
        up_, Subprocess::Start({.argv = {ProgramPath("quern"), "--data-directory", data(), "up",
                                         "--model-root", deployment_.model_root(), "--data-root",
                                         deployment_.data_root(), "--threads", "2"},
                                .environment = {},
                                .capture_output = true}));
    ASSERT_OK_AND_ASSIGN(const auto line, up_->ReadLine(E2eDeadline()));
    ASSERT_TRUE(line.has_value());
    ASSERT_THAT(*line, HasSubstr("up"));
  }

  std::string data() const { return deployment_.root() + "/up"; }

  Outcome Quern(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {ProgramPath("quern"), "--data-directory", data()});
    auto process = Subprocess::Start(
        {.argv = arguments, .environment = {}, .capture_output = true, .capture_error = true});
    EXPECT_OK(process);
    Outcome outcome;
    const auto drain = [&](auto read, std::string& text) {
      while (true) {
        const auto line = read();
        EXPECT_OK(line);
        if (!line.ok() || !line->has_value()) return;
        text += **line + "\n";
      }
    };
    drain([&] { return (*process)->ReadLine(E2eDeadline()); }, outcome.output);
    drain([&] { return (*process)->ReadErrorLine(E2eDeadline()); }, outcome.error);
    const auto status = (*process)->Wait(E2eDeadline());
    EXPECT_OK(status);
    outcome.status = *status;
    return outcome;
  }

  Deployment deployment_;
  std::unique_ptr<Subprocess> up_;
};

TEST_F(CliTest, FromUpToChat) {
  const Outcome quantized =
      Quern({"quantize", "tiny", "--bits", "4", "--group-size", "32", "--preset", "quick"});
  ASSERT_TRUE(quantized.status.success()) << quantized.output << quantized.error;
  EXPECT_THAT(quantized.output, HasSubstr("BLOCK_AP"));
  EXPECT_THAT(quantized.output, HasSubstr("round to nearest"));
  EXPECT_THAT(quantized.output, HasSubstr("artifacts/"));

  const Outcome jobs = Quern({"--json", "jobs", "list"});
  ASSERT_TRUE(jobs.status.success()) << jobs.error;
  ASSERT_OK_AND_ASSIGN(const Json list, ParseJson(jobs.output, "jobs list"));
  ASSERT_EQ(list["quantizationJobs"].size(), 1u);
  EXPECT_EQ(list["quantizationJobs"][0]["state"], "SUCCEEDED");
  const std::string artifact = list["quantizationJobs"][0]["artifact"];

  const std::string id = artifact.substr(sizeof("artifacts/") - 1);
  ASSERT_TRUE(Quern({"models", "load", "tiny-w4", id.substr(0, 12)}).status.success());
  const Outcome chat = Quern({"chat", "tiny-w4", "hello", "--max-tokens", "4"});
  EXPECT_TRUE(chat.status.success()) << chat.error;
  const Outcome complete = Quern({"--json", "complete", "tiny-w4", "hello", "--max-tokens", "4"});
  EXPECT_TRUE(complete.status.success()) << complete.error;
  EXPECT_THAT(complete.output, HasSubstr("finishReason"));

  const std::string exported = deployment_.root() + "/exported";
  const Outcome copy = Quern({"artifacts", "export", id, exported});
  EXPECT_TRUE(copy.status.success()) << copy.error;
  const Outcome bench = Quern({"bench", "model", exported});
  EXPECT_TRUE(bench.status.success()) << bench.error;
  EXPECT_THAT(bench.output, HasSubstr("tokens/s"));
  EXPECT_TRUE(Quern({"models", "unload", "tiny-w4"}).status.success());

  // Ctrl-C ends everything it started, in good order.
  ASSERT_OK(up_->Signal(SIGINT));
  ASSERT_OK_AND_ASSIGN(const ExitStatus status, up_->Wait(E2eDeadline()));
  EXPECT_TRUE(status.success()) << status.ToString();
  EXPECT_FALSE(Quern({"jobs", "list"}).status.success());
}

TEST_F(CliTest, MistakesAreSaidInOneLine) {
  const Outcome usage = Quern({"quantize"});
  EXPECT_EQ(usage.status.exit_code, 2);
  EXPECT_THAT(usage.error + usage.output, HasSubstr("checkpoint"));
  const Outcome bits = Quern({"quantize", "tiny", "--bits", "5"});
  EXPECT_EQ(bits.status.exit_code, 2);
  const Outcome missing = Quern({"quantize", "none"});
  EXPECT_EQ(missing.status.exit_code, 1);
  EXPECT_THAT(missing.error, HasSubstr("checkpoint.path: path \"none\""));
  EXPECT_EQ(std::count(missing.error.begin(), missing.error.end(), '\n'), 1);
  const Outcome model = Quern({"complete", "none", "text"});
  EXPECT_EQ(model.status.exit_code, 1);
  EXPECT_THAT(model.error, HasSubstr("none"));
}

TEST_F(CliTest, DoctorAndHealthSeeWhatRuns) {
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadFile(data() + "/quern.json", 65536));
  ASSERT_OK_AND_ASSIGN(const Json addresses, ParseJson(text, "quern.json"));
  const std::string worker = addresses["worker_metrics"];
  // The worker is ready once quern-jobs has answered it, soon after its start.
  const absl::Time deadline = E2eDeadline();
  while (!Quern({"health", "http://" + worker + "/readyz"}).status.success()) {
    ASSERT_LT(absl::Now(), deadline);
  }

  const Outcome doctor = Quern({"--json", "doctor"});
  EXPECT_TRUE(doctor.status.success()) << doctor.output << doctor.error;
  ASSERT_OK_AND_ASSIGN(const Json report, ParseJson(doctor.output, "doctor"));
  std::map<std::string, std::string> levels;
  for (const Json& finding : report["findings"]) {
    levels[finding["check"].get<std::string>()] = finding["level"];
  }
  for (const char* check :
       {"tiny", "data", "quern-quantizer", "quern-jobs", "quern-inference", "jobs metrics",
        "worker metrics", "inference metrics", "workers", "versions"}) {
    EXPECT_EQ(levels[check], "ok") << check << doctor.output;
  }

  const auto health = [&](const std::string& address, const std::string& service) {
    return Quern({"health", address, "--service", service}).status.exit_code;
  };
  EXPECT_EQ(health(addresses["jobs"], "quern.worker.v1.WorkerService"), 0);
  EXPECT_EQ(health(addresses["inference"], "quern.inference.v1.ModelService"), 0);
  EXPECT_EQ(health(addresses["jobs"], "quern.inference.v1.ModelService"), 1);

  const Outcome unreachable = Quern({"doctor", "--inference", "127.0.0.1:1"});
  EXPECT_EQ(unreachable.status.exit_code, 1);
  EXPECT_THAT(unreachable.output, HasSubstr("127.0.0.1:1"));
  EXPECT_THAT(unreachable.output, HasSubstr("1 problem, "));
}

}  // namespace
}  // namespace quern
