// quern: the command line of Quern.

#include <absl/status/status.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <initializer_list>
#include <iostream>
#include <string>

#include "core/base/log.h"
#include "services/cli/commands.h"
#include "services/cli/context.h"

namespace {

constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;

// The first of the variables that is set and not empty.
std::string FirstOf(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return value;
  }
  return "";
}

quern::cli::Environment ReadEnvironment() {
  return {.state_home = FirstOf({"XDG_STATE_HOME"}),
          .home = FirstOf({"HOME"}),
          .no_color = FirstOf({"NO_COLOR"}),
          .proxy = FirstOf({"grpc_proxy", "https_proxy", "http_proxy"}),
          .proxy_except = FirstOf({"no_grpc_proxy", "no_proxy"})};
}

}  // namespace

int main(int argc, char** argv) {
  using namespace quern::cli;  // NOLINT: the one file that is all about it
  quern::SetLogProgram("quern");

  CLI::App app("Quantizes language models to 2, 3 and 4 bits and serves them.", "quern");
  app.set_version_flag("--version", QUERN_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  GlobalOptions options;
  app.add_option("--jobs", options.jobs,
                 "HOST:PORT of quern-jobs (default: as `quern up` recorded it, or 127.0.0.1:7400)");
  app.add_option("--inference", options.inference,
                 "HOST:PORT of quern-inference (default: as recorded, or 127.0.0.1:7420)");
  app.add_option(
      "--data-directory", options.data_directory,
      "where `quern up` keeps its data and records its addresses (default: quern/ in the "
      "user's state directory)");
  app.add_option(
      "--tls-ca", options.security.tls_ca,
      "PEM file of the CA that certificates of services must come from (default: no TLS)");
  app.add_option("--tls-cert", options.security.tls_cert,
                 "PEM file with the certificate shown to services (default: none)");
  app.add_option("--tls-key", options.security.tls_key, "PEM file with the key of --tls-cert");
  app.add_option("--token-file", options.security.token_file,
                 "file with the token shown to services (default: none)");
  app.add_flag("--json", options.json, "print results as JSON");

  Command command;
  AddUp(app, command);
  AddQuantize(app, command);
  AddTune(app, command);
  AddJobs(app, command);
  AddArtifacts(app, command);
  AddModels(app, command);
  AddComplete(app, command);
  AddChat(app, command);
  AddEval(app, command);
  AddBench(app, command);
  AddHealth(app, command);
  AddDoctor(app, command);
  AddToken(app, command);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // CLI11 says that a subcommand is missing where the one given is unknown.
    const auto left = app.remaining(/*recurse=*/true);
    if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr && !left.empty()) {
      std::cerr << "quern: \"" << left.front() << "\" is not known here\n";
    }
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }

  Context context(options, ReadEnvironment());
  Interrupt interrupt;
  const absl::Status status = command(context, interrupt);
  // Without a message the command has said it all.
  if (!status.message().empty()) {
    std::cerr << "quern: " << absl::StatusCodeToString(status.code()) << ": "
              << std::string(status.message()) << std::endl;
  }
  // The thread that waits for signals never ends; no destructor has anything left to do.
  std::cout.flush();
  _exit(status.ok() ? 0 : kExitFailure);
}
