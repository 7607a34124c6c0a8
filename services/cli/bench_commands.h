#ifndef QUERN_SERVICES_CLI_BENCH_COMMANDS_H_
#define QUERN_SERVICES_CLI_BENCH_COMMANDS_H_

// The subcommands of `quern bench`.

#include "services/cli/commands.h"

namespace quern::cli {

void AddBenchMachine(CLI::App& bench, Command& command);
void AddBenchKernels(CLI::App& bench, Command& command);
void AddBenchModel(CLI::App& bench, Command& command);
void AddBenchServe(CLI::App& bench, Command& command);
void AddBenchSpeculation(CLI::App& bench, Command& command);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_BENCH_COMMANDS_H_
