#include <thread>

#include "tests/services/inference/inference_fixture.h"

namespace quern {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

constexpr char kWeights[] = "model.safetensors";

class ModelsTest : public InferenceServerTest {};

TEST_F(ModelsTest, PullsAnArtifactAndServesIt) {
  const std::string artifact = PublishArtifact();
  artifacts_.Hold();
  ASSERT_OK_AND_ASSIGN(const Model loading, Create(ArtifactRequest("m", artifact)));
  EXPECT_EQ(loading.state(), Model::LOADING);
  EXPECT_EQ(loading.name(), "models/m");
  EXPECT_THAT(Generate(Request("Once", 5, "m")),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("still being loaded")));
  artifacts_.Release();
  const Model model = WaitForLoad("m");
  ASSERT_EQ(model.state(), Model::ACTIVE) << model.failure_message();
  EXPECT_EQ(model.artifact(), artifact);
  EXPECT_GT(model.memory_bytes(), 0);
  EXPECT_EQ(model.create_time().seconds(), absl::ToUnixSeconds(clock_.Now()));
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse response, Generate(Request("Once", 5, "m")));
  EXPECT_EQ(response.system_fingerprint().substr(0, 13), artifact.substr(10, 12) + "-");

  // From the cache now.
  EXPECT_EQ(Load(ArtifactRequest("again", artifact)).state(), Model::ACTIVE);
  EXPECT_THAT(artifacts_.Reads(kWeights), SizeIs(1));
}

TEST_F(ModelsTest, AnArtifactBelowTheModelRootIsServedFromThere) {
  const std::string artifact = PublishArtifact();
  std::filesystem::rename(directory_.Path("artifact-1"), directory_.Path("models/imported"));
  const Model model = Load(CheckpointRequest("m", "imported"));
  ASSERT_EQ(model.state(), Model::ACTIVE) << model.failure_message();
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse response, Generate(Request("Once", 5, "m")));
  EXPECT_EQ(response.system_fingerprint().substr(0, 13), artifact.substr(10, 12) + "-");
  EXPECT_THAT(artifacts_.Reads(kWeights), SizeIs(0));
  OverwriteFile(directory_.Path("models/imported/model.safetensors"), "short");
  EXPECT_EQ(Load(CheckpointRequest("damaged", "imported")).state(), Model::FAILED);
}

TEST_F(ModelsTest, CacheServesWithoutQuernJobs) {
  const std::string artifact = PublishArtifact();
  EXPECT_EQ(Load(ArtifactRequest("m", artifact)).state(), Model::ACTIVE);
  config_.jobs = "";
  Start();
  EXPECT_EQ(WaitForLoad("m").state(), Model::ACTIVE);
  const Model other = Load(ArtifactRequest("n", "artifacts/" + std::string(64, '0')));
  EXPECT_EQ(other.state(), Model::FAILED);
  EXPECT_THAT(other.failure_message(), HasSubstr("--jobs"));
}

TEST_F(ModelsTest, ARestartLoadsTheModelsAgain) {
  const std::string artifact = PublishArtifact();
  EXPECT_EQ(Load(ArtifactRequest("packed", artifact)).state(), Model::ACTIVE);
  LoadTiny();
  EXPECT_EQ(Load(CheckpointRequest("gone", "long")).state(), Model::ACTIVE);
  ASSERT_OK(Delete("gone"));
  EXPECT_EQ(Load(CheckpointRequest("failing", "long")).state(), Model::ACTIVE);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse before, Generate(Request("Once", 5, "packed")));
  std::filesystem::remove_all(directory_.Path("models/long"));

  Start();
  EXPECT_EQ(WaitForLoad("packed").state(), Model::ACTIVE);
  EXPECT_EQ(WaitForLoad("packed").artifact(), artifact);
  EXPECT_EQ(WaitForLoad("tiny").state(), Model::ACTIVE);
  EXPECT_THAT(Get("gone"), StatusIs(absl::StatusCode::kNotFound, testing::_));
  EXPECT_EQ(WaitForLoad("failing").state(), Model::FAILED);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse after, Generate(Request("Once", 5, "packed")));
  EXPECT_EQ(after.text(), before.text());

  // A failed one can be deleted, and then stays away.
  ASSERT_OK(Delete("failing"));
  Start();
  EXPECT_THAT(Get("failing"), StatusIs(absl::StatusCode::kNotFound, testing::_));
}

