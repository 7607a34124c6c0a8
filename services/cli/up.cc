// `quern up`: the three services of one machine as children.

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "core/base/subprocess.h"
#include "services/cli/commands.h"

namespace quern::cli {
namespace {

// Longer than a service's own grace for what runs.
constexpr absl::Duration kStopGrace = absl::Seconds(40);
constexpr absl::Duration kStartLimit = absl::Minutes(1);
constexpr size_t kMaxReadyFileBytes = 64 << 10;

struct UpOptions {
  std::string model_root = ".";
  std::string data_root;
  int threads = 0;
  std::string device = "auto";
  int kv_cache_mib = 512;
  std::string kv_cache_type = "float16";
  bool fixed_ports = false;
};

struct Child {
  std::string name;
  std::unique_ptr<Subprocess> process;
  std::string grpc_address;
  std::string http_address;
  std::string metrics_address;
};

class Up {
 public:
  Up(const UpOptions& options, Context& context, Interrupt& interrupt)
      : options_(options), context_(context), interrupt_(interrupt) {}

  absl::Status Run() {
    RETURN_IF_ERROR(Prepare());
    absl::Status status = StartAll();
    if (status.ok()) {
      Announce();
      status = WaitForEnd();
    }
    const absl::Status stopped = Stop();
    std::error_code ignored;  // A stale file names ports that answer no more; that is reported.
    std::filesystem::remove(context_.addresses_path(), ignored);
    return status.ok() ? stopped : status;
  }

 private:
  absl::Status Prepare() {
    const std::string& directory = context_.data_directory();
    RETURN_IF_ERROR(CreateDirectories(directory));
    std::error_code error;
    directory_ = std::filesystem::canonical(directory, error);
    if (error) return absl::ErrnoToStatus(error.value(), directory);
    if (options_.data_root.empty()) options_.data_root = absl::StrCat(directory_, "/data");
    RETURN_IF_ERROR(CreateDirectories(options_.data_root));
    for (std::string* root : {&options_.model_root, &options_.data_root}) {
      const std::string given = *root;
      *root = std::filesystem::canonical(given, error);
      if (error) return absl::ErrnoToStatus(error.value(), given);
    }
    ASSIGN_OR_RETURN(program_directory_, ProgramDirectory());
    return LockDirectory();
  }

