#include "services/program/command_line.h"

#include <absl/flags/parse.h>
#include <absl/flags/usage.h>
#include <absl/flags/usage_config.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "core/base/log.h"

namespace quern {
namespace {

// The documented spelling is --metrics-listen; Abseil knows names with '_' only.
std::vector<std::string> WithUnderscores(int argc, char** argv) {
  std::vector<std::string> arguments(argv, argv + argc);
  for (size_t i = 1; i < arguments.size(); ++i) {
    std::string& argument = arguments[i];
    if (argument == "--") break;
    if (argument.rfind("--", 0) != 0) continue;
    const auto end = argument.begin() + std::min(argument.find('='), argument.size());
    std::replace(argument.begin() + 2, end, '-', '_');
  }
  return arguments;
}

}  // namespace

void ParseCommandLine(absl::string_view program, absl::string_view usage, int argc, char** argv) {
  SetLogProgram(program);
  absl::SetProgramUsageMessage(usage);
  absl::FlagsUsageConfig config;
  // Of all flags that are linked in, --help shows ours.
  config.contains_help_flags = [](absl::string_view file) {
    return absl::StrContains(file, "services/");
  };
  // Without the way from the build folder.
  config.normalize_filename = [](absl::string_view file) {
    const size_t begin = file.find("services/");
    return std::string(begin == absl::string_view::npos ? file : file.substr(begin));
  };
  config.version_string = [name = std::string(program)] {
    return absl::StrCat(name, " ", QUERN_VERSION, "\n");
  };
  absl::SetFlagsUsageConfig(config);

  std::vector<std::string> arguments = WithUnderscores(argc, argv);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  const std::vector<char*> rest =
      absl::ParseCommandLine(static_cast<int>(pointers.size()), pointers.data());
  if (rest.size() > 1) {
    std::cerr << program << ": unexpected argument '" << rest[1] << "'; see --help\n";
    std::exit(kExitConfig);
  }
}

}  // namespace quern
