#include "services/common/security.h"

#include <absl/strings/str_cat.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/empty.pb.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <prometheus/text_serializer.h>
#include <quern/artifact/v1/artifact_service.grpc.pb.h>
#include <quern/inference/v1/inference_service.pb.h>
#include <quern/quantization/v1/quantization_service.pb.h>
#include <quern/worker/v1/worker_service.pb.h>
#include <sys/stat.h>

#include <csignal>

#include "core/base/file.h"
#include "services/common/channel.h"
#include "services/common/http_server.h"
#include "services/common/metrics_endpoint.h"
#include "services/common/server.h"
#include "services/common/unary.h"
#include "tests/services/common/certificates.h"
#include "tests/services/common/http_client.h"
#include "tests/services/common/tls_client.h"
#include "tests/support/eventually.h"
#include "tests/support/scratch_directory.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using absl::StatusCode;
using artifact::v1::ArtifactService;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

// Answers with the name of the principal.
class WhoAmIService final : public ArtifactService::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetArtifact(grpc::CallbackServerContext* context,
                                        const artifact::v1::GetArtifactRequest*,
                                        artifact::v1::Artifact* response) override {
    ++calls;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const absl::StatusOr<Principal> principal = security->PrincipalOf(*context);
    if (principal.ok()) response->set_name(principal->name);
    reactor->Finish(ToGrpcStatus(principal.status()));
    return reactor;
  }
  grpc::ServerUnaryReactor* DeleteArtifact(grpc::CallbackServerContext* context,
                                           const artifact::v1::DeleteArtifactRequest*,
                                           google::protobuf::Empty*) override {
    ++calls;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  const Security* security = nullptr;
  std::atomic<int> calls = 0;
};

class SecurityTest : public testing::Test {
 protected:
  SecurityTest() {
    // A connection that the server has closed is an error and not the end.
    signal(SIGPIPE, SIG_IGN);
    WriteFileAs("ca.crt", ca_.pem(), 0644);
    WriteFileAs("other_ca.crt", other_ca_.pem(), 0644);
    ca_.Issue(directory_.path(), "server", "the server");
    ca_.Issue(directory_.path(), "worker", "worker-1", {"worker", "people"});
    ca_.Issue(directory_.path(), "reader", "reader-1", {"reader"});
    ca_.Issue(directory_.path(), "nobody", "nobody-1");
    other_ca_.Issue(directory_.path(), "stranger", "worker-1", {"worker", "admin"});
    const std::pair<const char*, Role> people[] = {
        {"ann", Role::kAdmin}, {"rob", Role::kReader}, {"wes", Role::kWorker}};
    std::string lines;
    for (const auto& [name, role] : people) {
      tokens_[name] = NewAuthToken().value();
      lines += AuthTokenLine({name, {role}}, tokens_[name], absl::InfiniteFuture()) + "\n";
      WriteFileAs(std::string(name) + ".token", tokens_[name] + "\n", 0600);
    }
    WriteFileAs("tokens", lines, 0644);
  }

  std::string Path(const std::string& name) const { return directory_ / name; }
  void WriteFileAs(const std::string& name, const std::string& text, mode_t mode) {
    ASSERT_OK(WriteFileDurably(Path(name), text));
    chmod(Path(name).c_str(), mode);
  }

  SecurityConfig Tls() const {
    return {.tls_cert = Path("server.crt"), .tls_key = Path("server.key")};
  }
  SecurityConfig MutualTls() const {
    SecurityConfig config = Tls();
    config.tls_client_ca = Path("ca.crt");
    return config;
  }
  SecurityConfig Tokens() const {
    SecurityConfig config;
    config.auth_tokens = Path("tokens");
    return config;
  }
  SecurityConfig TlsAndTokens() const {
    SecurityConfig config = Tls();
    config.auth_tokens = Path("tokens");
    return config;
  }

  void Start(const SecurityConfig& config) {
    ASSERT_OK_AND_ASSIGN(security_, Security::Open(config, registry_));
    service_.security = security_.get();
    ServerOptions options;
    options.security = security_.get();
    ASSERT_OK_AND_ASSIGN(server_, GrpcServer::Start(options, {&service_}, registry_));
    HttpServerOptions http{.flag = "--http-listen", .security = security_.get()};
    http.max_body_bytes = 1000;
    ASSERT_OK_AND_ASSIGN(
        http_, HttpServer::Start(http, [this](std::shared_ptr<HttpExchange> exchange) {
          ++http_calls_;
          exchange->Respond({.body = absl::StrCat("you are '", exchange->request().principal,
                                                  "', sent '", exchange->request().body, "'")});
        }));
  }

