// Aliases and the health of models, through gRPC.

#include <grpc/health/v1/health.grpc.pb.h>

#include <atomic>
#include <thread>

#include "tests/services/inference/inference_fixture.h"

namespace quern {
namespace {

using inference::v1::Alias;
using testing::ElementsAre;
using testing::HasSubstr;

class AliasesTest : public InferenceServerTest {
 protected:
  absl::StatusOr<Alias> CreateAlias(const std::string& id, const std::string& model) {
    Context context;
    inference::v1::CreateAliasRequest request;
    request.set_alias_id(id);
    request.mutable_alias()->set_model(model);
    Alias alias;
    const grpc::Status status = models_->CreateAlias(&context, request, &alias);
    if (!status.ok()) return FromGrpcStatus(status);
    return alias;
  }
  absl::StatusOr<Alias> GetAlias(const std::string& id) {
    Context context;
    inference::v1::GetAliasRequest request;
    request.set_name("aliases/" + id);
    Alias alias;
    const grpc::Status status = models_->GetAlias(&context, request, &alias);
    if (!status.ok()) return FromGrpcStatus(status);
    return alias;
  }
  absl::Status DeleteAlias(const std::string& id, const std::string& etag = "") {
    Context context;
    inference::v1::DeleteAliasRequest request;
    request.set_name("aliases/" + id);
    request.set_etag(etag);
    google::protobuf::Empty response;
    return FromGrpcStatus(models_->DeleteAlias(&context, request, &response));
  }
  std::string Health(const std::string& name) {
    Context context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(name);
    grpc::health::v1::HealthCheckResponse response;
    const grpc::Status status =
        grpc::health::v1::Health::NewStub(channel_)->Check(&context, request, &response);
    if (!status.ok()) return status.error_message();
    return grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status());
  }
};

TEST_F(AliasesTest, StandsForAModelWhereverAModelIsNamed) {
  LoadTiny();
  ASSERT_OK_AND_ASSIGN(const Alias alias, CreateAlias("prod", "models/tiny"));
  EXPECT_EQ(alias.name(), "aliases/prod");
  EXPECT_EQ(alias.model(), "models/tiny");
  EXPECT_EQ(alias.update_time().seconds(), absl::ToUnixSeconds(clock_.Now()));
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse direct, Generate(Request("Once", 20, "tiny")));
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse named, Generate(Request("Once", 20, "prod")));
  EXPECT_EQ(named.text(), direct.text());
  EXPECT_EQ(named.system_fingerprint(), direct.system_fingerprint());
  Context context;
  inference::v1::CountTokensRequest count;
  count.set_model("models/prod");
  count.set_text("Once");
  inference::v1::CountTokensResponse counted;
  EXPECT_OK(FromGrpcStatus(inference_->CountTokens(&context, count, &counted)));
  ASSERT_OK_AND_ASSIGN(const Model root, Get("prod"));
  EXPECT_EQ(root.name(), "models/tiny");
  EXPECT_THAT(root.aliases(), ElementsAre("aliases/prod"));
}

TEST_F(AliasesTest, SwapDisturbsNoStreamAndTheOldModelGoesAfterIt) {
  LoadLong();
  LoadTiny();
  ASSERT_OK(SetAlias("prod", "long"));
  const GenerateTextRequest request = Request("Once upon", 600, "prod");
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse undisturbed, Generate(request));

  Context context;
  auto reader = inference_->StreamGenerateText(&context, request);
  std::vector<GenerateTextResponse> messages(1);
  ASSERT_TRUE(reader->Read(&messages.back()));
  ASSERT_OK(SetAlias("prod", "tiny"));
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse now, Generate(Request("Once", 5, "prod")));
  EXPECT_NE(now.system_fingerprint(), undisturbed.system_fingerprint());
  absl::Status deleted = absl::UnknownError("not yet");
  std::thread deleter([&] { deleted = Delete("long"); });
  GenerateTextResponse message;
  while (reader->Read(&message)) messages.push_back(message);
  EXPECT_OK(FromGrpcStatus(reader->Finish()));
  EXPECT_EQ(Joined(messages).token_ids_size(), undisturbed.token_ids_size());
  EXPECT_EQ(Joined(messages).text(), undisturbed.text());
  EXPECT_EQ(Joined(messages).system_fingerprint(), undisturbed.system_fingerprint());
  deleter.join();
  EXPECT_OK(deleted);
  EXPECT_OK(Generate(Request("Once", 5, "prod")));
}

