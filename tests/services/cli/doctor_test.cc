// `quern health` and `quern doctor` against services of this process.

#include <prometheus/gauge.h>
#include <sys/stat.h>

#include <boost/asio/ip/tcp.hpp>
#include <filesystem>

#include "services/cli/doctor.h"
#include "services/cli/http.h"
#include "services/cli/scrape.h"
#include "services/common/build_info.h"
#include "services/common/metrics_endpoint.h"
#include "services/common/server.h"
#include "tests/services/cli/cli_fixture.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::HasSubstr;
using testing::Not;

// A service as the doctor sees it: health, metrics, readiness.
class HealthyService {
 public:
  HealthyService(const std::string& program, const std::vector<std::string>& health_names) {
    ExportBuildInfo(registry, program);
    ServerOptions options;
    options.health_names = health_names;
    server = *GrpcServer::Start(options, {}, registry);
    server->SetServing(true);
    MetricsEndpointOptions endpoint_options;
    endpoint_options.ready = [this] {
      return ready ? absl::OkStatus() : absl::UnavailableError("the mill stands still");
    };
    endpoint = *MetricsEndpoint::Start(endpoint_options, registry);
  }
  std::string metrics() const { return endpoint->address(); }

  prometheus::Registry registry;
  std::atomic<bool> ready = true;
  std::unique_ptr<GrpcServer> server;
  std::unique_ptr<MetricsEndpoint> endpoint;
};

class DoctorTest : public CliTest {
 protected:
  DoctorTest() {
    prometheus::BuildGauge()
        .Name("quern_worker_up")
        .Register(worker_.registry)
        .Add({{"worker", "w1"}, {"device", "cpu"}})
        .Set(1);
  }

  std::vector<std::string> Arguments() const {
    return {"doctor",
            "--json",
            "--timeout=20",
            "--data-directory=" + directory_.Path("state"),
            "--jobs=" + jobs_.server->address(),
            "--inference=" + inference_.server->address(),
            "--jobs-metrics=" + jobs_.metrics(),
            "--worker-metrics=" + worker_.metrics(),
            "--inference-metrics=" + inference_.metrics()};
  }
  // Findings by "section/check"; exit status in exit_code_. `more` replaces the addresses above.
  std::map<std::string, Json> Doctor(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = Arguments();
    for (const std::string& argument : more) {
      const std::string option = argument.substr(0, argument.find('=') + 1);
      std::erase_if(arguments, [&](const std::string& old) { return old.starts_with(option); });
      arguments.push_back(argument);
    }
    const Result result = Run(arguments);
    exit_code_ = result.exit_code;
    EXPECT_EQ(result.error, "");
    const absl::StatusOr<Json> json = ParseJson(result.output, "output");
    EXPECT_OK(json);
    std::map<std::string, Json> findings;
    for (const Json& finding : json->at("findings")) {
      findings[absl::StrCat(finding.at("section").get<std::string>(), "/",
                            finding.at("check").get<std::string>())] = finding;
    }
    return findings;
  }

  HealthyService jobs_{"quern-jobs", {"quern.quantization.v1.QuantizationService"}};
  HealthyService worker_{"quern-worker", {}};
  HealthyService inference_{"quern-inference", {"quern.inference.v1.InferenceService"}};
  int exit_code_ = -1;
};