TEST_F(ModelsTest, TheKvCacheTypeIsChosenAtLoadAndKept) {
  inference::v1::CreateModelRequest request = CheckpointRequest("small", "tiny");
  request.mutable_model()->set_kv_cache_type(Model::INT4);
  const Model small = Load(request);
  ASSERT_EQ(small.state(), Model::ACTIVE) << small.failure_message();
  EXPECT_EQ(small.kv_cache_type(), Model::INT4);
  EXPECT_GT(small.kv_cache_kl(), 0);
  EXPECT_LT(small.kv_cache_kl(), 0.1);
  LoadTiny();
  EXPECT_EQ(WaitForLoad("tiny").kv_cache_type(), Model::FLOAT16);
  EXPECT_FALSE(WaitForLoad("tiny").has_kv_cache_kl());
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse before, Generate(Request("Once", 150, "small")));
  EXPECT_THAT(before.system_fingerprint(), testing::EndsWith("-kv-int4"));

  // A restart keeps both, whatever is now the default.
  config_.kv_cache_type = "int8";
  Start();
  EXPECT_EQ(WaitForLoad("tiny").kv_cache_type(), Model::FLOAT16);
  EXPECT_EQ(WaitForLoad("small").kv_cache_type(), Model::INT4);
  EXPECT_EQ(WaitForLoad("small").kv_cache_kl(), small.kv_cache_kl());
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse after, Generate(Request("Once", 150, "small")));
  EXPECT_EQ(after.text(), before.text());
  EXPECT_EQ(Load(CheckpointRequest("other", "tiny")).kv_cache_type(), Model::INT8);
  EXPECT_THAT(Scrape(), HasSubstr("kv_cache_type=\"int4\",model=\"small\"} 1"));
}

TEST_F(ModelsTest, SpeculationIsChosenAtLoadAndKept) {
  const std::string artifact = PublishArtifact();
  EXPECT_EQ(Load(ArtifactRequest("plain", artifact)).state(), Model::ACTIVE);
  inference::v1::CreateModelRequest request = ArtifactRequest("drafted", artifact);
  request.mutable_model()->mutable_speculation()->set_max_guesses(3);
  request.mutable_model()->mutable_speculation()->set_draft_artifact(artifact);
  const Model drafted = Load(request);
  ASSERT_EQ(drafted.state(), Model::ACTIVE) << drafted.failure_message();
  EXPECT_EQ(drafted.speculation().max_guesses(), 3);
  EXPECT_GT(drafted.memory_bytes(), WaitForLoad("plain").memory_bytes());
  inference::v1::CreateModelRequest lookup = ArtifactRequest("lookup", artifact);
  lookup.mutable_model()->mutable_speculation()->set_max_guesses(7);
  ASSERT_EQ(Load(lookup).state(), Model::ACTIVE);

  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse plain, Generate(Request("Once", 100, "plain")));
  EXPECT_EQ(Metric("quern_speculation_guessed_tokens_total"), 0);
  const auto expect_same = [&](const char* id) {
    ASSERT_OK_AND_ASSIGN(const GenerateTextResponse response, Generate(Request("Once", 100, id)));
    EXPECT_EQ(response.text(), plain.text());
    EXPECT_EQ(response.system_fingerprint(), plain.system_fingerprint());
  };
  expect_same("drafted");
  expect_same("lookup");
  // The draft is the model itself, so that it is always right, but where an answer ends.
  const double guessed = Metric("quern_speculation_guessed_tokens_total");
  EXPECT_GT(guessed, 50);
  EXPECT_GT(Metric("quern_speculation_accepted_tokens_total"), 0);
  EXPECT_LE(Metric("quern_speculation_accepted_tokens_total"), guessed);

  Start();
  EXPECT_FALSE(WaitForLoad("plain").has_speculation());
  EXPECT_EQ(WaitForLoad("lookup").speculation().max_guesses(), 7);
  EXPECT_EQ(WaitForLoad("lookup").speculation().draft_artifact(), "");
  EXPECT_EQ(WaitForLoad("drafted").speculation().draft_artifact(), artifact);
  expect_same("drafted");
  EXPECT_GT(Metric("quern_speculation_guessed_tokens_total"), 50);
}

