#include "services/common/server.h"

#include <absl/strings/str_cat.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include <chrono>
#include <utility>

#include "core/base/status_macros.h"
#include "services/common/address.h"
#include "services/common/grpc_hand_over.h"
#include "services/common/rpc_metrics.h"

namespace quern {
namespace {

// Both plugins are global to the process and must be installed before the first builder.
void InstallPluginsOnce() {
  static const bool installed = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  static_cast<void>(installed);
}

void SetLimits(const ServerOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.max_receive_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, options.max_metadata_bytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
  // A second server on the same port fails instead of taking half of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // A peer that vanished without a word is noticed within 30 seconds.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Those who ask more often are cut off at the third time.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2);
  // New connections are judged by the certificates of the day, and reach new replicas. Calls that
  // run go on to their end.
  builder.AddChannelArgument(
      GRPC_ARG_MAX_CONNECTION_AGE_MS,
      static_cast<int>(absl::ToInt64Milliseconds(options.max_connection_age)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(
    const ServerOptions& options, const std::vector<grpc::Service*>& services,
    prometheus::Registry& registry) {
  const SecurityConfig config = options.security ? options.security->config() : SecurityConfig();
  ASSIGN_OR_RETURN(HostPort address, CheckListenAddress("--listen", options.listen, config));
  WarnIfExposed("--listen", address, config);
  InstallPluginsOnce();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address.ToString(),
                           options.security ? options.security->MakeServerCredentials()
                                            : grpc::InsecureServerCredentials(),
                           &port);
  SetLimits(options, builder);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> creators;
  creators.push_back(MakeServerRpcMetrics(registry));
  ReleaseToGrpc(creators.back().get());  // every call begins there
  builder.experimental().SetInterceptorCreators(std::move(creators));

  std::unique_ptr<GrpcServer> result(new GrpcServer());
  result->server_ = builder.BuildAndStart();
  if (result->server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("--listen: cannot listen on ", options.listen,
                                               "; is another process using the port?"));
  }
  address.port = port;
  result->address_ = address.ToString();
  result->health_names_ = options.health_names;
  result->SetServing(false);
  return result;
}

GrpcServer::~GrpcServer() {
  if (!shut_down_ && server_ != nullptr) Shutdown(absl::ZeroDuration(), [] {});
}

void GrpcServer::SetServing(bool serving) {
  // One status for the whole process: its services live and die together.
  grpc::HealthCheckServiceInterface& health = *server_->GetHealthCheckService();
  health.SetServingStatus(serving);
  for (const std::string& name : health_names_) health.SetServingStatus(name, serving);
}

void GrpcServer::SetServing(const std::string& name, bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(name, serving);
}

void GrpcServer::Shutdown(absl::Duration grace, const std::function<void()>& stop_admission) {
  shut_down_ = true;
  server_->GetHealthCheckService()->Shutdown();
  stop_admission();
  server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace));
  server_->Wait();
}

}  // namespace quern
