#include "services/cli/context.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_replace.h>
#include <absl/strings/strip.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/create_channel.h>
#include <quern/artifact/v1/artifact_service.grpc.pb.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <iostream>
#include <system_error>
#include <thread>
#include <vector>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "services/common/signals.h"
#include "services/common/status.h"

namespace quern::cli {
namespace {

// Files of `quern up` are small; anything larger is not one of them.
constexpr size_t kMaxAddressFileBytes = 64 << 10;

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(absl::string_view flag,
                                                       const std::string& address,
                                                       const ChannelSecurity& security) {
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> credentials,
                   MakeChannelCredentials(flag, address, security));
  return grpc::CreateChannel(address, credentials);
}

absl::StatusOr<std::string> ProgramDirectory() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::ErrnoToStatus(error.value(), "path of this program");
  return self.parent_path().string();
}

Context::Context(const GlobalOptions& options, const Environment& environment)
    : options_(options), environment_(environment), terminal_(isatty(STDOUT_FILENO) == 1) {
  if (!options.data_directory.empty()) {
    data_directory_ = options.data_directory;
  } else if (!environment.state_home.empty()) {
    data_directory_ = absl::StrCat(environment.state_home, "/quern");
  } else {
    data_directory_ = absl::StrCat(environment.home, "/.local/state/quern");
  }
}

std::string Context::addresses_path() const { return absl::StrCat(data_directory_, "/quern.json"); }

absl::StatusOr<std::string> Context::Address(absl::string_view flag, absl::string_view key,
                                             absl::string_view fallback) const {
  if (!flag.empty()) return std::string(flag);
  absl::StatusOr<std::string> recorded = Recorded(key);
  if (absl::IsNotFound(recorded.status())) return std::string(fallback);
  return recorded;
}

absl::StatusOr<std::string> Context::Recorded(absl::string_view key) const {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(addresses_path(), kMaxAddressFileBytes));
  ASSIGN_OR_RETURN(const Json json, ParseJson(text, addresses_path()));
  ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, addresses_path()));
  return object.String(key);
}

