#include "services/worker/quantizer_process.h"

#include <absl/base/thread_annotations.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <absl/time/clock.h>
#include <google/protobuf/util/json_util.h>
#include <signal.h>

#include <optional>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/base/error_reason.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "core/base/subprocess.h"
#include "services/artifact_cache/artifact_cache.h"
#include "services/worker/quantizer_events.h"

namespace quern {
namespace {

using quantization::v1::JobError;
using quantization::v1::Progress;

// Between attempts to fetch a base from a quern-jobs that cannot be reached.
constexpr absl::Duration kFetchPause = absl::Seconds(2);
// How long a SIGKILL that is due may wait for the reading thread.
constexpr absl::Duration kReadSlice = absl::Milliseconds(100);

JobError MakeError(absl::StatusCode code, absl::string_view reason, std::string message) {
  JobError error;
  error.set_code(static_cast<int>(code));
  error.set_reason(std::string(reason));
  error.set_message(std::move(message));
  return error;
}

class ProcessRun final : public QuantizerRun {
 public:
  ProcessRun(const QuantizerProcessOptions& options, const QuantizerJob& job,
             QuantizerObserver& observer)
      : options_(options), job_(job), observer_(observer) {
    // The child is bound to the thread that starts it, so this one lives as long as the run.
    thread_ = std::thread([this] { observer_.OnEnd(Run()); });
  }

  ~ProcessRun() override {
    Kill();
    thread_.join();
  }

  void Stop() override {
    MutexLock lock(&mutex_);
    if (stopping_) return;
    stopping_ = true;
    stop_.request_stop();
    changed_.SignalAll();
    kill_time_ = absl::Now() + options_.stop_grace;
    Signal(SIGTERM);
  }

  void Kill() override {
    MutexLock lock(&mutex_);
    stopping_ = true;
    stop_.request_stop();
    changed_.SignalAll();
    kill_time_ = absl::InfinitePast();
    Signal(SIGKILL);
  }

 private:
  // What one child said before it ended.
  struct Words {
    std::optional<QuantizerResult> result;
    std::optional<JobError> error;
    bool progressed = false;
  };

  QuantizerOutcome Run() {
    const absl::Status written = WriteTask();
    if (!written.ok()) {
      return {std::nullopt,
              MakeError(written.code(), reason::kInternal, std::string(written.message()))};
    }
    const absl::Status fetched = FetchBase();
    if (stopping()) return Stopped();
    if (!fetched.ok()) {
      const bool no_room = absl::IsResourceExhausted(fetched);
      return {std::nullopt,
              MakeError(fetched.code(), no_room ? reason::kOutOfDisk : reason::kBaseInvalid,
                        std::string(fetched.message()))};
    }
    int crashes = 0;
    while (true) {
      Words words;
      const absl::StatusOr<ExitStatus> exit = RunOnce(words);
      if (stopping()) {
        // A result that was complete before the signal came is a result.
        if (exit.ok() && exit->success() && words.result.has_value()) {
          return {std::move(words.result), {}};
        }
        return Stopped();
      }
      if (!exit.ok()) {
        return {std::nullopt, MakeError(absl::StatusCode::kInternal, reason::kQuantizerNotStarted,
                                        std::string(exit.status().message()))};
      }
      if (exit->success() && words.result.has_value()) return {std::move(words.result), {}};
      // CANCELLED without Stop: somebody else sent the signal, which is a crash to us.
      if (exit->exit_code == 1 && words.error.has_value() &&
          words.error->code() != static_cast<int>(absl::StatusCode::kCancelled)) {
        return {std::nullopt, *std::move(words.error)};
      }
      crashes = words.progressed ? 1 : crashes + 1;
      LOG(WARNING) << "quantizer crashed job=" << job_.id << " end=" << exit->ToString()
                   << " crashes_without_progress=" << crashes;
      if (crashes > options_.max_restarts) {
        return {std::nullopt, MakeError(absl::StatusCode::kInternal, reason::kQuantizerCrashed,
                                        absl::StrCat("the quantizer ended ", crashes,
                                                     " times without progress, the last time with ",
                                                     exit->ToString(), "; see the worker's log"))};
      }
      observer_.OnRestart();
    }
  }

