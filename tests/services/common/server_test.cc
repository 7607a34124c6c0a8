#include "services/common/server.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/health_check_service_interface.h>
#include <prometheus/text_serializer.h>
#include <quern/artifact/v1/artifact_service.grpc.pb.h>

#include "services/common/unary.h"
#include "tests/services/common/http_client.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

// Answers with the name asked for; an empty name is refused.
class EchoService final : public artifact::v1::ArtifactService::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetArtifact(grpc::CallbackServerContext* context,
                                        const artifact::v1::GetArtifactRequest* request,
                                        artifact::v1::Artifact* response) override {
    return RunUnary(executor_, context, [request, response]() -> absl::Status {
      if (request->name().empty()) return absl::InvalidArgumentError("name: is required");
      response->set_name(request->name());
      return absl::OkStatus();
    });
  }

 private:
  Executor executor_{1};
};

class ServerTest : public testing::Test {
 protected:
  void Start() {
    ServerOptions options;
    options.health_names = {artifact::v1::ArtifactService::service_full_name()};
    auto server = GrpcServer::Start(options, {&service_}, registry_);
    ASSERT_OK(server);
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
  }
  grpc::Status Get(const std::string& name) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    artifact::v1::GetArtifactRequest request;
    request.set_name(name);
    artifact::v1::Artifact response;
    return artifact::v1::ArtifactService::NewStub(channel_)->GetArtifact(&context, request,
                                                                         &response);
  }

  // Calls a method by name with a message in wire format; the answer's wire format.
  absl::StatusOr<std::string> CallRaw(const std::string& method, const std::string& request) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    const grpc::Slice slice(request);
    const grpc::ByteBuffer sent(&slice, 1);
    grpc::ByteBuffer received;
    grpc::Status status;
    grpc::CompletionQueue queue;
    auto call = stub.PrepareUnaryCall(&context, method, sent, &queue);
    call->StartCall();
    call->Finish(&received, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    if (!status.ok()) return FromGrpcStatus(status);
    grpc::Slice answer;
    EXPECT_TRUE(received.DumpToSingleSlice(&answer).ok());
    return std::string(reinterpret_cast<const char*>(answer.begin()), answer.size());
  }
  // grpc.health.v1: request {1: service}, response {1: status}, 1 = SERVING, 2 = NOT_SERVING.
  absl::StatusOr<std::string> Health(const std::string& name) {
    return CallRaw("/grpc.health.v1.Health/Check",
                   std::string("\x0a") + static_cast<char>(name.size()) + name);
  }

  prometheus::Registry registry_;
  EchoService service_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(ServerTest, CountsCallsByCode) {
  Start();
  EXPECT_TRUE(Get("a").ok());
  EXPECT_TRUE(Get("b").ok());
  EXPECT_EQ(Get("").error_message(), "name: is required");
  server_->Shutdown(absl::Seconds(5), [] {});
  const std::string scrape = prometheus::TextSerializer().Serialize(registry_.Collect());
  const std::string method =
      "grpc_method=\"GetArtifact\",grpc_service=\"quern.artifact.v1.ArtifactService\","
      "grpc_type=\"unary\"}";
  EXPECT_EQ(ScrapedValue(scrape, "grpc_server_started_total{" + method), 3);
  EXPECT_EQ(ScrapedValue(scrape, "grpc_server_handled_total{grpc_code=\"OK\"," + method), 2);
  EXPECT_EQ(
      ScrapedValue(scrape, "grpc_server_handled_total{grpc_code=\"INVALID_ARGUMENT\"," + method),
      1);
  EXPECT_EQ(ScrapedValue(scrape, "grpc_server_handling_seconds_count{" + method), 3);
  EXPECT_EQ(ScrapedValue(scrape, "grpc_server_msg_sent_total{" + method), 2);
}

TEST_F(ServerTest, SaysItsHealth) {
  Start();
  const std::string name = artifact::v1::ArtifactService::service_full_name();
  EXPECT_EQ(Health("").value(), "\x08\x02");
  EXPECT_EQ(Health(name).value(), "\x08\x02");
  server_->SetServing(true);
  EXPECT_EQ(Health("").value(), "\x08\x01");
  EXPECT_EQ(Health(name).value(), "\x08\x01");
  EXPECT_THAT(Health("other"), StatusIs(StatusCode::kNotFound, testing::_));
}

TEST_F(ServerTest, RefusesMessagesAndMetadataOverTheLimit) {
  Start();
  EXPECT_EQ(Get(std::string(5 << 20, 'x')).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  grpc::ClientContext context;
  context.AddMetadata("x", std::string(64 << 10, 'x'));
  artifact::v1::Artifact response;
  EXPECT_FALSE(
      artifact::v1::ArtifactService::NewStub(channel_)->GetArtifact(&context, {}, &response).ok());
  // The server may close that connection; others are not touched.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  channel_ =
      grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments);
  EXPECT_TRUE(Get("still serves").ok());
}

TEST_F(ServerTest, RefusesAddresses) {
  ServerOptions options;
  options.listen = "0.0.0.0:0";
  EXPECT_THAT(GrpcServer::Start(options, {}, registry_),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("--allow-insecure-network")));
  options.allow_insecure_network = true;
  EXPECT_OK(GrpcServer::Start(options, {}, registry_));
  Start();
  options.listen = server_->address();
  EXPECT_THAT(GrpcServer::Start(options, {}, registry_),
              StatusIs(StatusCode::kUnavailable, HasSubstr(server_->address())));
}

TEST_F(ServerTest, ShutdownRunsTheHookAndRefusesNewCalls) {
  Start();
  server_->SetServing(true);
  bool stopped = false;
  server_->Shutdown(absl::Seconds(5), [&] { stopped = true; });
  EXPECT_TRUE(stopped);
  EXPECT_EQ(Get("a").error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace quern