TEST_F(ModelsTest, ADraftThatIsNotThereFailsTheLoad) {
  inference::v1::CreateModelRequest request = ArtifactRequest("m", PublishArtifact());
  request.mutable_model()->mutable_speculation()->set_max_guesses(3);
  request.mutable_model()->mutable_speculation()->set_draft_artifact("artifacts/" +
                                                                     std::string(64, '0'));
  const Model model = Load(request);
  EXPECT_EQ(model.state(), Model::FAILED);
  EXPECT_THAT(model.failure_message(), HasSubstr("the draft model: "));
}

TEST_F(ModelsTest, ADamagedListStopsTheStart) {
  server_.reset();
  const std::string path = directory_.Path("cache/models.json");
  const std::string valid = R"({"checkpoint":"tiny","id":"a"})";
  for (const std::string& text :
       {std::string("{"), std::string("[]"), std::string(R"({"models":{}})"),
        std::string(R"({"models":[{"id":"a"}]})"),
        std::string(R"({"models":[{"id":"A","checkpoint":"t"}]})"),
        std::string(R"({"models":[{"id":"a","checkpoint":"t","kv_cache_type":"int3"}]})"),
        std::string(R"({"models":[{"id":"a","artifact":"artifacts/0"}]})"),
        std::string(R"({"models":[{"id":"a","checkpoint":"t","speculation":{}}]})"),
        std::string(R"({"models":[{"id":"a","checkpoint":"t","speculation":{"max_guesses":8}}]})"),
        std::string(R"({"models":[{"id":"a","checkpoint":"t",)"
                    R"("speculation":{"max_guesses":1,"draft_artifact":"x"}}]})"),
        absl::StrCat(R"({"models":[)", valid, ",", valid, "]}"), std::string(2 << 20, ' ')}) {
    OverwriteFile(path, text);
    const auto server = InferenceServer::Start(config_, clock_);
    EXPECT_FALSE(server.ok()) << text.substr(0, 100);
    EXPECT_THAT(server.status().message(), HasSubstr("models.json"));
  }
  OverwriteFile(path, absl::StrCat(R"({"models":[)", valid, "]}"));
  Start();
  EXPECT_EQ(WaitForLoad("a").state(), Model::ACTIVE);
}

TEST_F(ModelsTest, ConcurrentLoadsPullOnce) {
  const std::string artifact = PublishArtifact();
  artifacts_.Hold();
  for (const char* id : {"a", "b", "c"}) EXPECT_OK(Create(ArtifactRequest(id, artifact)));
  artifacts_.Release();
  for (const char* id : {"a", "b", "c"}) EXPECT_EQ(WaitForLoad(id).state(), Model::ACTIVE);
  EXPECT_THAT(artifacts_.Reads(kWeights), SizeIs(1));
}

TEST_F(ModelsTest, BrokenPullGoesOnWhereItStopped) {
  const std::string artifact = PublishArtifact();
  artifacts_.BreakReads(kWeights, 2);
  const Model model = Load(ArtifactRequest("m", artifact));
  ASSERT_EQ(model.state(), Model::ACTIVE) << model.failure_message();
  const std::vector<int64_t> offsets = artifacts_.Reads(kWeights);
  ASSERT_THAT(offsets, SizeIs(3));
  EXPECT_EQ(offsets[0], 0);
  EXPECT_LT(offsets[0], offsets[1]);
  EXPECT_LT(offsets[1], offsets[2]);
}