TEST_F(AliasesTest, RequestsDuringSwapsAndUnloadsAllEndWell) {
  LoadTiny();
  ASSERT_OK(SetAlias("prod", "tiny"));
  std::atomic<bool> stop = false;
  std::atomic<int> served = 0;
  absl::Status failure;
  std::thread client([&] {
    while (!stop) {
      const auto response = Generate(Request("Once", 2, "prod"));
      if (!response.ok()) failure = response.status();
      ++served;
    }
  });
  std::string old = "tiny";
  for (int i = 0; i < 6; ++i) {
    const std::string next = absl::StrCat("v", i);
    EXPECT_EQ(Load(CheckpointRequest(next, "tiny")).state(), Model::ACTIVE);
    EXPECT_OK(SetAlias("prod", next));
    EXPECT_OK(Delete(old));
    old = next;
  }
  stop = true;
  client.join();
  EXPECT_OK(failure);
  EXPECT_GT(served, 0);
}

TEST_F(AliasesTest, AStaleEtagIsRefused) {
  LoadTiny();
  LoadLong();
  ASSERT_OK_AND_ASSIGN(const Alias first, SetAlias("prod", "tiny"));
  ASSERT_OK_AND_ASSIGN(const Alias second, SetAlias("prod", "long", first.etag()));
  EXPECT_NE(first.etag(), second.etag());
  EXPECT_THAT(SetAlias("prod", "long", first.etag()),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("models/long now")));
  EXPECT_THAT(DeleteAlias("prod", first.etag()), StatusIs(absl::StatusCode::kAborted, testing::_));
  ASSERT_OK_AND_ASSIGN(const Alias read, GetAlias("prod"));
  EXPECT_EQ(read.etag(), second.etag());
  ASSERT_OK(DeleteAlias("prod", read.etag()));
  EXPECT_THAT(GetAlias("prod"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("aliases/prod")));
  EXPECT_THAT(SetAlias("prod", "long", first.etag()),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("deleted")));
  EXPECT_THAT(Generate(Request("Once", 5, "prod")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("models/prod")));
}

TEST_F(AliasesTest, BadOnesAreRefused) {
  LoadTiny();
  EXPECT_THAT(CreateAlias("Prod", "models/tiny"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("alias_id")));
  EXPECT_THAT(CreateAlias("prod", "tiny"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("models/{model}")));
  EXPECT_THAT(CreateAlias("prod", "models/none"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("models/none")));
  EXPECT_THAT(CreateAlias("tiny", "models/tiny"),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("is a model")));
  ASSERT_OK(CreateAlias("prod", "models/tiny"));
  EXPECT_THAT(CreateAlias("prod", "models/tiny"),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("for models/tiny")));
  EXPECT_THAT(CreateAlias("other", "models/prod"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("an alias itself")));
  EXPECT_THAT(Create(CheckpointRequest("prod", "tiny")),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("alias of models/tiny")));
  EXPECT_EQ(Load(ArtifactRequest("bad", "artifacts/" + std::string(64, '0'))).state(),
            Model::FAILED);
  EXPECT_THAT(SetAlias("prod", "bad"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("FAILED")));
  Context context;
  inference::v1::UpdateAliasRequest update;
  update.mutable_alias()->set_name("aliases/none");
  update.mutable_alias()->set_model("models/tiny");
  Alias alias;
  EXPECT_THAT(FromGrpcStatus(models_->UpdateAlias(&context, update, &alias)),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("aliases/none")));
  for (int i = 1; i < kMaxAliases; ++i) ASSERT_OK(SetAlias(absl::StrCat("a", i), "tiny"));
  EXPECT_THAT(SetAlias("more", "tiny"),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("at most 64")));
  Context list_context;
  inference::v1::ListAliasesRequest list;
  list.set_page_size(2);
  inference::v1::ListAliasesResponse listed;
  ASSERT_OK(FromGrpcStatus(models_->ListAliases(&list_context, list, &listed)));
  ASSERT_EQ(listed.aliases_size(), 2);
  EXPECT_EQ(listed.next_page_token(), "a10");
}

