#ifndef QUERN_SERVICES_COMMON_RPC_METRICS_H_
#define QUERN_SERVICES_COMMON_RPC_METRICS_H_

// Counts and times every RPC under the names of go-grpc-prometheus, which ready-made dashboards
// read: grpc_server_started_total, grpc_server_handled_total{grpc_code},
// grpc_server_handling_seconds, grpc_server_msg_sent_total (and grpc_client_* for a client), each
// with grpc_service, grpc_method and grpc_type.

#include <grpcpp/support/client_interceptor.h>
#include <grpcpp/support/server_interceptor.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>
#include <vector>

namespace quern {

// `registry` must outlive the server or channel.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeServerRpcMetrics(
    prometheus::Registry& registry);
std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> MakeClientRpcMetrics(
    prometheus::Registry& registry);

// "OK", "INVALID_ARGUMENT", ...; "UNKNOWN" for a number that is no code.
std::string GrpcCodeName(int code);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_RPC_METRICS_H_