  std::shared_ptr<grpc::Channel> Connect(const ChannelSecurity& security) const {
    const auto credentials = MakeChannelCredentials("--jobs", server_->address(), security);
    EXPECT_OK(credentials);
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(server_->address(), *credentials, arguments);
  }
  ChannelSecurity AsHolderOf(const std::string& certificate) const {
    return {.tls_ca = Path("ca.crt"),
            .tls_cert = Path(certificate + ".crt"),
            .tls_key = Path(certificate + ".key")};
  }
  // The principal that the service sees.
  static absl::StatusOr<std::string> Call(const std::shared_ptr<grpc::Channel>& channel,
                                          const std::vector<std::string>& authorizations = {}) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    for (const std::string& value : authorizations) context.AddMetadata("authorization", value);
    artifact::v1::Artifact response;
    const grpc::Status status =
        ArtifactService::NewStub(channel)->GetArtifact(&context, {}, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response.name();
  }
  static absl::Status Delete(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    google::protobuf::Empty response;
    return FromGrpcStatus(
        ArtifactService::NewStub(channel)->DeleteArtifact(&context, {}, &response));
  }
  // A GET of `path` without TLS.
  std::string Get(const std::string& path, const std::string& headers = "") const {
    return Exchange(http_->address(), absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: x\r\n",
                                                   headers, "Connection: close\r\n\r\n"));
  }
  TlsAnswer TlsGet(const std::string& path, const TlsClientFiles& files,
                   const std::string& headers = "") const {
    return TlsExchange(http_->address(),
                       absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: x\r\n", headers,
                                    "Connection: close\r\n\r\n"),
                       files);
  }
  double Metric(const std::string& series) {
    return ScrapedValue(prometheus::TextSerializer().Serialize(registry_.Collect()), series);
  }

  const ScratchDirectory directory_;
  TestCa ca_;
  TestCa other_ca_{"other CA"};
  std::map<std::string, std::string> tokens_;
  prometheus::Registry registry_;
  WhoAmIService service_;
  std::atomic<int> http_calls_ = 0;
  std::unique_ptr<Security> security_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<HttpServer> http_;
};

TEST_F(SecurityTest, WithoutSettingsEverybodyMayCallOnLoopback) {
  Start({});
  EXPECT_EQ(Call(Connect({})).value(), "");
  EXPECT_OK(Delete(Connect({})));
  EXPECT_THAT(Get("/anything"), HasSubstr("you are ''"));
}

TEST_F(SecurityTest, ServesTlsToThoseWhoKnowTheCa) {
  Start(Tls());
  EXPECT_EQ(Call(Connect({.tls_ca = Path("ca.crt")})).value(), "");
  EXPECT_THAT(Call(Connect({.tls_ca = Path("other_ca.crt")})),
              StatusIs(StatusCode::kUnavailable, testing::_));
  EXPECT_FALSE(Call(Connect({})).ok());

  const TlsAnswer answer = TlsGet("/v1/models", {.ca = Path("ca.crt")});
  EXPECT_THAT(answer.bytes, AllOf(StartsWith("HTTP/1.1 200"), HasSubstr("you are ''")));
  EXPECT_TRUE(answer.closed);
  EXPECT_FALSE(TlsGet("/v1/models", {.ca = Path("other_ca.crt")}).connected);
  EXPECT_THAT(Get("/v1/models"), Not(HasSubstr("HTTP/1.1 2")));
  const int calls = http_calls_;
  EXPECT_FALSE(
      TlsGet("/v1/models", {.ca = Path("ca.crt"), .max_version = TLS1_1_VERSION}).connected);
  EXPECT_EQ(http_calls_, calls);
}

