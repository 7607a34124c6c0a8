#ifndef QUERN_SERVICES_CLI_CONTEXT_H_
#define QUERN_SERVICES_CLI_CONTEXT_H_

// What every subcommand shares: where the services are, how to print, and what Ctrl-C means.

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <google/protobuf/message.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <string>

#include "core/base/file.h"
#include "core/base/mutex.h"
#include "services/common/channel.h"

namespace quern::cli {

// Where the services listen unless their flags say otherwise; `quern up --fixed-ports` too.
inline constexpr absl::string_view kJobsAddress = "127.0.0.1:7400";
inline constexpr absl::string_view kJobsMetricsAddress = "127.0.0.1:7401";
inline constexpr absl::string_view kWorkerMetricsAddress = "127.0.0.1:7411";
inline constexpr absl::string_view kInferenceAddress = "127.0.0.1:7420";
inline constexpr absl::string_view kInferenceMetricsAddress = "127.0.0.1:7421";
inline constexpr absl::string_view kInferenceHttpAddress = "127.0.0.1:7422";

// Options of the program itself, before the subcommand.
struct GlobalOptions {
  std::string jobs;            // HOST:PORT of quern-jobs; empty: from quern.json, or the default
  std::string inference;       // HOST:PORT of quern-inference; likewise
  std::string data_directory;  // of `quern up`; empty: the user's state directory
  ChannelSecurity security;    // how to show them who asks
  bool json = false;           // results as JSON on standard output
};

// What the environment says; read in main.
struct Environment {
  std::string state_home;    // $XDG_STATE_HOME
  std::string home;          // $HOME
  std::string no_color;      // $NO_COLOR: anything but empty turns colours off
  std::string proxy;         // the first of $grpc_proxy, $https_proxy, $http_proxy
  std::string proxy_except;  // the first of $no_grpc_proxy, $no_proxy
};

class Context {
 public:
  Context(const GlobalOptions& options, const Environment& environment);

  const GlobalOptions& options() const { return options_; }
  const Environment& environment() const { return environment_; }

  bool json() const { return options_.json; }
  // Whether standard output is a terminal: bars, updating lines.
  bool terminal() const { return terminal_; }
  // Whether to colour standard output.
  bool colors() const { return terminal_ && environment_.no_color.empty(); }
  // Where `quern up` keeps its data: --data-directory, or quern/ in the user's state directory.
  const std::string& data_directory() const { return data_directory_; }
  // The file in it that tells the other subcommands where the services are.
  std::string addresses_path() const;

  // `path` as the services know it: one that is there and below the root that `quern up` gave them
  // (`root_key`: "model_root" or "data_root") is made relative to it; any other stays as it is,
  // for services elsewhere.
  absl::StatusOr<std::string> BelowRoot(absl::string_view path, absl::string_view root_key) const;

  // A member of the file at addresses_path(); NOT_FOUND without that file.
  absl::StatusOr<std::string> Recorded(absl::string_view key) const;
  // `flag` unless it is empty, else what is recorded under `key`, else `fallback`.
  absl::StatusOr<std::string> Address(absl::string_view flag, absl::string_view key,
                                      absl::string_view fallback) const;

  // Channels to the services; nothing is sent yet.
  absl::StatusOr<std::shared_ptr<grpc::Channel>> Jobs() const;
  absl::StatusOr<std::shared_ptr<grpc::Channel>> Inference() const;

 private:
  const GlobalOptions options_;
  const Environment environment_;
  const bool terminal_;
  std::string data_directory_;
};

// Width of the terminal behind standard output; 0 when there is none.
int TerminalColumns();

// Turns the first Ctrl-C (or SIGTERM) into a cancelled call; a second one ends the program. Until
// Watch the signals end the program as usual. One per process. Thread-safe.
class Interrupt {
 public:
  Interrupt() = default;
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  // Waits in a thread of its own from now on. Call before any other thread exists, so that none of
  // them takes the signal.
  void Watch();
  // The same for a program that waits for its user between calls: there the signal ends it.
  void WatchCallsOnly() ABSL_LOCKS_EXCLUDED(mutex_);
  // For a program that talks with its user: each Ctrl-C cancels the call under way and no other;
  // without one it makes wake_fd readable. So does SIGTERM, which the program then ends for. Errors
  // of the operating system.
  absl::Status WatchRepeatedly() ABSL_LOCKS_EXCLUDED(mutex_);
  // An eventfd, -1 without WatchRepeatedly.
  int wake_fd() const { return wake_fd_.get(); }
  bool terminated() const ABSL_LOCKS_EXCLUDED(mutex_);

  // `context` is cancelled when the signal comes (or has come) until Release.
  void Attach(grpc::ClientContext* context) ABSL_LOCKS_EXCLUDED(mutex_);
  void Release() ABSL_LOCKS_EXCLUDED(mutex_);
  bool interrupted() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Trigger() ABSL_LOCKS_EXCLUDED(mutex_);
  void TriggerRepeatedly(bool terminate) ABSL_LOCKS_EXCLUDED(mutex_);

  FileDescriptor wake_fd_;
  mutable Mutex mutex_;
  bool terminated_ ABSL_GUARDED_BY(mutex_) = false;
  bool calls_only_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool interrupted_ ABSL_GUARDED_BY(mutex_) = false;
};

// The directory of this program, where the other programs are too.
absl::StatusOr<std::string> ProgramDirectory();

// A channel to any address; nothing is sent yet. `flag` names the address in messages.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(absl::string_view flag,
                                                       const std::string& address,
                                                       const ChannelSecurity& security);

// What a call answered. A service that is not there is said in the user's words.
absl::Status CallStatus(const grpc::Status& status);

// Prints a message as proto3 JSON on one line.
absl::Status PrintJson(const google::protobuf::Message& message);

// "artifacts/<id>" from a full id, a name, or the start of an id that only one artifact has.
absl::StatusOr<std::string> ResolveArtifact(grpc::Channel& channel, absl::string_view text);

// "prefix/<id>" from an id or a name.
std::string ResourceName(absl::string_view collection, absl::string_view text);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_CONTEXT_H_