  static QuantizerOutcome Stopped() {
    return {std::nullopt, MakeError(absl::StatusCode::kCancelled, reason::kCancelled, "stopped")};
  }

  // Of artifacts that the task starts from, each by its id.
  std::string base_directory() const { return job_.work_directory + "/base"; }

  // What the task starts from; empty for a checkpoint.
  absl::string_view base_name() const {
    return job_.task.has_tune() ? job_.task.tune().base() : job_.task.evaluate().artifact();
  }

  // Pulls the artifact that the task starts from, if it names one, and the base of that.
  absl::Status FetchBase() ABSL_LOCKS_EXCLUDED(mutex_) {
    if (base_name().empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::unique_ptr<ArtifactCache> cache,
                     ArtifactCache::Open(base_directory(), options_.jobs));
    ASSIGN_OR_RETURN(const std::string directory,
                     Fetch(*cache, absl::StripPrefix(base_name(), "artifacts/")));
    ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(directory));
    return manifest.base.empty() ? absl::OkStatus() : Fetch(*cache, manifest.base).status();
  }

  // A quern-jobs that cannot be reached is waited for: without it the lease runs out, and then this
  // is stopped.
  absl::StatusOr<std::string> Fetch(ArtifactCache& cache, absl::string_view id)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    ASSIGN_OR_RETURN(const Digest digest, Digest::Parse(id));
    while (true) {
      absl::StatusOr<std::string> directory = cache.Fetch(digest, stop_.get_token());
      if (!absl::IsUnavailable(directory.status())) return directory;
      LOG(WARNING) << "artifact not fetched yet job=" << job_.id << ": "
                   << directory.status().message();
      MutexLock lock(&mutex_);
      const absl::Time until = absl::Now() + kFetchPause;
      while (!stopping_ && absl::Now() < until) {
        changed_.WaitWithTimeout(&mutex_, until - absl::Now());
      }
      if (stopping_) return absl::CancelledError("stopped");
    }
  }

  const google::protobuf::Message& task_message() const {
    if (job_.task.has_tune()) return job_.task.tune();
    if (job_.task.has_evaluate()) return job_.task.evaluate();
    return job_.task.quantize();
  }

  std::string task_path() const { return job_.work_directory + "/task.json"; }

  absl::Status WriteTask() const {
    std::string json;
    const auto status = google::protobuf::util::MessageToJsonString(task_message(), &json);
    if (!status.ok()) return absl::InternalError(std::string(status.message()));
    return WriteFileDurably(task_path(), json);
  }

  absl::StatusOr<ExitStatus> RunOnce(Words& words) ABSL_LOCKS_EXCLUDED(mutex_) {
    Subprocess::Options options;
    options.argv = {options_.program,    "--task",       task_path(),         "--work-directory",
                    job_.work_directory, "--model-root", options_.model_root, "--data-root",
                    options_.data_root,  "--device",     options_.device,     "--log-format",
                    options_.log_format};
    if (!base_name().empty()) {
      options.argv.insert(options.argv.end(), {"--kind", job_.task.has_tune() ? "tune" : "evaluate",
                                               "--artifact-root", base_directory() + "/artifacts"});
    }
    if (options_.threads > 0) {
      options.argv.insert(options.argv.end(), {"--threads", absl::StrCat(options_.threads)});
    }
    if (options_.activation_memory_mib > 0) {
      options.argv.insert(options.argv.end(), {"--activation-memory-mib",
                                               absl::StrCat(options_.activation_memory_mib)});
    }
    options.capture_output = true;
    // Ctrl-C in the terminal is for this process, which drains and stops the child itself.
    options.own_process_group = true;
    std::unique_ptr<Subprocess> child;
    {
      MutexLock lock(&mutex_);
      if (stopping_) return absl::CancelledError("stopped");
      ASSIGN_OR_RETURN(child, Subprocess::Start(options));
      child_ = child.get();
    }
    LOG(INFO) << "quantizer started job=" << job_.id << " pid=" << child->pid();
    const absl::StatusOr<ExitStatus> exit = Follow(*child, words);
    MutexLock lock(&mutex_);
    child_ = nullptr;
    return exit;
  }

