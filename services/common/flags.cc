#include "services/common/flags.h"

#include <absl/flags/flag.h>

#include <cstdlib>
#include <iostream>

#include "core/base/log.h"
#include "services/common/signals.h"

ABSL_FLAG(std::string, metrics_listen, "",
          "HOST:PORT for /metrics, /healthz and /readyz; port 0 means any free one");
ABSL_FLAG(std::string, ready_file, "",
          "file that is written once the service serves, with its addresses as JSON; empty: none");
ABSL_FLAG(std::string, log_format, "text", "form of the log on standard error: text or json");
ABSL_FLAG(bool, allow_insecure_network, false,
          "permit addresses that other machines can reach, without encryption or credentials");
ABSL_FLAG(std::string, tls_cert, "",
          "PEM file with this service's certificate and those between it and its CA; read again "
          "when it changes; empty: no TLS");
ABSL_FLAG(std::string, tls_key, "", "PEM file with the private key of --tls-cert");
ABSL_FLAG(std::string, tls_client_ca, "",
          "PEM file of the CA that certificates of clients must come from; read again when it "
          "changes; empty: clients need none");
ABSL_FLAG(std::string, auth_tokens, "",
          "file with the hashes of the tokens that clients must show, as `quern token create` "
          "makes them; read again when it changes; empty: clients need none");

namespace quern {

CommonConfig InitService(absl::string_view program, absl::string_view usage,
                         absl::string_view default_metrics_listen, int argc, char** argv) {
  BlockShutdownSignals();
  // --help shows it as the current value.
  absl::SetFlag(&FLAGS_metrics_listen, std::string(default_metrics_listen));
  ParseCommandLine(program, usage, argc, argv);
  const std::string log_format = absl::GetFlag(FLAGS_log_format);
  if (log_format != "text" && log_format != "json") {
    std::cerr << program << ": --log-format: found '" << log_format << "', wanted text or json\n";
    std::exit(kExitConfig);
  }
  SetLogFormat(log_format == "json" ? LogFormat::kJson : LogFormat::kText);
  CommonConfig config;
  config.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  config.ready_file = absl::GetFlag(FLAGS_ready_file);
  config.log_format = log_format;
  config.security = {.tls_cert = absl::GetFlag(FLAGS_tls_cert),
                     .tls_key = absl::GetFlag(FLAGS_tls_key),
                     .tls_client_ca = absl::GetFlag(FLAGS_tls_client_ca),
                     .auth_tokens = absl::GetFlag(FLAGS_auth_tokens),
                     .allow_insecure_network = absl::GetFlag(FLAGS_allow_insecure_network)};
  return config;
}

}  // namespace quern