TEST_F(DoctorTest, HealthIsAnExitStatus) {
  const std::string address = jobs_.server->address();
  const Result serving = Run({"health", address});
  EXPECT_EQ(serving.exit_code, 0);
  EXPECT_EQ(serving.output, "SERVING\n");
  EXPECT_EQ(
      Run({"health", address, "--service=quern.quantization.v1.QuantizationService"}).exit_code, 0);
  const Result unknown = Run({"health", address, "--service=quern.Mill"});
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.error, HasSubstr("quern.Mill is not known there"));

  jobs_.server->SetServing(false);
  const Result stopped = Run({"health", address});
  EXPECT_EQ(stopped.exit_code, 1);
  EXPECT_EQ(stopped.error, "quern: UNAVAILABLE: " + address + " is NOT_SERVING\n");
  const Result json = Run({"health", address, "--json"});
  EXPECT_EQ(json.exit_code, 1);
  EXPECT_EQ(json.error, "");
  EXPECT_EQ(ParseJson(json.output, "output")->at("serving"), false);
  EXPECT_THAT(Run({"health", services_.address()}).error, HasSubstr("no health service"));
  EXPECT_THAT(Run({"health", "nonsense"}).error, HasSubstr("HOST:PORT"));
  EXPECT_EQ(Run({"health", "127.0.0.1:1"}).exit_code, 1);
}

TEST_F(DoctorTest, HealthByHttp) {
  const std::string url = "http://" + worker_.metrics() + "/readyz";
  EXPECT_EQ(Run({"health", url}).exit_code, 0);
  worker_.ready = false;
  const Result result = Run({"health", url});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.error, HasSubstr("HTTP 503: the mill stands still"));
}

// Accepts connections and says nothing.
TEST_F(DoctorTest, HealthHasADeadline) {
  boost::asio::io_context context;
  const boost::asio::ip::tcp::acceptor silent(context,
                                              {boost::asio::ip::make_address("127.0.0.1"), 0});
  const std::string address = absl::StrCat("127.0.0.1:", silent.local_endpoint().port());
  for (const std::string& asked : {address, "http://" + address + "/readyz"}) {
    const Result result = Run({"health", asked, "--timeout=0.2"});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.error, HasSubstr("no answer within 200ms"));
  }
}

TEST_F(DoctorTest, GoodDeployment) {
  ASSERT_OK(WriteTinyCheckpoint(directory_.Path("models/tiny")));
  ASSERT_OK(CreateDirectories(directory_.Path("state/jobs")));
  const auto findings = Doctor({"--model-root=" + directory_.Path("models")});
  EXPECT_EQ(exit_code_, 0);
  for (const char* check :
       {"directories/data", "directories/model root", "checkpoints/tiny", "services/quern-jobs",
        "services/quern-inference", "services/jobs metrics", "services/worker metrics",
        "services/workers", "services/versions", "programs/quern-jobs"}) {
    ASSERT_TRUE(findings.contains(check)) << check;
    EXPECT_EQ(findings.at(check).at("level"), "ok") << findings.at(check);
  }
  EXPECT_THAT(findings.at("services/workers").at("found"), "w1 on cpu is up");
  EXPECT_TRUE(findings.contains("machine/kernels"));
  EXPECT_TRUE(findings.contains("machine/memory"));
}