TEST_F(SecurityTest, KeepsATlsConnectionOpen) {
  Start(Tls());
  const std::string body(900, 'b');
  const TlsAnswer answer =
      TlsExchange(http_->address(),
                  absl::StrCat("POST /v1/a HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n",
                               body, "GET /v1/b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
                  {.ca = Path("ca.crt")});
  EXPECT_THAT(answer.bytes, AllOf(HasSubstr(body), HasSubstr("sent ''")));
  EXPECT_TRUE(answer.closed);
  EXPECT_EQ(http_calls_, 2);
  // Also when the second comes only after the first was answered.
  const TlsAnswer later =
      TlsExchange(http_->address(), "GET /v1/a HTTP/1.1\r\nHost: x\r\n\r\n",
                  {.ca = Path("ca.crt"),
                   .then = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"});
  EXPECT_TRUE(later.closed);
  EXPECT_EQ(http_calls_, 4);
}

TEST_F(SecurityTest, AsksForAClientCertificateOfItsCa) {
  Start(MutualTls());
  EXPECT_FALSE(Call(Connect({.tls_ca = Path("ca.crt")})).ok());
  EXPECT_FALSE(Call(Connect(AsHolderOf("stranger"))).ok());
  EXPECT_EQ(service_.calls, 0);
  // The units of the subject are the roles.
  EXPECT_EQ(Call(Connect(AsHolderOf("reader"))).value(), "reader-1");
  EXPECT_THAT(Delete(Connect(AsHolderOf("reader"))),
              StatusIs(StatusCode::kPermissionDenied,
                       AllOf(HasSubstr("'reader-1' has the roles reader"), HasSubstr("admin"))));
  EXPECT_THAT(Call(Connect(AsHolderOf("worker"))),
              StatusIs(StatusCode::kPermissionDenied, HasSubstr("the roles worker")));
  EXPECT_THAT(Call(Connect(AsHolderOf("nobody"))),
              StatusIs(StatusCode::kPermissionDenied, HasSubstr("none")));

  const auto get = [&](const std::string& name) {
    TlsClientFiles files{.ca = Path("ca.crt")};
    if (!name.empty()) files.cert = Path(name + ".crt");
    if (!name.empty()) files.key = Path(name + ".key");
    return TlsGet("/v1/models", files).bytes;
  };
  EXPECT_EQ(get(""), "");
  EXPECT_EQ(get("stranger"), "");
  EXPECT_THAT(get("worker"), StartsWith("HTTP/1.1 403"));
  EXPECT_EQ(http_calls_, 0);
  EXPECT_THAT(get("reader"), HasSubstr("you are 'reader-1'"));
}

TEST_F(SecurityTest, AsksForAToken) {
  for (const bool tls : {false, true}) {
    service_.calls = 0;
    Start(tls ? TlsAndTokens() : Tokens());
    const std::string ca = tls ? Path("ca.crt") : "";
    const auto anonymous = Connect({.tls_ca = ca});
    EXPECT_THAT(Call(anonymous), StatusIs(StatusCode::kUnauthenticated, HasSubstr("Bearer TOKEN")));
    const std::string good = "Bearer " + tokens_["rob"];
    const std::vector<std::string> bad[] = {{"Bearer quern_wrong"},
                                            {"Bearer "},
                                            {"Bearer  " + tokens_["rob"]},
                                            {good + "x"},
                                            {"Basic " + tokens_["rob"]},
                                            {tokens_["rob"]},
                                            {good, good},
                                            {"Bearer quern_wrong", good}};
    for (const std::vector<std::string>& values : bad) {
      EXPECT_THAT(Call(anonymous, values),
                  StatusIs(StatusCode::kUnauthenticated, Not(HasSubstr("quern_"))));
    }
    EXPECT_EQ(service_.calls, 0);
    EXPECT_EQ(Call(anonymous, {good}).value(), "rob");
    EXPECT_EQ(Call(anonymous, {"bearer " + tokens_["rob"]}).value(), "rob");
    // Calls of one connection are judged one by one.
    EXPECT_EQ(Call(anonymous, {"Bearer " + tokens_["ann"]}).value(), "ann");
    EXPECT_THAT(Call(anonymous), StatusIs(StatusCode::kUnauthenticated, testing::_));
    EXPECT_EQ(Call(Connect({.tls_ca = ca, .token_file = Path("ann.token")})).value(), "ann");
    EXPECT_OK(Delete(Connect({.tls_ca = ca, .token_file = Path("ann.token")})));
    EXPECT_THAT(Delete(Connect({.tls_ca = ca, .token_file = Path("rob.token")})),
                StatusIs(StatusCode::kPermissionDenied, HasSubstr("'rob' has the roles reader")));
    EXPECT_THAT(Call(Connect({.tls_ca = ca, .token_file = Path("wes.token")})),
                StatusIs(StatusCode::kPermissionDenied, HasSubstr("worker")));
    server_.reset();
    http_.reset();
  }
  EXPECT_EQ(Metric("quern_refused_calls_total{reason=\"unauthenticated\"}"), 20);
  EXPECT_EQ(Metric("quern_refused_calls_total{reason=\"permission_denied\"}"), 4);
}

TEST_F(SecurityTest, HttpAsksForATokenBeforeItReadsTheBody) {
  Start(Tokens());
  const auto bearer = [&](const char* name) {
    return absl::StrCat("Authorization: Bearer ", tokens_[name], "\r\n");
  };
  EXPECT_THAT(Get("/v1/models"),
              AllOf(StartsWith("HTTP/1.1 401"), HasSubstr("WWW-Authenticate: Bearer\r\n")));
  EXPECT_THAT(Get("/v1/models", "Authorization: Bearer quern_wrong\r\n"),
              AllOf(StartsWith("HTTP/1.1 401"), Not(HasSubstr("quern_wrong"))));
  EXPECT_THAT(Get("/v1/models", bearer("rob") + bearer("rob")), StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(Get("/v1/models", bearer("wes")), StartsWith("HTTP/1.1 403"));
  // What has no row is nobody's.
  EXPECT_THAT(Get("/v1/other", bearer("ann")), StartsWith("HTTP/1.1 403"));
  EXPECT_THAT(Get("/v1/other"), StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(Exchange(http_->address(),
                       "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n"
                       "Expect: 100-continue\r\n\r\n"),
              StartsWith("HTTP/1.1 401"));
  EXPECT_EQ(http_calls_, 0);
  EXPECT_THAT(Get("/v1/models?a=b", bearer("rob")), HasSubstr("you are 'rob'"));
  EXPECT_THAT(Get("/healthz"), HasSubstr("you are ''"));
}

TEST_F(SecurityTest, TakesTokensInAndOutWithoutARestart) {
  Start(Tokens());
  const auto channel = Connect({.token_file = Path("rob.token")});
  EXPECT_EQ(Call(channel).value(), "rob");
  const std::string next = NewAuthToken().value();
  // A file that does not fit changes nothing.
  WriteFileAs("tokens", "rubbish", 0644);
  EXPECT_TRUE(
      Eventually([&] { return Metric("quern_security_reloads_total{outcome=\"failed\"}") == 1; }));
  EXPECT_EQ(Call(channel).value(), "rob");
  WriteFileAs("tokens", AuthTokenLine({"rob", {Role::kReader}}, next, absl::InfiniteFuture()),
              0644);
  EXPECT_TRUE(Eventually([&] { return !Call(channel).ok(); }));
  EXPECT_THAT(Call(channel), StatusIs(StatusCode::kUnauthenticated, testing::_));
  // The client reads its file again too.
  WriteFileAs("rob.token", next, 0600);
  EXPECT_EQ(Call(channel).value(), "rob");
}

TEST_F(SecurityTest, ServesANewCertificateWithoutARestart) {
  Start(Tls());
  const TlsClientFiles h2{.ca = Path("ca.crt"), .alpn = "\x02h2"};
  const std::string before = TlsGet("/", {.ca = Path("ca.crt")}).certificate;
  EXPECT_NE(before, "");
  const auto channel = Connect({.tls_ca = Path("ca.crt")});
  ASSERT_OK(Call(channel).status());
  const std::string after = ca_.Issue(directory_.path(), "server", "the server again");
  EXPECT_NE(before, after);
  EXPECT_TRUE(Eventually([&] { return TlsGet("/", {.ca = Path("ca.crt")}).certificate == after; }));
  EXPECT_TRUE(Eventually([&] {
    // gRPC's own listener: the handshake is all that is asked of it.
    return TlsExchange(server_->address(), "no HTTP/2\r\n\r\n", h2).certificate == after;
  }));
  // Connections that are there live on, and new ones are served.
  EXPECT_OK(Call(channel).status());
  EXPECT_OK(Call(Connect({.tls_ca = Path("ca.crt")})).status());
}

TEST_F(SecurityTest, RefusesFilesThatDoNotFit) {
  const auto expect = [&](const SecurityConfig& config, StatusCode code, const std::string& what) {
    EXPECT_THAT(Security::Open(config, registry_), StatusIs(code, HasSubstr(what)));
  };
  SecurityConfig config = Tls();
  config.tls_key = Path("reader.key");
  expect(config, StatusCode::kInvalidArgument, "is not the key of the certificate");
  config.tls_key = Path("server.crt");
  chmod(config.tls_key.c_str(), 0600);
  expect(config, StatusCode::kInvalidArgument, "private key");
  config.tls_key = Path("server.key");
  chmod(config.tls_key.c_str(), 0644);
  expect(config, StatusCode::kFailedPrecondition, "0644");
  chmod(config.tls_key.c_str(), 0600);
  config.tls_cert = Path("tokens");
  expect(config, StatusCode::kInvalidArgument, "tokens: wanted certificates");
  config.tls_cert = Path("none");
  expect(config, StatusCode::kNotFound, "none");
  config = MutualTls();
  config.tls_client_ca = Path("server.key");
  expect(config, StatusCode::kInvalidArgument, "server.key: wanted certificates");
  config = Tokens();
  chmod(config.auth_tokens.c_str(), 0666);
  expect(config, StatusCode::kFailedPrecondition, "others may change it");
}

TEST_F(SecurityTest, ClientsSendNoTokenInTheClear) {
  EXPECT_THAT(MakeChannelCredentials("--jobs", "10.0.0.1:7400", {.token_file = Path("rob.token")}),
              StatusIs(StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("--jobs: 10.0.0.1:7400"), HasSubstr("--tls-ca"))));
  EXPECT_OK(MakeChannelCredentials("--jobs", "10.0.0.1:7400",
                                   {.tls_ca = Path("ca.crt"), .token_file = Path("rob.token")}));
  EXPECT_THAT(MakeChannelCredentials("--jobs", "127.0.0.1:1", {.token_file = Path("none")}),
              StatusIs(StatusCode::kNotFound, HasSubstr("--token-file")));
  EXPECT_THAT(MakeChannelCredentials("--jobs", "127.0.0.1:1", {.tls_ca = Path("none")}),
              StatusIs(StatusCode::kNotFound, HasSubstr("--tls-ca")));
  EXPECT_THAT(MakeChannelCredentials("--jobs", "127.0.0.1:1",
                                     {.tls_ca = Path("ca.crt"), .tls_cert = Path("reader.crt")}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("--tls-key")));
}

TEST_F(SecurityTest, MetricsArePlainOnLoopbackAndUnderTheRuleElsewhere) {
  ASSERT_OK_AND_ASSIGN(security_, Security::Open(TlsAndTokens(), registry_));
  MetricsEndpointOptions options;
  options.security = security_.get();
  {
    ASSERT_OK_AND_ASSIGN(const auto endpoint, MetricsEndpoint::Start(options, registry_));
    EXPECT_THAT(HttpGet(endpoint->address(), "/metrics"), StartsWith("HTTP/1.1 200"));
  }
  options.listen = "0.0.0.0:0";
  ASSERT_OK_AND_ASSIGN(const auto endpoint, MetricsEndpoint::Start(options, registry_));
  const auto get = [&](const std::string& path, const std::string& headers) {
    return TlsExchange(endpoint->address(),
                       absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: x\r\n", headers,
                                    "Connection: close\r\n\r\n"),
                       {.ca = Path("ca.crt")})
        .bytes;
  };
  EXPECT_THAT(HttpGet(endpoint->address(), "/metrics"), Not(HasSubstr("HTTP/1.1 2")));
  EXPECT_THAT(get("/healthz", ""), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(get("/metrics", ""), StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(get("/metrics", absl::StrCat("Authorization: Bearer ", tokens_["rob"], "\r\n")),
              StartsWith("HTTP/1.1 200"));
}

// What is in the policy, is somewhere. That all that is somewhere is in the policy, the tests of
// the servers ask.
TEST(PolicyTest, EachRpcOfTheTableExists) {
  // So that they are linked.
  for (const google::protobuf::Descriptor* message :
       {artifact::v1::Artifact::descriptor(), inference::v1::Model::descriptor(),
        quantization::v1::QuantizationJob::descriptor(), worker::v1::Lease::descriptor()}) {
    ASSERT_NE(message, nullptr);
  }
  for (const PolicyRow& row : RpcPolicy()) {
    // These two are gRPC's own, whose descriptors it does not show.
    if (absl::StartsWith(row.target, "/grpc.")) continue;
    std::string name(row.target.substr(1));
    name.replace(name.find('/'), 1, ".");
    EXPECT_NE(google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(name), nullptr)
        << row.target;
  }
}

}  // namespace
}  // namespace quern
