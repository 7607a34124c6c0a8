#include "tests/e2e/deployment.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>
#include <absl/time/clock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <cstdlib>
#include <filesystem>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"

namespace quern {

absl::Time E2eDeadline() { return absl::Now() + absl::Minutes(3); }

std::string ProgramPath(const std::string& name) {
  const char* directory = std::getenv("QUERN_BIN_DIR");
  CHECK(directory != nullptr) << "QUERN_BIN_DIR is not set; run the tests with ctest";
  return absl::StrCat(directory, "/", name);
}

absl::Status WaitForFile(const std::string& path, absl::Time deadline) {
  const FileDescriptor inotify(inotify_init1(IN_CLOEXEC));
  const std::string directory = std::filesystem::path(path).parent_path();
  if (inotify.get() < 0 || inotify_add_watch(inotify.get(), directory.c_str(),
                                             IN_CREATE | IN_MOVED_TO | IN_CLOSE_WRITE) < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("watching ", directory));
  }
  // The watch exists before the first look, so a file made in between is not missed.
  while (access(path.c_str(), F_OK) != 0) {
    struct pollfd poll_fd = {inotify.get(), POLLIN, 0};
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0) return absl::DeadlineExceededError(absl::StrCat(path, " did not appear"));
    if (poll(&poll_fd, 1, static_cast<int>(left)) > 0) {
      char events[4096];
      if (read(inotify.get(), events, sizeof(events)) < 0) {
        return absl::ErrnoToStatus(errno, "inotify");
      }
    }
  }
  return absl::OkStatus();
}

Deployment::Deployment()
    : root_(absl::StrCat(std::filesystem::temp_directory_path().string(), "/quern_e2e_XXXXXX")) {
  CHECK(mkdtemp(root_.data()) != nullptr);
  for (const char* name : {"models", "texts", "ready"}) {
    const absl::Status made = CreateDirectories(absl::StrCat(root_, "/", name));
    CHECK(made.ok()) << made;
  }
}

Deployment::~Deployment() {
  services_.clear();
  std::filesystem::remove_all(root_);
}

absl::Status Deployment::Start(const std::string& program, std::vector<std::string> flags,
                               const std::vector<std::string>& extra) {
  const std::string ready_file = absl::StrCat(root_, "/ready/", program, ".json");
  std::filesystem::remove(ready_file);
  flags.insert(flags.begin(), ProgramPath(program));
  flags.push_back(absl::StrCat("--ready-file=", ready_file));
  flags.push_back("--metrics-listen=127.0.0.1:0");
  flags.insert(flags.end(), extra.begin(), extra.end());
  Service& service = services_[program];
  service.process.reset();
  ASSIGN_OR_RETURN(service.process, Subprocess::Start({.argv = flags}));
  const absl::Time deadline = E2eDeadline();
  while (true) {
    // In short turns, so that a service that refuses to start is reported at once.
    const absl::Status ready =
        WaitForFile(ready_file, std::min(deadline, absl::Now() + absl::Milliseconds(200)));
    if (ready.ok()) break;
    if (const auto ended = service.process->Wait(absl::Now()); ended.ok()) {
      return absl::UnavailableError(absl::StrCat(program, " ended: ", ended->ToString()));
    }
    if (absl::Now() >= deadline) return ready;
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(ready_file, 4096));
  ASSIGN_OR_RETURN(const Json json, ParseJson(text, ready_file));
  ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, ready_file));
  ASSIGN_OR_RETURN(service.grpc_address, object.String("grpc_address"));
  ASSIGN_OR_RETURN(service.http_address, object.String("http_address"));
  ASSIGN_OR_RETURN(service.metrics_address, object.String("metrics_address"));
  return absl::OkStatus();
}

absl::Status Deployment::StartJobs(const std::vector<std::string>& extra) {
  return Start(
      "quern-jobs",
      {"--listen=127.0.0.1:0", absl::StrCat("--data-directory=", jobs_data()),
       absl::StrCat("--model-root=", model_root()), absl::StrCat("--data-root=", data_root())},
      extra);
}

absl::Status Deployment::StartWorker(const std::vector<std::string>& extra) {
  return Start("quern-worker",
               {absl::StrCat("--jobs=", jobs().grpc_address),
                absl::StrCat("--work-directory=", work_directory()),
                absl::StrCat("--model-root=", model_root()),
                absl::StrCat("--data-root=", data_root()), "--threads=1", "--name=e2e"},
               extra);
}

absl::Status Deployment::StartInference(const std::vector<std::string>& extra) {
  return Start("quern-inference",
               {"--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0",
                absl::StrCat("--jobs=", jobs().grpc_address),
                absl::StrCat("--cache-directory=", cache_directory()),
                absl::StrCat("--model-root=", model_root()), "--threads=2", "--kv-cache-mib=16"},
               extra);
}

absl::Status Deployment::StartAll() {
  RETURN_IF_ERROR(StartJobs());
  RETURN_IF_ERROR(StartWorker());
  return StartInference();
}

std::shared_ptr<grpc::Channel> Deployment::JobsChannel() {
  return grpc::CreateChannel(jobs().grpc_address, grpc::InsecureChannelCredentials());
}

std::shared_ptr<grpc::Channel> Deployment::InferenceChannel() {
  return grpc::CreateChannel(inference().grpc_address, grpc::InsecureChannelCredentials());
}

absl::StatusOr<std::string> HttpGet(const std::string& address, const std::string& path) {
  namespace asio = boost::asio;
  namespace beast = boost::beast;
  namespace http = boost::beast::http;
  const std::pair<std::string, std::string> host_port =
      absl::StrSplit(address, absl::MaxSplits(':', 1));
  boost::system::error_code error;
  asio::io_context context;
  beast::tcp_stream stream(context);
  asio::ip::tcp::resolver resolver(context);
  const auto found = resolver.resolve(host_port.first, host_port.second, error);
  if (!error) stream.connect(found, error);
  if (error) return absl::UnavailableError(absl::StrCat(address, ": ", error.message()));
  http::request<http::empty_body> request(http::verb::get, path, 11);
  request.set(http::field::host, address);
  request.set(http::field::connection, "close");
  http::write(stream, request, error);
  beast::flat_buffer buffer;
  http::response<http::string_body> response;
  if (!error) http::read(stream, buffer, response, error);
  if (error) return absl::UnavailableError(absl::StrCat(address, path, ": ", error.message()));
  if (response.result() != http::status::ok) {
    return absl::UnknownError(absl::StrCat(address, path, ": HTTP ", response.result_int()));
  }
  return response.body();
}

absl::StatusOr<double> MetricValue(const std::string& text, const std::string& series) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!absl::ConsumePrefix(&line, absl::StrCat(series, " "))) continue;
    double value = 0;
    if (absl::SimpleAtod(line, &value)) return value;
  }
  return absl::NotFoundError(absl::StrCat("no series ", series));
}

}  // namespace quern