TEST_F(ModelsTest, CancelledPullIsTakenUpAfterARestart) {
  const std::string artifact = PublishArtifact();
  const std::string partial = directory_.Path("cache/partial/" + artifact.substr(10));
  // What a server that died in the middle leaves: a good half of the weights.
  const std::string weights =
      ReadFile(directory_.Path("artifact-1/model.safetensors"), 1 << 24).value();
  ASSERT_OK(CreateDirectories(partial));
  OverwriteFile(partial + "/model.safetensors.part", weights.substr(0, weights.size() / 2));
  const Model model = Load(ArtifactRequest("m", artifact));
  ASSERT_EQ(model.state(), Model::ACTIVE) << model.failure_message();
  EXPECT_THAT(artifacts_.Reads(kWeights), ElementsAre(weights.size() / 2));
}

TEST_F(ModelsTest, DamagedPartIsThrownAway) {
  const std::string artifact = PublishArtifact();
  const std::string partial = directory_.Path("cache/partial/" + artifact.substr(10));
  ASSERT_OK(CreateDirectories(partial));
  OverwriteFile(partial + "/model.safetensors.part", "not the start of it");
  const Model failed = Load(ArtifactRequest("m", artifact));
  EXPECT_EQ(failed.state(), Model::FAILED);
  EXPECT_THAT(failed.failure_message(), HasSubstr("SHA-256"));
  // A FAILED model may be replaced, and now the pull starts afresh.
  EXPECT_EQ(Load(ArtifactRequest("m", artifact)).state(), Model::ACTIVE);
}

TEST_F(ModelsTest, DamageOnTheWayIsRefused) {
  const std::string artifact = PublishArtifact();
  artifacts_.Damage(artifact, kWeights, 5000);
  const Model model = Load(ArtifactRequest("m", artifact));
  EXPECT_EQ(model.state(), Model::FAILED);
  EXPECT_THAT(model.failure_message(), HasSubstr("model.safetensors: SHA-256"));
  EXPECT_THAT(Generate(Request("Once", 5, "m")),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("SHA-256")));
  EXPECT_FALSE(std::filesystem::exists(directory_.Path("cache/artifacts/" + artifact.substr(10))));
  EXPECT_OK(Delete("m"));
  EXPECT_THAT(Get("m"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("models/m")));
}

TEST_F(ModelsTest, EachKindOfWrongFileIsRefused) {
  const std::string artifact = PublishArtifact();
  const auto original = [&](const std::string& path) {
    return ReadFile(directory_.Path("artifact-1/" + path), 1 << 24).value();
  };
  const auto expect = [&](const char* wanted) {
    const Model model = Load(ArtifactRequest("m", artifact));
    EXPECT_EQ(model.state(), Model::FAILED) << wanted;
    EXPECT_THAT(model.failure_message(), HasSubstr(wanted));
  };
  artifacts_.Damage(artifact, std::string(kManifestName), 20);
  expect("the SHA-256 of the manifest");
  artifacts_.SetFile(artifact, std::string(kManifestName), original("manifest.json"));
  artifacts_.SetFile(artifact, kWeights, original(kWeights).substr(0, 100));
  expect("bytes came, the manifest says");
  artifacts_.SetFile(artifact, kWeights, original(kWeights) + "x");
  expect("more than the");
  artifacts_.SetFile(artifact, kWeights, original(kWeights));
  EXPECT_EQ(Load(ArtifactRequest("m", artifact)).state(), Model::ACTIVE);
}

TEST_F(ModelsTest, DamageInTheCacheIsHealed) {
  const std::string artifact = PublishArtifact();
  EXPECT_EQ(Load(ArtifactRequest("m", artifact)).state(), Model::ACTIVE);
  EXPECT_OK(Delete("m"));
  const std::string cached =
      directory_.Path("cache/artifacts/" + artifact.substr(10) + "/model.safetensors");
  std::string bytes = ReadFile(cached, 1 << 24).value();
  bytes[bytes.size() - 7] ^= 4;
  OverwriteFile(cached, bytes);
  EXPECT_EQ(Load(ArtifactRequest("m", artifact)).state(), Model::ACTIVE);
  EXPECT_THAT(artifacts_.Reads(kWeights), SizeIs(2));
}

