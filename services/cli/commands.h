#ifndef QUERN_SERVICES_CLI_COMMANDS_H_
#define QUERN_SERVICES_CLI_COMMANDS_H_

// The subcommands. Each Add function declares its subcommands and options on `app`; parsing the
// command line then leaves in `command` what to run.

#include <absl/status/status.h>

#include <CLI/CLI.hpp>
#include <functional>

#include "services/cli/context.h"

namespace quern::cli {

// What it returns is printed as an error, unless it has no message: then it has said all itself.
using Command = std::function<absl::Status(Context& context, Interrupt& interrupt)>;

void AddUp(CLI::App& app, Command& command);
void AddQuantize(CLI::App& app, Command& command);
// Below `jobs`.
void AddJobsEvaluate(CLI::App& jobs, Command& command);
void AddTune(CLI::App& app, Command& command);
void AddJobs(CLI::App& app, Command& command);
void AddArtifacts(CLI::App& app, Command& command);
void AddModels(CLI::App& app, Command& command);
void AddComplete(CLI::App& app, Command& command);
void AddChat(CLI::App& app, Command& command);
void AddEval(CLI::App& app, Command& command);
void AddBench(CLI::App& app, Command& command);
void AddHealth(CLI::App& app, Command& command);
void AddDoctor(CLI::App& app, Command& command);
void AddToken(CLI::App& app, Command& command);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_COMMANDS_H_
