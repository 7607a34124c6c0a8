#ifndef QUERN_SERVICES_COMMON_UNARY_H_
#define QUERN_SERVICES_COMMON_UNARY_H_

#include <absl/status/status.h>
#include <grpcpp/grpcpp.h>

#include <utility>

#include "services/common/executor.h"
#include "services/common/status.h"

namespace quern {

// The answer when the executor's queue is full.
inline absl::Status TooBusy() {
  return absl::ResourceExhaustedError("the service has too many requests waiting; try again later");
}

// Handles a unary RPC on `executor`: `handler` (absl::Status()) fills the response and may block.
// Request and response stay valid until the returned reactor is done.
template <typename Handler>
grpc::ServerUnaryReactor* RunUnary(Executor& executor, grpc::CallbackServerContext* context,
                                   Handler handler) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool posted = executor.TryPost([reactor, handler = std::move(handler)]() mutable {
    reactor->Finish(ToGrpcStatus(handler()));
  });
  if (!posted) reactor->Finish(ToGrpcStatus(TooBusy()));
  return reactor;
}

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_UNARY_H_
