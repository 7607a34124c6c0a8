#include "services/common/rpc_metrics.h"

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/string_view.h>
#include <prometheus/counter.h>
#include <prometheus/histogram.h>

#include <chrono>
#include <map>

#include "core/base/mutex.h"
#include "services/common/grpc_hand_over.h"

namespace quern {
namespace {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::InterceptorBatchMethods;
using SteadyClock = std::chrono::steady_clock;

// vLLM's values for requests, with room below for calls that take under a millisecond.
const prometheus::Histogram::BucketBoundaries kBuckets = {
    .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 240, 960};

// Families of one side, and the handles of each method, made at its first call.
class RpcFamilies {
 public:
  struct Method {
    prometheus::Labels labels;
    prometheus::Counter* started;
    prometheus::Counter* sent;
    prometheus::Histogram* seconds;
  };

  RpcFamilies(prometheus::Registry& registry, const std::string& side)
      : started_(prometheus::BuildCounter()
                     .Name("grpc_" + side + "_started_total")
                     .Help("RPCs started.")
                     .Register(registry)),
        handled_(prometheus::BuildCounter()
                     .Name("grpc_" + side + "_handled_total")
                     .Help("RPCs ended, by status code.")
                     .Register(registry)),
        sent_(prometheus::BuildCounter()
                  .Name("grpc_" + side + "_msg_sent_total")
                  .Help("Messages sent.")
                  .Register(registry)),
        seconds_(prometheus::BuildHistogram()
                     .Name("grpc_" + side + "_handling_seconds")
                     .Help("From start to end of an RPC, its whole stream included.")
                     .Register(registry)) {}

  const Method& Find(const char* full_method, int type) ABSL_LOCKS_EXCLUDED(mutex_) {
    const std::string name(full_method == nullptr ? "" : full_method);
    MutexLock lock(&mutex_);
    auto found = methods_.find(name);
    if (found != methods_.end()) return found->second;
    // "/package.Service/Method".
    const size_t slash = name.rfind('/');
    const bool split = slash != std::string::npos && slash > 1;
    static constexpr const char* kTypes[] = {"unary", "client_stream", "server_stream",
                                             "bidi_stream"};
    Method method;
    method.labels = {{"grpc_service", split ? name.substr(1, slash - 1) : "unknown"},
                     {"grpc_method", split ? name.substr(slash + 1) : "unknown"},
                     {"grpc_type", type >= 0 && type < 4 ? kTypes[type] : "unknown"}};
    method.started = &started_.Add(method.labels);
    method.sent = &sent_.Add(method.labels);
    method.seconds = &seconds_.Add(method.labels, kBuckets);
    return methods_.emplace(name, std::move(method)).first->second;
  }

  void CountHandled(const Method& method, int code) {
    prometheus::Labels labels = method.labels;
    labels["grpc_code"] = GrpcCodeName(code);
    handled_.Add(labels).Increment();
  }

 private:
  prometheus::Family<prometheus::Counter>& started_;
  prometheus::Family<prometheus::Counter>& handled_;
  prometheus::Family<prometheus::Counter>& sent_;
  prometheus::Family<prometheus::Histogram>& seconds_;
  Mutex mutex_;
  // Bounded: interceptors run for registered methods only. References stay valid in a map.
  std::map<std::string, Method> methods_ ABSL_GUARDED_BY(mutex_);
};

// One RPC, on either side. gRPC destroys it after the RPC's last hook.
class RpcInterceptor final : public grpc::experimental::Interceptor {
 public:
  RpcInterceptor(RpcFamilies& families, const char* method, int type)
      : families_(families), method_(families.Find(method, type)), start_(SteadyClock::now()) {
    method_.started->Increment();
    ReleaseToGrpc(this);
  }

  void Intercept(InterceptorBatchMethods* methods) override {
    AcquireFromGrpc(this);
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_MESSAGE)) {
      method_.sent->Increment();
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      End(methods->GetSendStatus().error_code());
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_STATUS)) {
      End(methods->GetRecvStatus()->error_code());
    }
    methods->Proceed();
  }

 private:
  void End(int code) {
    families_.CountHandled(method_, code);
    method_.seconds->Observe(std::chrono::duration<double>(SteadyClock::now() - start_).count());
  }

  RpcFamilies& families_;
  const RpcFamilies::Method& method_;
  const SteadyClock::time_point start_;
};

class ServerFactory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit ServerFactory(prometheus::Registry& registry) : families_(registry, "server") {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    AcquireFromGrpc(this);  // released where the server starts
    return new RpcInterceptor(families_, info->method(), static_cast<int>(info->type()));
  }

 private:
  RpcFamilies families_;
};

class ClientFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit ClientFactory(prometheus::Registry& registry) : families_(registry, "client") {}
  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo* info) override {
    return new RpcInterceptor(families_, info->method(), static_cast<int>(info->type()));
  }

 private:
  RpcFamilies families_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeServerRpcMetrics(
    prometheus::Registry& registry) {
  return std::make_unique<ServerFactory>(registry);
}

std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> MakeClientRpcMetrics(
    prometheus::Registry& registry) {
  return std::make_unique<ClientFactory>(registry);
}

std::string GrpcCodeName(int code) {
  if (code < 0 || code > 16) return "UNKNOWN";
  return absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
}

}  // namespace quern