TEST_F(DoctorTest, EachFaultIsNamedWithWhatToDo) {
  std::filesystem::create_directories(directory_.Path("models/broken"));
  OverwriteFile(directory_.Path("models/broken/config.json"), "{");
  OverwriteFile(directory_.Path("models/short.gguf"), "GGUF");
  std::filesystem::create_directories(directory_.Path("elsewhere"));
  OverwriteFile(directory_.Path("elsewhere/config.json"), "{}");
  std::filesystem::create_symlink(directory_.Path("elsewhere"), directory_.Path("models/out"));
  std::filesystem::create_directories(directory_.Path("state/jobs"));
  ASSERT_EQ(chmod(directory_.Path("state/jobs").c_str(), 0777), 0);
  jobs_.server->SetServing(false);
  inference_.ready = false;
  OverwriteFile(directory_.Path("quantizer"), "#!/bin/sh\necho no torch >&2\nexit 127\n");
  ASSERT_EQ(chmod(directory_.Path("quantizer").c_str(), 0700), 0);
  const auto findings = Doctor(
      {"--model-root=" + directory_.Path("models"), "--quantizer=" + directory_.Path("quantizer"),
       "--worker-metrics=" + jobs_.metrics(), "--prometheus=http://127.0.0.1:1"});
  EXPECT_EQ(exit_code_, 1);
  const auto expect = [&findings](const char* check, const char* level, const char* found,
                                  const char* advice) {
    ASSERT_TRUE(findings.contains(check)) << check;
    const Json& finding = findings.at(check);
    EXPECT_EQ(finding.at("level"), level) << finding;
    EXPECT_THAT(finding.at("found").get<std::string>(), HasSubstr(found));
    EXPECT_THAT(finding.at("advice").get<std::string>(), HasSubstr(advice));
    EXPECT_NE(finding.at("wanted"), "");
  };
  expect("checkpoints/broken", "warning", "config.json", "repair");
  expect("checkpoints/short.gguf", "warning", "short.gguf", "repair");
  expect("checkpoints/out", "warning", "out", "repair");
  expect("checkpoints/model root", "warning", "no checkpoint", "--model-root");
  expect("directories/data/jobs", "problem", "0777", "chmod o-w");
  expect("services/quern-jobs", "problem", "NOT_SERVING", "log");
  expect("services/inference metrics", "problem", "the mill stands still", "log");
  expect("services/worker metrics", "problem", "no quern_build_info of quern-worker", "address");
  expect("programs/quern-quantizer", "problem", "no torch", "--version");
  expect("services/prometheus", "problem", "127.0.0.1:1", "--prometheus");
}

TEST_F(DoctorTest, OtherVersionsAreNamed) {
  prometheus::Registry old;
  prometheus::BuildGauge()
      .Name("quern_build_info")
      .Register(old)
      .Add({{"program", "quern-worker"}, {"version", "0.0.9"}})
      .Set(1);
  const auto endpoint = *MetricsEndpoint::Start({}, old);
  const auto findings = Doctor({"--worker-metrics=" + endpoint->address()});
  EXPECT_EQ(exit_code_, 1);
  EXPECT_THAT(findings.at("services/versions").at("found").get<std::string>(),
              HasSubstr("quern-worker 0.0.9"));
  EXPECT_EQ(findings.at("services/workers").at("level"), "problem");
}

TEST_F(DoctorTest, TextEndsWithTheSummary) {
  std::vector<std::string> arguments = Arguments();
  arguments.erase(std::find(arguments.begin(), arguments.end(), "--json"));
  jobs_.server->SetServing(false);
  const Result result = Run(arguments);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.error, "");
  EXPECT_THAT(result.output, Not(HasSubstr("\x1b")));
  EXPECT_THAT(result.output, HasSubstr("  ✗ quern-jobs"));
  const std::string last =
      result.output.substr(result.output.rfind('\n', result.output.size() - 2));
  EXPECT_THAT(last, HasSubstr("1 problem, "));
}

TEST(ScrapeTest, LabelsAndValues) {
  const auto samples = cli::ParseScrape(
      "# HELP a b\na 1\nb{x=\"1\",y=\"q\\\"\\\\\\n\"} 2.5 1700000000\nbroken{x=\"1\nc{} +Inf\n");
  ASSERT_EQ(samples.size(), 3U);
  EXPECT_EQ(samples[0].name, "a");
  EXPECT_EQ(samples[1].labels.at("y"), "q\"\\\n");
  EXPECT_EQ(samples[1].value, 2.5);
  EXPECT_EQ(samples[2].name, "c");
}

TEST(ProxyTest, BypassedByTheEndOfTheName) {
  EXPECT_FALSE(cli::ProxyIsBypassed("", "127.0.0.1"));
  EXPECT_TRUE(cli::ProxyIsBypassed("localhost, 127.0.0.1", "127.0.0.1"));
  EXPECT_TRUE(cli::ProxyIsBypassed(".Example.com", "jobs.example.com"));
  EXPECT_FALSE(cli::ProxyIsBypassed("example.org", "jobs.example.com"));
}

}  // namespace
}  // namespace quern
