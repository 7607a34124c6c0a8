// `quern health`: a probe for container health checks and scripts.

#include "services/cli/health.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <absl/time/clock.h>
#include <grpc/health/v1/health.grpc.pb.h>

#include <iostream>
#include <memory>

#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/http.h"
#include "services/common/address.h"
#include "services/common/status.h"

namespace quern::cli {
namespace {

namespace health_pb = grpc::health::v1;

struct HealthOptions {
  std::string address;
  std::string service;
  double timeout_seconds = 5;
};

absl::Status CheckUrl(const std::string& url, const ChannelSecurity& security,
                      absl::Duration timeout) {
  ASSIGN_OR_RETURN(const HttpAnswer answer, HttpGet(url, security, timeout));
  if (answer.status == 200) return absl::OkStatus();
  // /readyz and /healthz say why in their first line.
  const std::string reason = answer.body.substr(0, answer.body.find('\n'));
  return absl::UnavailableError(absl::StrCat(url, ": HTTP ", answer.status, ": ", reason));
}

absl::Status RunHealth(const HealthOptions& options, const Context& context) {
  const absl::Status status =
      CheckHealth(options.address, options.service, context.options().security,
                  absl::Seconds(options.timeout_seconds));
  if (context.json()) {
    std::cout << Json{{"address", options.address},
                      {"service", options.service},
                      {"serving", status.ok()},
                      {"reason", std::string(status.message())}}
                     .dump(-1, ' ', false, Json::error_handler_t::replace)
              << std::endl;
    // Said already.
    return status.ok() ? status : absl::Status(status.code(), "");
  }
  if (status.ok()) std::cout << "SERVING" << std::endl;
  return status;
}

}  // namespace

absl::Status CheckHealth(const std::string& address, const std::string& service,
                         const ChannelSecurity& security, absl::Duration timeout) {
  if (absl::StartsWith(address, "http://") || absl::StartsWith(address, "https://")) {
    return CheckUrl(address, security, timeout);
  }
  RETURN_IF_ERROR(ParseHostPort(address).status());
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                   Connect("address", address, security));
  health_pb::HealthCheckRequest request;
  request.set_service(service);
  grpc::ClientContext call;
  call.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  health_pb::HealthCheckResponse response;
  const grpc::Status status = health_pb::Health::NewStub(channel)->Check(&call, request, &response);
  const std::string what = service.empty() ? address : absl::StrCat(address, ": ", service);
  switch (status.error_code()) {
    case grpc::StatusCode::OK:
      break;
    case grpc::StatusCode::NOT_FOUND:
      return absl::NotFoundError(absl::StrCat(what, " is not known there"));
    case grpc::StatusCode::UNIMPLEMENTED:
      return absl::UnavailableError(
          absl::StrCat(address, ": a gRPC server answers, but has no health service"));
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::DeadlineExceededError(
          absl::StrCat(what, ": no answer within ", absl::FormatDuration(timeout)));
    default:
      return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                          absl::StrCat(what, ": ", status.error_message()));
  }
  if (response.status() == health_pb::HealthCheckResponse::SERVING) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(
      what, " is ", health_pb::HealthCheckResponse::ServingStatus_Name(response.status())));
}

void AddHealth(CLI::App& app, Command& command) {
  auto options = std::make_shared<HealthOptions>();
  CLI::App* sub = app.add_subcommand("health", "Ask one service whether it serves; 0 when it does");
  sub->add_option("address", options->address,
                  "HOST:PORT of a gRPC service, or http(s)://HOST:PORT/readyz")
      ->required();
  sub->add_option("--service", options->service,
                  "full name, e.g. quern.inference.v1.InferenceService; unset: the whole server");
  sub->add_option("--timeout", options->timeout_seconds, "seconds to wait for the answer")
      ->check(CLI::Range(0.001, 3600.0))
      ->capture_default_str();
  sub->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return RunHealth(*options, context); };
  });
}

}  // namespace quern::cli
