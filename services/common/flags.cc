#include "services/common/flags.h"

#include <absl/flags/flag.h>
#include <absl/flags/parse.h>
#include <absl/flags/usage.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "core/base/log.h"
#include "services/common/signals.h"

ABSL_FLAG(std::string, metrics_listen, "",
          "HOST:PORT for /metrics, /healthz and /readyz; port 0 means any free one");
ABSL_FLAG(std::string, ready_file, "",
          "file that is written once the service serves, with its addresses as JSON");
ABSL_FLAG(std::string, log_format, "text", "form of the log on standard error: text or json");
ABSL_FLAG(bool, allow_insecure_network, false,
          "permit addresses that other machines can reach, without encryption");

namespace quern {
namespace {

// The documented spelling is --metrics-listen; Abseil knows names with '_' only.
std::vector<std::string> WithUnderscores(int argc, char** argv) {
  std::vector<std::string> arguments(argv, argv + argc);
  for (size_t i = 1; i < arguments.size(); ++i) {
    std::string& argument = arguments[i];
    if (argument == "--") break;
    if (argument.rfind("--", 0) != 0) continue;
    const size_t end = std::min(argument.find('='), argument.size());
    for (size_t j = 2; j < end; ++j) {
      if (argument[j] == '-') argument[j] = '_';
    }
  }
  return arguments;
}

}  // namespace

CommonConfig InitService(absl::string_view program, absl::string_view usage,
                         absl::string_view default_metrics_listen, int argc, char** argv) {
  BlockShutdownSignals();
  SetLogProgram(program);
  absl::SetProgramUsageMessage(usage);
  std::vector<std::string> arguments = WithUnderscores(argc, argv);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  const std::vector<char*> rest =
      absl::ParseCommandLine(static_cast<int>(pointers.size()), pointers.data());
  if (rest.size() > 1) {
    std::cerr << program << ": unexpected argument '" << rest[1] << "'; see --help\n";
    std::exit(kExitConfig);
  }
  const std::string log_format = absl::GetFlag(FLAGS_log_format);
  if (log_format != "text" && log_format != "json") {
    std::cerr << program << ": --log-format: found '" << log_format << "', wanted text or json\n";
    std::exit(kExitConfig);
  }
  SetLogFormat(log_format == "json" ? LogFormat::kJson : LogFormat::kText);
  CommonConfig config;
  config.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  if (config.metrics_listen.empty()) config.metrics_listen = std::string(default_metrics_listen);
  config.ready_file = absl::GetFlag(FLAGS_ready_file);
  config.log_format = log_format;
  config.allow_insecure_network = absl::GetFlag(FLAGS_allow_insecure_network);
  return config;
}

}  // namespace quern