TEST_F(AliasesTest, AModelThatOneStandsForIsKept) {
  LoadTiny();
  ASSERT_OK(SetAlias("prod", "tiny"));
  ASSERT_OK(SetAlias("beta", "tiny"));
  EXPECT_THAT(Delete("tiny"), StatusIs(absl::StatusCode::kFailedPrecondition,
                                       HasSubstr("aliases/beta, aliases/prod")));
  EXPECT_THAT(Delete("prod", true), StatusIs(absl::StatusCode::kFailedPrecondition,
                                             HasSubstr("an alias of models/tiny")));
  EXPECT_OK(Generate(Request("Once", 5, "prod")));
  ASSERT_OK(Delete("tiny", true));
  EXPECT_THAT(GetAlias("prod"), StatusIs(absl::StatusCode::kNotFound, testing::_));
}

TEST_F(AliasesTest, ARestartHasThemAgain) {
  LoadTiny();
  LoadLong();
  ASSERT_OK(SetAlias("gone", "tiny"));
  ASSERT_OK(DeleteAlias("gone"));
  ASSERT_OK_AND_ASSIGN(const Alias before, SetAlias("prod", "tiny"));
  clock_.Advance(absl::Hours(1));
  Start();
  EXPECT_EQ(WaitForLoad("tiny").state(), Model::ACTIVE);
  ASSERT_OK_AND_ASSIGN(const Alias after, GetAlias("prod"));
  EXPECT_EQ(after.SerializeAsString(), before.SerializeAsString());
  EXPECT_THAT(GetAlias("gone"), StatusIs(absl::StatusCode::kNotFound, testing::_));
  EXPECT_OK(Generate(Request("Once", 5, "prod")));
}

TEST_F(AliasesTest, ADamagedListStopsTheStart) {
  server_.reset();
  const std::string path = directory_.Path("cache/models.json");
  const auto with = [](const std::string& aliases) {
    return absl::StrCat(R"({"models":[{"id":"a","checkpoint":"tiny"}],"aliases":)", aliases, "}");
  };
  const std::string valid = R"({"id":"p","model":"a","update_time":1})";
  for (const std::string& aliases :
       {std::string("{}"), std::string("[1]"), absl::StrCat("[", valid, ",", valid, "]"),
        std::string(R"([{"id":"p","model":"b","update_time":1}])"),
        std::string(R"([{"id":"a","model":"a","update_time":1}])"),
        std::string(R"([{"id":"P","model":"a","update_time":1}])"),
        std::string(R"([{"id":"p","model":"a"}])"),
        std::string(R"([{"id":"p","model":"a","update_time":-1}])")}) {
    OverwriteFile(path, with(aliases));
    const auto server = InferenceServer::Start(config_, clock_);
    EXPECT_THAT(server, StatusIs(absl::StatusCode::kDataLoss, HasSubstr("models.json"))) << aliases;
  }
  OverwriteFile(path, with(absl::StrCat("[", valid, "]")));
  Start();
  EXPECT_EQ(WaitForLoad("p").state(), Model::ACTIVE);
}

TEST_F(AliasesTest, HealthIsKnownByModelAndAlias) {
  const std::string artifact = PublishArtifact();
  artifacts_.Hold();
  ASSERT_OK(Create(ArtifactRequest("m", artifact)));
  EXPECT_EQ(Health("models/m"), "NOT_SERVING");
  EXPECT_EQ(Health(""), "SERVING");
  artifacts_.Release();
  EXPECT_EQ(WaitForLoad("m").state(), Model::ACTIVE);
  EXPECT_EQ(Health("models/m"), "SERVING");
  ASSERT_OK(SetAlias("prod", "m"));
  EXPECT_EQ(Health("models/prod"), "SERVING");
  ASSERT_OK(Delete("m", true));
  EXPECT_EQ(Health("models/m"), "NOT_SERVING");
  EXPECT_EQ(Health("models/prod"), "NOT_SERVING");
}

}  // namespace
}  // namespace quern