  // Two of these on one directory would fight over its database and its cache.
  absl::Status LockDirectory() {
    const std::string path = absl::StrCat(directory_, "/up.lock");
    lock_ = FileDescriptor(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (lock_.get() < 0) return absl::ErrnoToStatus(errno, path);
    if (flock(lock_.get(), LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();
    if (errno != EWOULDBLOCK) return absl::ErrnoToStatus(errno, path);
    return absl::FailedPreconditionError(
        absl::StrCat(directory_, ": another `quern up` runs on this directory"));
  }

  std::string Listen(absl::string_view fixed) const {
    return options_.fixed_ports ? std::string(fixed) : "127.0.0.1:0";
  }

  absl::Status StartAll() {
    const std::string model_root = absl::StrCat("--model-root=", options_.model_root);
    const std::string data_root = absl::StrCat("--data-root=", options_.data_root);
    // 0: each service takes the CPUs that it may use.
    const std::string threads = absl::StrCat("--threads=", options_.threads);
    RETURN_IF_ERROR(Start("quern-jobs", kJobsMetricsAddress,
                          {absl::StrCat("--listen=", Listen(kJobsAddress)), model_root, data_root,
                           absl::StrCat("--data-directory=", directory_, "/jobs")}));
    const std::string jobs = absl::StrCat("--jobs=", children_[0].grpc_address);
    RETURN_IF_ERROR(
        Start("quern-worker", kWorkerMetricsAddress,
              {jobs, model_root, data_root, threads, absl::StrCat("--device=", options_.device),
               absl::StrCat("--work-directory=", directory_, "/work")}));
    RETURN_IF_ERROR(
        Start("quern-inference", kInferenceMetricsAddress,
              {jobs, absl::StrCat("--listen=", Listen(kInferenceAddress)),
               absl::StrCat("--http-listen=", Listen(kInferenceHttpAddress)), model_root, threads,
               absl::StrCat("--kv-cache-mib=", options_.kv_cache_mib),
               absl::StrCat("--kv-cache-type=", options_.kv_cache_type),
               absl::StrCat("--cache-directory=", directory_, "/cache")}));
    const Json addresses = {{"jobs", children_[0].grpc_address},
                            {"jobs_metrics", children_[0].metrics_address},
                            {"worker_metrics", children_[1].metrics_address},
                            {"inference", children_[2].grpc_address},
                            {"inference_http", children_[2].http_address},
                            {"inference_metrics", children_[2].metrics_address},
                            {"model_root", options_.model_root},
                            {"data_root", options_.data_root},
                            {"pid", getpid()}};
    // Readable by this user only, as every file that is written durably.
    return WriteFileDurably(absl::StrCat(directory_, "/quern.json"), addresses.dump());
  }

  // Starts one service and waits until it says that it serves, or ends.
  absl::Status Start(const std::string& name, absl::string_view metrics_address,
                     std::vector<std::string> flags) {
    const std::string ready_file = absl::StrCat(directory_, "/", name, ".ready.json");
    std::error_code ignored;
    std::filesystem::remove(ready_file, ignored);
    flags.insert(flags.begin(), absl::StrCat(program_directory_, "/", name));
    flags.push_back(absl::StrCat("--ready-file=", ready_file));
    flags.push_back(absl::StrCat("--metrics-listen=", Listen(metrics_address)));
    Child child{.name = name,
                .process = nullptr,
                .grpc_address = "",
                .http_address = "",
                .metrics_address = ""};
    ASSIGN_OR_RETURN(
        child.process,
        Subprocess::Start({.argv = flags, .environment = {}, .own_process_group = true}));
    children_.push_back(std::move(child));
    const absl::Time limit = absl::Now() + kStartLimit;
    while (access(ready_file.c_str(), F_OK) != 0) {
      if (interrupt_.interrupted()) return absl::CancelledError("stopped while starting");
      if (absl::Now() > limit) {
        return absl::DeadlineExceededError(
            absl::StrCat(name, ": not ready within ", absl::FormatDuration(kStartLimit)));
      }
      // Waiting for its end is the pause between two looks at the file.
      const auto ended = children_.back().process->Wait(absl::Now() + absl::Milliseconds(20));
      if (ended.ok()) {
        return absl::UnavailableError(
            absl::StrCat(name, ": ended while starting with ", ended->ToString()));
      }
    }
    ASSIGN_OR_RETURN(const std::string text, ReadFile(ready_file, kMaxReadyFileBytes));
    ASSIGN_OR_RETURN(const Json json, ParseJson(text, ready_file));
    ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, ready_file));
    ASSIGN_OR_RETURN(children_.back().grpc_address, object.String("grpc_address"));
    ASSIGN_OR_RETURN(children_.back().http_address, object.String("http_address"));
    ASSIGN_OR_RETURN(children_.back().metrics_address, object.String("metrics_address"));
    return absl::OkStatus();
  }

  void Announce() const {
    if (context_.json()) {
      Json line = {{"event", "ready"}};
      for (const Child& child : children_) {
        line[child.name] = {{"grpc", child.grpc_address},
                            {"http", child.http_address},
                            {"metrics", child.metrics_address}};
      }
      std::cout << line.dump() << std::endl;
      return;
    }
    std::cout << "quern is up; Ctrl-C stops it\n"
              << "  jobs       " << children_[0].grpc_address << "\n"
              << "  inference  " << children_[2].grpc_address << ", OpenAI's API at http://"
              << children_[2].http_address << "/v1\n"
              << "  metrics    http://" << children_[0].metrics_address << "/metrics  http://"
              << children_[1].metrics_address << "/metrics  http://" << children_[2].metrics_address
              << "/metrics\n"
              << "  models     " << options_.model_root << "\n"
              << "  texts      " << options_.data_root << "\n"
              << "  data       " << directory_ << std::endl;
  }

  // Until Ctrl-C (OK) or until a service ends by itself.
  absl::Status WaitForEnd() {
    while (!interrupt_.interrupted()) {
      for (Child& child : children_) {
        const auto ended = child.process->Wait(absl::Now() + absl::Milliseconds(50));
        if (ended.ok()) {
          return absl::UnavailableError(
              absl::StrCat(child.name, ": ended by itself with ", ended->ToString()));
        }
      }
    }
    return absl::OkStatus();
  }

  // Lets every child drain; those that do not end in time are killed when `children_` goes.
  absl::Status Stop() {
    absl::Status status;
    for (auto child = children_.rbegin(); child != children_.rend(); ++child) {
      // Fails only for a child that has ended, which Wait reports.
      child->process->Signal(SIGTERM).IgnoreError();
    }
    const absl::Time limit = absl::Now() + kStopGrace;
    for (Child& child : children_) {
      const auto ended = child.process->Wait(limit);
      if (ended.ok() && ended->success()) continue;
      status.Update(absl::UnavailableError(
          absl::StrCat(child.name, ": ",
                       ended.ok() ? absl::StrCat("ended with ", ended->ToString())
                                  : "did not stop in time and is killed")));
    }
    return status;
  }

  std::string directory_;
  std::string program_directory_;
  FileDescriptor lock_;
  UpOptions options_;
  Context& context_;
  Interrupt& interrupt_;
  std::vector<Child> children_;
};

}  // namespace

void AddUp(CLI::App& app, Command& command) {
  auto options = std::make_shared<UpOptions>();
  CLI::App* up = app.add_subcommand("up", "Run jobs, worker and inference on this machine");
  up->add_option("--model-root", options->model_root, "checkpoints are below it")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  up->add_option("--data-root", options->data_root,
                 "calibration and evaluation texts are below it (default: data/ in the data "
                 "directory)");
  up->add_option("--threads", options->threads,
                 "threads of the worker and of the engine (0: all cores)")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  up->add_option("--device", options->device, "of the worker")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  up->add_option("--kv-cache-mib", options->kv_cache_mib, "memory for the KV pages of each model")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  up->add_option("--kv-cache-type", options->kv_cache_type,
                 "what keys and values of models that name no type are kept as")
      ->check(CLI::IsMember({"float16", "int8", "int4"}))
      ->capture_default_str();
  up->add_flag(
      "--fixed-ports", options->fixed_ports,
      "7400, 7401 (jobs), 7411 (worker), 7420, 7421, 7422 (inference) instead of any free ones");
  up->callback([options, &command] {
    command = [options](Context& context, Interrupt& interrupt) {
      // Children die with the thread that starts them: this one, which stays until the end.
      Up run(*options, context, interrupt);
      interrupt.Watch();
      return run.Run();
    };
  });
}

}  // namespace quern::cli