TEST_F(ModelsTest, UnknownArtifactFails) {
  const Model model = Load(ArtifactRequest("m", "artifacts/" + std::string(64, '0')));
  EXPECT_EQ(model.state(), Model::FAILED);
  EXPECT_THAT(model.failure_message(), HasSubstr("NOT_FOUND"));
}

TEST_F(ModelsTest, DamagedCheckpointFails) {
  std::filesystem::create_directories(directory_.Path("models/bad"));
  OverwriteFile(directory_.Path("models/bad/config.json"), "{");
  const Model model = Load(CheckpointRequest("m", "bad"));
  EXPECT_EQ(model.state(), Model::FAILED);
  EXPECT_THAT(model.failure_message(), HasSubstr("config.json"));
}

TEST_F(ModelsTest, DeleteCancelsALoad) {
  const std::string artifact = PublishArtifact();
  artifacts_.Hold();
  EXPECT_OK(Create(ArtifactRequest("m", artifact)));
  EXPECT_TRUE(Eventually([&] { return !artifacts_.Reads(std::string(kManifestName)).empty(); }));
  EXPECT_OK(Delete("m"));
  EXPECT_THAT(Get("m"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("models/m")));
  artifacts_.Release();
  EXPECT_EQ(Load(ArtifactRequest("m", artifact)).state(), Model::ACTIVE);
}

TEST_F(ModelsTest, UnloadWaitsForWhatStreams) {
  LoadLong();
  Context context;
  auto reader = inference_->StreamGenerateText(&context, Request("Once upon", 600, "long"));
  GenerateTextResponse message;
  ASSERT_TRUE(reader->Read(&message));
  absl::Status deleted = absl::UnknownError("not yet");
  std::thread deleter([&] { deleted = Delete("long"); });
  EXPECT_TRUE(Eventually([&] {
    const auto model = Get("long");
    return !model.ok() || model->state() == Model::DELETING;
  }));
  EXPECT_FALSE(Generate(Request("Once", 5, "long")).ok());
  std::vector<GenerateTextResponse> messages = {message};
  while (reader->Read(&message)) messages.push_back(message);
  EXPECT_OK(FromGrpcStatus(reader->Finish()));
  EXPECT_TRUE(messages.back().has_usage());
  deleter.join();
  EXPECT_OK(deleted);
  EXPECT_THAT(Get("long"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("models/long")));
  EXPECT_EQ(Metric("quern_kv_pages{state=\"free\"}"), 0);
}

TEST_F(ModelsTest, ServesTwoModelsAtOnce) {
  LoadTiny();
  LoadLong();
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse a, Generate(Request("Once", 20, "tiny")));
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse b, Generate(Request("Once", 20, "long")));
  EXPECT_NE(a.text(), b.text());
  EXPECT_NE(a.system_fingerprint(), b.system_fingerprint());
}

TEST_F(ModelsTest, ListsInPages) {
  for (const char* id : {"b", "c", "a"}) Load(CheckpointRequest(id, "tiny"));
  std::vector<std::string> names;
  inference::v1::ListModelsRequest request;
  request.set_page_size(2);
  do {
    Context context;
    inference::v1::ListModelsResponse response;
    ASSERT_OK(FromGrpcStatus(models_->ListModels(&context, request, &response)));
    EXPECT_LE(response.models_size(), 2);
    for (const Model& model : response.models()) names.push_back(model.name());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_THAT(names, ElementsAre("models/a", "models/b", "models/c"));
}

TEST_F(ModelsTest, HoldsABoundedNumber) {
  for (int i = 0; i < kMaxModels; ++i) {
    EXPECT_OK(Create(ArtifactRequest(absl::StrCat("m", i), "artifacts/" + std::string(64, '0'))));
  }
  EXPECT_THAT(Create(CheckpointRequest("more", "tiny")),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("at most 16")));
}

}  // namespace
}  // namespace quern
