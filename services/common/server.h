#ifndef QUERN_SERVICES_COMMON_SERVER_H_
#define QUERN_SERVICES_COMMON_SERVER_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <grpcpp/grpcpp.h>
#include <prometheus/registry.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "services/common/security.h"

namespace quern {

struct ServerOptions {
  std::string listen = "127.0.0.1:0";
  // Outlives the server; null: loopback only, without TLS and open to all.
  const Security* security = nullptr;
  // Of one message. Streams carry at most 1 MiB of file a message.
  int max_receive_message_bytes = 4 << 20;
  int max_metadata_bytes = 16 << 10;
  int max_concurrent_streams = 1024;  // of one connection
  // Then the client is asked to connect anew; gRPC varies it by a tenth.
  absl::Duration max_connection_age = absl::Hours(1);
  // Names that the health service answers for beside "", e.g. QuantizationService's
  // service_full_name().
  std::vector<std::string> health_names;
};

// A gRPC server with health service, reflection, RPC metrics, limits and keepalive.
class GrpcServer {
 public:
  // Listens at once; health says NOT_SERVING until SetServing(true). `services` and `registry` must
  // outlive the server. FAILED_PRECONDITION for an address that is refused, UNAVAILABLE when it
  // cannot be bound.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(
      const ServerOptions& options, const std::vector<grpc::Service*>& services,
      prometheus::Registry& registry);

  // Shuts down without grace unless Shutdown was called.
  ~GrpcServer();

  // "127.0.0.1:43211": the address with the real port.
  const std::string& address() const { return address_; }

  // Health of "" and of every name in `health_names`.
  void SetServing(bool serving);

  // Health of another name: of one thing that the services serve. From any thread.
  void SetServing(const std::string& name, bool serving);

  // Health becomes NOT_SERVING, then `stop_admission` runs: it must make every stream that waits
  // for something end soon (gRPC waits for all of them). New calls are refused; those under way
  // may go on for `grace` and are cancelled then. Returns when the last has ended. Once only.
  void Shutdown(absl::Duration grace, const std::function<void()>& stop_admission);

 private:
  GrpcServer() = default;

  std::string address_;
  std::vector<std::string> health_names_;
  std::unique_ptr<grpc::Server> server_;
  bool shut_down_ = false;
};

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_SERVER_H_