  // Reads what the child says until it has ended.
  absl::StatusOr<ExitStatus> Follow(Subprocess& child, Words& words) ABSL_LOCKS_EXCLUDED(mutex_) {
    bool more = true;
    while (more) {
      KillWhenDue();
      absl::StatusOr<std::optional<std::string>> line = child.ReadLine(absl::Now() + kReadSlice);
      if (line.ok() && line->has_value()) {
        Take(**line, words);
      } else if (line.ok()) {
        more = false;
      } else if (absl::IsDeadlineExceeded(line.status())) {
        // A grandchild may hold the pipe open after the child has ended.
        more = absl::IsDeadlineExceeded(child.Wait(absl::InfinitePast()).status());
      } else {
        LOG(WARNING) << "quantizer output lost job=" << job_.id << ": " << line.status().message();
        MutexLock lock(&mutex_);
        Signal(SIGKILL);
        more = false;
      }
    }
    while (true) {
      KillWhenDue();
      absl::StatusOr<ExitStatus> exit = child.Wait(absl::Now() + kReadSlice);
      if (!absl::IsDeadlineExceeded(exit.status())) return exit;
    }
  }

  void Take(const std::string& line, Words& words) {
    absl::StatusOr<QuantizerEvent> event = ParseQuantizerEvent(line);
    if (!event.ok()) {
      LOG(WARNING) << "quantizer output not understood job=" << job_.id << ": "
                   << event.status().message();
      return;
    }
    if (auto* device = std::get_if<worker::v1::WorkerCapabilities>(&*event)) {
      observer_.OnDevice(*device);
    } else if (auto* progress = std::get_if<Progress>(&*event)) {
      // Stages before BLOCK_AP are done again by each run and prove nothing.
      const std::pair<int, int64_t> mark(progress->stage(), progress->completed_count());
      if (progress->stage() >= Progress::BLOCK_AP && mark > best_mark_) {
        best_mark_ = mark;
        words.progressed = true;
      }
      observer_.OnProgress(*progress);
    } else if (auto* log = std::get_if<QuantizerLog>(&*event)) {
      observer_.OnLog(log->message);
    } else if (auto* result = std::get_if<QuantizerResult>(&*event)) {
      words.result = std::move(*result);
    } else if (auto* error = std::get_if<JobError>(&*event)) {
      words.error = std::move(*error);
    }
  }

  void KillWhenDue() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    if (!stopping_ || absl::Now() < kill_time_) return;
    Signal(SIGKILL);
    // Once is enough.
    kill_time_ = absl::InfiniteFuture();
  }

  void Signal(int signal) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (child_ == nullptr) return;
    const absl::Status status = child_->Signal(signal);
    if (!status.ok() && !absl::IsNotFound(status)) {
      LOG(WARNING) << "quantizer not signalled job=" << job_.id << ": " << status.message();
    }
  }

  bool stopping() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    return stopping_;
  }

  const QuantizerProcessOptions options_;
  const QuantizerJob job_;
  QuantizerObserver& observer_;
  // Stage and unit of the furthest progress; used by the run's thread.
  std::pair<int, int64_t> best_mark_ = {0, 0};
  Mutex mutex_;
  Subprocess* child_ ABSL_GUARDED_BY(mutex_) = nullptr;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::stop_source stop_;
  absl::Time kill_time_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  std::thread thread_;
};

}  // namespace

std::unique_ptr<QuantizerRun> QuantizerProcessRunner::Start(const QuantizerJob& job,
                                                            QuantizerObserver& observer) {
  return std::make_unique<ProcessRun>(options_, job, observer);
}

}  // namespace quern
