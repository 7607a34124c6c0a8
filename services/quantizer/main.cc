// quern-quantizer: one task in, one artifact out, events on standard output. A child of
// quern-worker.

#include <absl/flags/flag.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "core/base/clock.h"
#include "core/base/large_pages.h"
#include "core/base/log.h"
#include "services/program/command_line.h"
#include "services/quantizer/cancellation.h"
#include "services/quantizer/config.h"
#include "services/quantizer/errors.h"
#include "services/quantizer/events.h"
#include "services/quantizer/run.h"

ABSL_FLAG(std::string, kind, "quantize", "what kind of task it is: quantize, tune or evaluate");
ABSL_FLAG(std::string, task, "",
          "file with the task, a QuantizeTask, TuneTask or EvaluateTask in proto3 JSON; required");
ABSL_FLAG(std::string, work_directory, "",
          "where unfinished work and the result are kept; required");
ABSL_FLAG(std::string, model_root, "",
          "directory that checkpoints lie below; required but to tune");
ABSL_FLAG(std::string, data_root, "",
          "directory that calibration and evaluation texts lie below; required");
ABSL_FLAG(std::string, artifact_root, "",
          "directory that artifacts lie below, each by its id; required but to quantize");
ABSL_FLAG(int, threads, 0, "threads, 0 to 1024; 0 means one for each core");
ABSL_FLAG(std::string, device, "auto", "where to train: auto, cpu or cuda");
ABSL_FLAG(
    int, activation_memory_mib, 0,
    "memory for the states of calibration sequences between blocks, in MiB; those that do not "
    "fit lie in files in the work directory; 0 means half of the device's memory");
ABSL_FLAG(bool, profile, false,
          "at the end, print on standard error where the time went and how near products came to "
          "the machine's rate");
ABSL_FLAG(std::string, log_format, "text", "form of the log on standard error: text or json");

namespace quern {
namespace {

QuantizerConfig ConfigFromFlags() {
  QuantizerConfig config;
  config.kind = absl::GetFlag(FLAGS_kind);
  config.task_path = absl::GetFlag(FLAGS_task);
  config.work_directory = absl::GetFlag(FLAGS_work_directory);
  config.model_root = absl::GetFlag(FLAGS_model_root);
  config.data_root = absl::GetFlag(FLAGS_data_root);
  config.artifact_root = absl::GetFlag(FLAGS_artifact_root);
  config.num_threads = absl::GetFlag(FLAGS_threads);
  config.device = absl::GetFlag(FLAGS_device);
  config.activation_memory_mib = absl::GetFlag(FLAGS_activation_memory_mib);
  config.profile = absl::GetFlag(FLAGS_profile);
  return config;
}

// Standard output for events alone: what a library prints there goes to standard error.
FileDescriptor TakeStandardOutput() {
  FileDescriptor events(dup(STDOUT_FILENO));
  CHECK(events.get() >= 0 && dup2(STDERR_FILENO, STDOUT_FILENO) >= 0);
  return events;
}

int Main(int argc, char** argv) {
  UseLargePages(argv);
  // All threads to come leave SIGTERM to the one that waits for it.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of its writer

  ParseCommandLine("quern-quantizer",
                   "Quantizes one checkpoint, or tunes or measures one artifact, as a task says. "
                   "Started by quern-worker.",
                   argc, argv);
  SetLogFormat(absl::GetFlag(FLAGS_log_format) == "json" ? LogFormat::kJson : LogFormat::kText);

  Cancellation cancellation;
  EventWriter events(TakeStandardOutput(), [&] { cancellation.Request(); });
  std::thread([&] {
    int signal = 0;
    sigwait(&signals, &signal);
    LOG(INFO) << "stopping signal=" << signal;
    cancellation.Request();
  }).detach();

  SystemClock clock;
  const absl::Status status = RunQuantizer(ConfigFromFlags(), events, cancellation, clock);
  if (!status.ok()) {
    LOG(ERROR) << "failed reason=" << ReasonOf(status) << " error=" << status.ToString();
    events.Error(status);
  }
  // Past the destructors of libraries and of what the detached thread refers to.
  _exit(status.ok() ? 0 : 1);
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) { return quern::Main(argc, argv); }
