#include "services/common/server.h"

#include <grpcpp/health_check_service_interface.h>
#include <prometheus/text_serializer.h>
#include <quern/artifact/v1/artifact_service.grpc.pb.h>

#include "services/common/unary.h"
#include "tests/services/common/http_client.h"
#include "tests/services/common/policy_walk.h"
#include "tests/support/eventually.h"
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
  void Start(ServerOptions options = {}) {
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

  // grpc.health.v1: request {1: service}, response {1: status}, 1 = SERVING, 2 = NOT_SERVING.
  absl::StatusOr<std::string> Health(const std::string& name) {
    return CallByName(channel_, "/grpc.health.v1.Health/Check",
                      std::string("\x0a") + static_cast<char>(name.size()) + name, /*token=*/"");
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

// The name of an Artifact is field 1: a tag, its length in two or three bytes, the bytes.
TEST_F(ServerTest, BoundsMessagesToTheByte) {
  ServerOptions options;
  options.max_receive_message_bytes = 1000;
  Start(options);
  EXPECT_TRUE(Get(std::string(1000 - 3, 'x')).ok());
  EXPECT_EQ(Get(std::string(1000 - 3 + 1, 'x')).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

// RFC 9113 counts 32 bytes for each field beside its name and value; others than ours are few.
TEST_F(ServerTest, BoundsMetadata) {
  Start();
  const auto call = [&](size_t bytes) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    context.AddMetadata("x", std::string(bytes - 33, 'x'));
    artifact::v1::GetArtifactRequest request;
    request.set_name("a");
    artifact::v1::Artifact response;
    return artifact::v1::ArtifactService::NewStub(channel_)->GetArtifact(&context, request,
                                                                         &response);
  };
  constexpr size_t kOthers = 1024;
  EXPECT_TRUE(call((16 << 10) - kOthers).ok());
  EXPECT_FALSE(call((16 << 10) + 1).ok());
}

TEST_F(ServerTest, BoundsStreamsOfAConnection) {
  ServerOptions options;
  options.max_concurrent_streams = 2;
  Start(options);
  // Watches of health have no end.
  struct Watcher {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream;
    // Whether the call's beginning went out, within `limit`.
    bool Begins(std::chrono::milliseconds limit) {
      void* tag = nullptr;
      bool ok = false;
      return queue.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + limit) ==
             grpc::CompletionQueue::GOT_EVENT;
    }
    void End() {
      context.TryCancel();
      queue.Shutdown();
      void* tag = nullptr;
      bool ok = false;
      while (queue.Next(&tag, &ok)) {
      }
    }
  };
  grpc::GenericStub stub(channel_);
  Watcher watchers[3];
  for (Watcher& watcher : watchers) {
    watcher.stream =
        stub.PrepareCall(&watcher.context, "/grpc.health.v1.Health/Watch", &watcher.queue);
    watcher.stream->StartCall(nullptr);
    // One more than there is room for waits in the client.
    const bool has_room = &watcher != &watchers[2];
    EXPECT_EQ(watcher.Begins(std::chrono::milliseconds(has_room ? 60'000 : 200)), has_room);
  }
  watchers[0].End();
  EXPECT_TRUE(watchers[2].Begins(std::chrono::seconds(60)));
  watchers[1].End();
  watchers[2].End();
}

TEST_F(ServerTest, AsksOldConnectionsToLeave) {
  ServerOptions options;
  options.max_connection_age = absl::Milliseconds(100);
  Start(options);
  EXPECT_TRUE(Get("a").ok());
  EXPECT_TRUE(Eventually([&] { return channel_->GetState(false) != GRPC_CHANNEL_READY; }));
  EXPECT_TRUE(Get("on a new one").ok());
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
  SecurityConfig insecure;
  insecure.allow_insecure_network = true;
  ASSERT_OK_AND_ASSIGN(const auto security, Security::Open(insecure, registry_));
  options.security = security.get();
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
