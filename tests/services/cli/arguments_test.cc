// What the command line itself refuses: exit status 2, and a message that names the option.

#include "tests/services/cli/cli_fixture.h"

namespace quern {
namespace {

using testing::HasSubstr;

class ArgumentsTest : public CliTest {};

TEST_F(ArgumentsTest, HelpAndVersion) {
  const Result help = Run({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  for (const char* command : {"up", "quantize", "jobs", "artifacts", "models", "complete", "chat",
                              "eval", "bench", "health", "doctor"}) {
    EXPECT_THAT(help.output, HasSubstr(command));
    const Result sub = Run({command, "--help"});
    EXPECT_EQ(sub.exit_code, 0) << command;
    EXPECT_THAT(sub.output, HasSubstr("Usage: quern")) << command;
  }
  const Result version = Run({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.output, testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST_F(ArgumentsTest, UsageErrors) {
  const struct {
    std::vector<std::string> arguments;
    std::string named;
  } cases[] = {
      {{}, "subcommand"},
      {{"grind"}, "grind"},
      {{"quantize"}, "checkpoint"},
      {{"quantize", "m", "--bits", "5"}, "--bits"},
      {{"quantize", "m", "--bits", "four"}, "--bits"},
      {{"quantize", "m", "--group-size", "63"}, "--group-size"},
      {{"quantize", "m", "--embedding-bits", "7"}, "--embedding-bits"},
      {{"quantize", "m", "--method", "magic"}, "--method"},
      {{"quantize", "m", "--preset", "slow"}, "--preset"},
      {{"quantize", "m", "--loss", "none"}, "--loss"},
      {{"quantize", "m", "--eval-chunks", "0"}, "--eval-chunks"},
      {{"quantize", "m", "--detach", "--wait"}, "--"},
      {{"quantize", "m", "--no-such-option"}, "--no-such-option"},
      {{"jobs"}, "subcommand"},
      {{"jobs", "get"}, "job"},
      {{"jobs", "list", "--limit", "0"}, "--limit"},
      {{"artifacts", "export", "a"}, "directory"},
      {{"models", "load"}, "model"},
      {{"models", "unload"}, "model"},
      {{"complete", "m"}, "prompt"},
      {{"chat"}, "model"},
      {{"complete", "m", "p", "--top-k", "x"}, "--top-k"},
      {{"eval"}, "models"},
      {{"eval", "m", "--text", "t", "--kv-cache", "int2"}, "--kv-cache"},
      {{"models", "load", "m", "a", "--kv-cache", "fp16"}, "--kv-cache"},
      {{"bench"}, "subcommand"},
      {{"bench", "model", "m", "--output-tokens", "1"}, "--output-tokens"},
      {{"health"}, "address"},
      {{"health", "127.0.0.1:1", "--timeout", "0"}, "--timeout"},
      {{"doctor", "--timeout", "x"}, "--timeout"},
      {{"up", "--device", "tpu"}, "--device"},
      {{"up", "--kv-cache-type", "fp16"}, "--kv-cache-type"},
      {{"up", "--model-root", "/no/such/directory"}, "--model-root"},
  };
  for (const auto& test : cases) {
    const Result result = Run(test.arguments);
    EXPECT_EQ(result.exit_code, 2) << test.named << ": " << result.error;
    EXPECT_THAT(result.error + result.output, HasSubstr(test.named));
  }
}

TEST_F(ArgumentsTest, ServiceThatIsNotThereIsOneLine) {
  const Result result = Run({"jobs", "list", "--jobs=127.0.0.1:1"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.error, HasSubstr("quern: UNAVAILABLE: "));
  EXPECT_THAT(result.error, HasSubstr("`quern up`"));
  EXPECT_EQ(std::count(result.error.begin(), result.error.end(), '\n'), 1) << result.error;
}

TEST_F(ArgumentsTest, ErrorsOfServicesAreOneLine) {
  services_.failure = grpc::Status(grpc::StatusCode::PERMISSION_DENIED, "not you");
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"quantize", "m"},
                                             {"jobs", "list"},
                                             {"jobs", "get", "x"},
                                             {"jobs", "cancel", "x"},
                                             {"jobs", "delete", "x"},
                                             {"jobs", "watch", "x"},
                                             {"artifacts", "list"},
                                             {"models", "list"},
                                             {"models", "unload", "m"},
                                             {"complete", "m", "p"},
                                             {"chat", "m", "hello"}}) {
    const Result result = RunConnected(arguments);
    EXPECT_EQ(result.exit_code, 1) << arguments[0];
    const bool unknown = arguments.back() == "x" && arguments[1] == "get";
    EXPECT_THAT(result.error, HasSubstr(unknown ? "quern: NOT_FOUND: quantizationJobs/x"
                                                : "quern: PERMISSION_DENIED: not you"));
  }
}

TEST_F(ArgumentsTest, AddressesComeFromTheStateDirectory) {
  services_.model.set_name("models/m");
  ASSERT_OK(CreateDirectories(directory_.Path("quern")));
  const std::string path = directory_.Path("quern/quern.json");
  OverwriteFile(path, Json{{"inference", services_.address()}}.dump());
  EXPECT_EQ(Run({"models", "list"}).exit_code, 0);
  OverwriteFile(path, "{\"inference\":7}");
  const Result wrong = Run({"models", "list"});
  EXPECT_EQ(wrong.exit_code, 1);
  EXPECT_THAT(wrong.error, HasSubstr("quern.json"));
}

}  // namespace
}  // namespace quern
