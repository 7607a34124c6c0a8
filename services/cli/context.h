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

#include "core/base/mutex.h"

namespace quern::cli {

// Options of the program itself, before the subcommand.
struct GlobalOptions {
  std::string jobs;            // HOST:PORT of quern-jobs; empty: from quern.json, or the default
  std::string inference;       // HOST:PORT of quern-inference; likewise
  std::string data_directory;  // of `quern up`; empty: the user's state directory
  bool json = false;           // results as JSON on standard output
};

class Context {
 public:
  // `environment_state_home` and `environment_home`: $XDG_STATE_HOME and $HOME, or empty.
  Context(const GlobalOptions& options, absl::string_view environment_state_home,
          absl::string_view environment_home);

  bool json() const { return options_.json; }
  // Whether standard output is a terminal: bars, updating lines.
  bool terminal() const { return terminal_; }
  // Where `quern up` keeps its data: --data-directory, or quern/ in the user's state directory.
  const std::string& data_directory() const { return data_directory_; }
  // The file in it that tells the other subcommands where the services are.
  std::string addresses_path() const;

  // `path` as the services know it: one that is there and below the root that `quern up` gave them
  // (`root_key`: "model_root" or "data_root") is made relative to it; any other stays as it is,
  // for services elsewhere.
  absl::StatusOr<std::string> BelowRoot(absl::string_view path, absl::string_view root_key) const;

  // Channels to the services; nothing is sent yet.
  absl::StatusOr<std::shared_ptr<grpc::Channel>> Jobs() const;
  absl::StatusOr<std::shared_ptr<grpc::Channel>> Inference() const;

 private:
  absl::StatusOr<std::string> Address(absl::string_view flag, absl::string_view key,
                                      absl::string_view fallback) const;
  // A member of quern.json; NOT_FOUND without that file.
  absl::StatusOr<std::string> Recorded(absl::string_view key) const;
  const GlobalOptions options_;
  const bool terminal_;
  std::string data_directory_;
};

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

  // `context` is cancelled when the signal comes (or has come) until Release.
  void Attach(grpc::ClientContext* context) ABSL_LOCKS_EXCLUDED(mutex_);
  void Release() ABSL_LOCKS_EXCLUDED(mutex_);
  bool interrupted() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Trigger() ABSL_LOCKS_EXCLUDED(mutex_);

  mutable Mutex mutex_;
  bool calls_only_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool interrupted_ ABSL_GUARDED_BY(mutex_) = false;
};

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
