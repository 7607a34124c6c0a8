// `quern doctor`: is this machine, and what runs on it, as it should be?

#include "services/cli/doctor.h"

#include <absl/strings/str_cat.h>

#include <iostream>
#include <memory>

#include "core/base/status_macros.h"
#include "services/cli/commands.h"

namespace quern::cli {
namespace {

absl::Status RunDoctor(const DoctorOptions& options, const Context& context) {
  Findings findings;
  std::string model_root = options.model_root;
  if (model_root.empty()) model_root = context.Recorded("model_root").value_or("");
  const ClockWatch clock;

  // First what the machine must be able to do, then the machine; shown the other way round.
  Findings checkpoints;
  checkpoints.StartSection("checkpoints");
  const Needs needs = CheckCheckpoints(model_root, checkpoints);
  findings.StartSection("machine");
  CheckMachine(needs, context.data_directory(), findings);
  findings.StartSection("directories");
  CheckDirectories(context.data_directory(), model_root, findings);
  findings.Append(checkpoints);
  findings.StartSection("programs");
  ASSIGN_OR_RETURN(const std::string directory, ProgramDirectory());
  CheckPrograms(directory, options.quantizer, findings);
  findings.StartSection("services");
  CheckDeployment(options, context, findings);
  clock.Check(findings);

  if (context.json()) {
    // Names of files need not be UTF-8.
    std::cout << findings.ToJson().dump(2, ' ', false, Json::error_handler_t::replace) << std::endl;
  } else {
    std::cout << findings.ToText(TerminalColumns(), context.colors()) << std::flush;
  }
  // The summary has said it.
  return findings.Count(Finding::Level::kProblem) == 0 ? absl::OkStatus()
                                                       : absl::FailedPreconditionError("");
}

}  // namespace

void AddDoctor(CLI::App& app, Command& command) {
  auto options = std::make_shared<DoctorOptions>();
  auto timeout_seconds = std::make_shared<double>(absl::ToDoubleSeconds(options->timeout));
  CLI::App* sub = app.add_subcommand(
      "doctor", "Check this machine and what runs on it, and say what to do; 0 without problems");
  sub->add_option("--model-root", options->model_root,
                  "checkpoints are below it (default: as `quern up` has it)");
  sub->add_option("--quantizer", options->quantizer,
                  "path of quern-quantizer (default: beside this program)");
  sub->add_option("--jobs-metrics", options->jobs_metrics,
                  "HOST:PORT of quern-jobs' metrics (default: as recorded, or 127.0.0.1:7401)");
  sub->add_option("--worker-metrics", options->worker_metrics,
                  "HOST:PORT of quern-worker's metrics (default: as recorded, or 127.0.0.1:7411)");
  sub->add_option(
      "--inference-metrics", options->inference_metrics,
      "HOST:PORT of quern-inference's metrics (default: as recorded, or 127.0.0.1:7421)");
  sub->add_option("--prometheus", options->prometheus,
                  "http://HOST:PORT of the Prometheus server that should scrape the services");
  sub->add_option("--timeout", *timeout_seconds, "seconds to wait for each answer")
      ->check(CLI::Range(0.001, 3600.0))
      ->capture_default_str();
  sub->callback([options, timeout_seconds, &command] {
    options->timeout = absl::Seconds(*timeout_seconds);
    command = [options](Context& context, Interrupt&) { return RunDoctor(*options, context); };
  });
}

}  // namespace quern::cli
