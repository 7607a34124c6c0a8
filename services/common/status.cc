#include "services/common/status.h"

#include <absl/time/time.h>
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>

#include <optional>
#include <string>

#include "core/base/retry_delay.h"

namespace quern {
namespace {

std::string RetryDetails(const absl::Status& status, absl::Duration delay) {
  google::rpc::RetryInfo info;
  absl::Duration rest;
  info.mutable_retry_delay()->set_seconds(absl::IDivDuration(delay, absl::Seconds(1), &rest));
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  google::rpc::Status details;
  details.set_code(static_cast<int>(status.code()));
  details.set_message(status.message().data(), status.message().size());
  details.add_details()->PackFrom(info);
  return details.SerializeAsString();
}

std::optional<absl::Duration> DelayIn(const std::string& details) {
  google::rpc::Status parsed;
  if (details.empty() || !parsed.ParseFromString(details)) return std::nullopt;
  for (const google::protobuf::Any& detail : parsed.details()) {
    google::rpc::RetryInfo info;
    if (!detail.Is<google::rpc::RetryInfo>() || !detail.UnpackTo(&info)) continue;
    return absl::Seconds(info.retry_delay().seconds()) +
           absl::Nanoseconds(info.retry_delay().nanos());
  }
  return std::nullopt;
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::optional<absl::Duration> delay = RetryDelayOf(status);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
                      delay.has_value() ? RetryDetails(status, *delay) : "");
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  if (const auto delay = DelayIn(status.error_details()); delay.has_value()) {
    SetRetryDelay(*delay, &result);
  }
  return result;
}

}  // namespace quern