absl::StatusOr<std::string> Context::BelowRoot(absl::string_view path,
                                               absl::string_view root_key) const {
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(std::string(path), error);
  // Not on this machine, or not from here: the service knows better.
  if (error) return std::string(path);
  const absl::StatusOr<std::string> root = Recorded(root_key);
  if (absl::IsNotFound(root.status())) return std::string(path);
  RETURN_IF_ERROR(root.status());
  const std::string relative = real.lexically_relative(*root).string();
  const bool outside = relative.empty() || relative == ".." || absl::StartsWith(relative, "../");
  if (!outside) return relative;
  if (!std::filesystem::path(std::string(path)).is_absolute()) return std::string(path);
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": the services see files below ", *root, " only; start `quern up` with --",
      absl::StrReplaceAll(root_key, {{"_", "-"}}), " to name another directory"));
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Context::Jobs() const {
  ASSIGN_OR_RETURN(const std::string address, Address(options_.jobs, "jobs", kJobsAddress));
  return Connect("--jobs", address, options_.security);
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Context::Inference() const {
  ASSIGN_OR_RETURN(const std::string address,
                   Address(options_.inference, "inference", kInferenceAddress));
  return Connect("--inference", address, options_.security);
}

int TerminalColumns() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

void Interrupt::Watch() {
  BlockShutdownSignals();
  std::thread([this] {
    WaitForShutdownSignal();
    Trigger();
  }).detach();
}

void Interrupt::WatchCallsOnly() {
  {
    MutexLock lock(&mutex_);
    calls_only_ = true;
  }
  Watch();
}

absl::Status Interrupt::WatchRepeatedly() {
  wake_fd_ = FileDescriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (wake_fd_.get() < 0) return absl::ErrnoToStatus(errno, "eventfd");
  BlockShutdownSignals();
  std::thread([this] {
    while (true) TriggerRepeatedly(WaitForOneShutdownSignal() == SIGTERM);
  }).detach();
  return absl::OkStatus();
}

void Interrupt::TriggerRepeatedly(bool terminate) {
  MutexLock lock(&mutex_);
  terminated_ |= terminate;
  if (context_ != nullptr) context_->TryCancel();
  if (context_ == nullptr || terminate) {
    const uint64_t one = 1;
    // Fails only when the counter is full, which is readable all the same.
    [[maybe_unused]] const ssize_t written = write(wake_fd_.get(), &one, sizeof(one));
  }
}

bool Interrupt::terminated() const {
  MutexLock lock(&mutex_);
  return terminated_;
}

void Interrupt::Trigger() {
  MutexLock lock(&mutex_);
  interrupted_ = true;
  if (context_ != nullptr) {
    context_->TryCancel();
  } else if (calls_only_) {
    // Standard input cannot be read and watched at once; nothing is left to be lost.
    _exit(0);
  }
}

void Interrupt::Attach(grpc::ClientContext* context) {
  MutexLock lock(&mutex_);
  context_ = context;
  if (interrupted_) context_->TryCancel();
}

void Interrupt::Release() {
  MutexLock lock(&mutex_);
  context_ = nullptr;
}

bool Interrupt::interrupted() const {
  MutexLock lock(&mutex_);
  return interrupted_;
}

absl::Status CallStatus(const grpc::Status& status) {
  const std::string& message = status.error_message();
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE &&
      absl::StrContains(message, "failed to connect")) {
    absl::string_view what =
        "the service cannot be reached; start it with `quern up`, name its address with --jobs or "
        "--inference, or give --tls-ca if it takes TLS";
    if (absl::StrContains(message, "certificate verify failed")) {
      what = "the service's certificate does not come from the CA in --tls-ca";
    } else if (absl::StrContains(message, "Hostname Verification Check failed")) {
      what = "the service's certificate is for other names than the one in its address";
    }
    return absl::UnavailableError(absl::StrCat(what, " (", message, ")"));
  }
  if (status.error_code() == grpc::StatusCode::UNAUTHENTICATED) {
    return absl::UnauthenticatedError(
        absl::StrCat(message, "; --token-file names the token that is shown"));
  }
  return FromGrpcStatus(status);
}

absl::Status PrintJson(const google::protobuf::Message& message) {
  std::string text;
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  if (!status.ok()) return absl::InternalError(status.ToString());
  std::cout << text << std::endl;
  return absl::OkStatus();
}

std::string ResourceName(absl::string_view collection, absl::string_view text) {
  const std::string prefix = absl::StrCat(collection, "/");
  return absl::StrCat(prefix, absl::StripPrefix(text, prefix));
}

absl::StatusOr<std::string> ResolveArtifact(grpc::Channel& channel, absl::string_view text) {
  const absl::string_view id = absl::StripPrefix(text, "artifacts/");
  if (id.size() >= 64) return absl::StrCat("artifacts/", id);
  if (id.empty()) return absl::InvalidArgumentError("artifact: empty, wanted an id or its start");
  auto stub = artifact::v1::ArtifactService::NewStub(
      std::shared_ptr<grpc::Channel>(&channel, [](grpc::Channel*) {}));
  std::vector<std::string> found;
  artifact::v1::ListArtifactsRequest request;
  request.set_page_size(1000);
  do {
    grpc::ClientContext context;
    artifact::v1::ListArtifactsResponse response;
    RETURN_IF_ERROR(CallStatus(stub->ListArtifacts(&context, request, &response)));
    for (const auto& artifact : response.artifacts()) {
      if (absl::StartsWith(absl::StripPrefix(artifact.name(), "artifacts/"), id)) {
        found.push_back(artifact.name());
      }
    }
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  if (found.size() == 1) return found[0];
  if (found.empty()) {
    return absl::NotFoundError(absl::StrCat("no artifact starts with \"", id, "\""));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(found.size(), " artifacts start with \"", id, "\": give more digits"));
}

}  // namespace quern::cli
