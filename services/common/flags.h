#ifndef QUERN_SERVICES_COMMON_FLAGS_H_
#define QUERN_SERVICES_COMMON_FLAGS_H_

// The flags that every service has, and the first lines of every main.

#include <absl/strings/string_view.h>

#include <string>

#include "services/common/security_config.h"
#include "services/program/command_line.h"

namespace quern {

struct CommonConfig {
  std::string metrics_listen;
  std::string ready_file;           // empty: none
  std::string log_format = "text";  // or json
  SecurityConfig security;
};

// Blocks the shutdown signals, parses the command line (and may exit, see ParseCommandLine), sets
// the form of the log, and returns the common flags. `default_metrics_listen`
// is the default of --metrics-listen.
CommonConfig InitService(absl::string_view program, absl::string_view usage,
                         absl::string_view default_metrics_listen, int argc, char** argv);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_FLAGS_H_
