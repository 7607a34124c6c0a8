// Which models are in memory: the budget, eviction, loading again, and what scale deltas share.

#include <thread>

#include "core/artifact/scale_delta.h"
#include "tests/services/inference/inference_fixture.h"

namespace quern {
namespace {

using testing::AllOf;

using testing::HasSubstr;

constexpr auto kExhausted = absl::StatusCode::kResourceExhausted;
constexpr char kReserved[] = "quern_model_memory_reserved_bytes";
constexpr char kLoadsByRequest[] = "quern_model_loads_total{cause=\"request\"}";
constexpr char kIdleEvictions[] = "quern_model_evictions_total{reason=\"idle\"}";
constexpr char kMemoryEvictions[] = "quern_model_evictions_total{reason=\"memory\"}";

class ResidencyTest : public InferenceServerTest {
 protected:
  // Starts again with room for `models` of the size of what is in memory now.
  void RestartWithRoomFor(double models) {
    const double mib = Metric(kReserved) * models / (1 << 20);
    ASSERT_GT(mib, 1);
    config_.model_memory_mib = static_cast<int>(mib) + 1;
    Start();
  }
  void UnloadAfter(absl::Duration timeout) {
    config_.idle_model_timeout = timeout;
    Start();
  }
  Model::State StateOf(const std::string& id) { return Get(id)->state(); }
  bool BecomesIdle(const std::string& id) {
    // Again: the last request may end a moment after its answer.
    return Eventually([&] {
      clock_.Advance(absl::Hours(1));
      return StateOf(id) == Model::IDLE;
    });
  }

  // A scale delta of PublishArtifact(1), offered to pulls; the model that it means is `tuned_`.
  std::string PublishDelta() {
    base_name_ = PublishArtifact();
    const LoadedArtifact base = LoadArtifact(directory_.Path("artifact-1")).value();
    tuned_ = base.model;
    PackedTensor& matrix = tuned_.matrices.at("model.layers.0.mlp.up_proj.weight");
    std::vector<float> scales = UnpackScales(matrix);
    for (float& scale : scales) scale *= 4;
    matrix = WithScales(matrix, scales).value();
    EXPECT_OK(WriteScaleDelta(base, tuned_, base.manifest.lineage, directory_.Path("delta")));
    return artifacts_.Add(directory_.Path("delta"));
  }

  std::string base_name_;
  PackedModel tuned_;
};

TEST_F(ResidencyTest, RefusesAModelThatDoesNotFit) {
  LoadTiny();
  RestartWithRoomFor(1.5);
  EXPECT_EQ(WaitForLoad("tiny").state(), Model::ACTIVE);
  EXPECT_EQ(Metric("quern_model_memory_budget_bytes"), config_.model_memory_mib * 1048576.0);
  EXPECT_THAT(Create(CheckpointRequest("b", "tiny")),
              StatusIs(kExhausted, AllOf(HasSubstr("models/b needs"), HasSubstr("KV pages"),
                                         HasSubstr("are free; unload one of models/tiny ("),
                                         HasSubstr("unused"))));
  EXPECT_THAT(Get("b"), StatusIs(absl::StatusCode::kNotFound, testing::_));
  ASSERT_OK(Delete("tiny"));
  EXPECT_EQ(Metric(kReserved), 0);
  EXPECT_EQ(Load(CheckpointRequest("b", "tiny")).state(), Model::ACTIVE);
}

TEST_F(ResidencyTest, ParallelLoadsAreAdmittedOneByOne) {
  EXPECT_EQ(Load(ArtifactRequest("measure", PublishArtifact(1))).state(), Model::ACTIVE);
  RestartWithRoomFor(2.5);
  EXPECT_EQ(WaitForLoad("measure").state(), Model::ACTIVE);
  ASSERT_OK(Delete("measure"));
  artifacts_.Hold();
  // What they need is known only when they have been pulled.
  for (int i = 2; i <= 4; ++i) {
    ASSERT_OK(Create(ArtifactRequest(absl::StrCat("m", i), PublishArtifact(i))));
  }
  artifacts_.Release();
  int num_active = 0;
  for (int i = 2; i <= 4; ++i) {
    const Model model = WaitForLoad(absl::StrCat("m", i));
    if (model.state() == Model::ACTIVE) {
      ++num_active;
    } else {
      EXPECT_THAT(model.failure_message(), HasSubstr("RESOURCE_EXHAUSTED"));
    }
  }
  EXPECT_EQ(num_active, 2);
}

TEST_F(ResidencyTest, EvictsTheLongestUnused) {
  LoadTiny();
  config_.evict_idle_models = true;
  RestartWithRoomFor(2.5);
  EXPECT_EQ(WaitForLoad("tiny").state(), Model::ACTIVE);
  clock_.Advance(absl::Minutes(1));
  EXPECT_EQ(Load(CheckpointRequest("b", "tiny")).state(), Model::ACTIVE);
  clock_.Advance(absl::Minutes(1));
  ASSERT_OK(Generate(Request("Once", 5, "tiny")));
  EXPECT_EQ(Load(CheckpointRequest("c", "tiny")).state(), Model::ACTIVE);
  EXPECT_EQ(StateOf("b"), Model::IDLE);
  EXPECT_EQ(StateOf("tiny"), Model::ACTIVE);
  EXPECT_EQ(Metric(kMemoryEvictions), 1);

  // It comes back, in the place of another.
  clock_.Advance(absl::Minutes(1));
  ASSERT_OK(Generate(Request("Once", 5, "c")));
  ASSERT_OK(Generate(Request("Once", 5, "b")));
  EXPECT_EQ(StateOf("b"), Model::ACTIVE);
  EXPECT_EQ(StateOf("tiny"), Model::IDLE);
  EXPECT_EQ(Metric(kMemoryEvictions), 2);
  EXPECT_LE(Metric(kReserved), config_.model_memory_mib * 1048576.0);
}

TEST_F(ResidencyTest, AModelInUseIsNotEvicted) {
  LoadLong();
  config_.evict_idle_models = true;
  RestartWithRoomFor(1);
  EXPECT_EQ(WaitForLoad("long").state(), Model::ACTIVE);
  Context context;
  auto reader = inference_->StreamGenerateText(&context, Request("Once upon", 12000, "long"));
  GenerateTextResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_THAT(Create(CheckpointRequest("tiny", "tiny")),
              StatusIs(kExhausted, AllOf(HasSubstr("models/long ("), HasSubstr("in use"))));
  context.TryCancel();
  while (reader->Read(&message)) continue;
  EXPECT_THAT(FromGrpcStatus(reader->Finish()), StatusIs(absl::StatusCode::kCancelled, testing::_));
}

TEST_F(ResidencyTest, AnIdleModelLeavesMemoryAndComesBack) {
  UnloadAfter(absl::Milliseconds(100));
  LoadTiny();
  ASSERT_OK(SetAlias("prod", "tiny"));
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse before, Generate(Request()));
  ASSERT_TRUE(BecomesIdle("tiny"));
  EXPECT_EQ(Get("tiny")->memory_bytes(), 0);
  EXPECT_TRUE(Eventually([&] { return Metric(kReserved) == 0; }));
  EXPECT_EQ(Metric("quern_kv_pages{state=\"free\"}"), 0);
  EXPECT_EQ(Metric(kIdleEvictions), 1);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse after,
                       Generate(Request("Once upon a time", 20, "prod")));
  EXPECT_EQ(after.text(), before.text());
  EXPECT_EQ(StateOf("tiny"), Model::ACTIVE);
  EXPECT_GT(Get("tiny")->memory_bytes(), 0);
  EXPECT_EQ(Metric(kLoadsByRequest), 1);

  // It is known while it is away: to OpenAI's clients, for counting, for an alias, to be unloaded.
  ASSERT_TRUE(BecomesIdle("tiny"));
  EXPECT_THAT(HttpGet(server_->http_address(), "/v1/models"), HasSubstr("\"id\":\"prod\""));
  ASSERT_OK(SetAlias("other", "tiny"));
  Context context;
  inference::v1::CountTokensRequest count;
  count.set_model("models/tiny");
  count.set_text("Once");
  inference::v1::CountTokensResponse counted;
  EXPECT_OK(FromGrpcStatus(inference_->CountTokens(&context, count, &counted)));
  ASSERT_TRUE(BecomesIdle("tiny"));
  ASSERT_OK(Delete("tiny", true));
  EXPECT_THAT(Get("tiny"), StatusIs(absl::StatusCode::kNotFound, testing::_));
}

TEST_F(ResidencyTest, ManyRequestsCauseOneLoad) {
  UnloadAfter(absl::Milliseconds(100));
  const std::string artifact = PublishArtifact();
  EXPECT_EQ(Load(ArtifactRequest("m", artifact)).state(), Model::ACTIVE);
  ASSERT_TRUE(BecomesIdle("m"));
  // It has to be pulled again, and that takes until Release.
  std::filesystem::remove_all(directory_.Path("cache/artifacts"));
  std::filesystem::create_directories(directory_.Path("cache/artifacts"));
  artifacts_.Hold();
  constexpr int kNumClients = 8;
  std::atomic<int> num_good = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < kNumClients; ++i) {
    clients.emplace_back([&] { num_good += Generate(Request("Once", 5, "m")).ok() ? 1 : 0; });
  }
  EXPECT_TRUE(Eventually([&] { return StateOf("m") == Model::LOADING; }));
  // One that does not want to wait that long.
  grpc::ClientContext hasty;
  hasty.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  GenerateTextResponse response;
  EXPECT_EQ(inference_->GenerateText(&hasty, Request("Once", 5, "m"), &response).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(num_good, 0);
  artifacts_.Release();
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(num_good, kNumClients);
  EXPECT_EQ(Metric(kLoadsByRequest), 1);
}

TEST_F(ResidencyTest, AShutdownSendsWhoWaitsAway) {
  UnloadAfter(absl::Milliseconds(100));
  EXPECT_EQ(Load(ArtifactRequest("m", PublishArtifact())).state(), Model::ACTIVE);
  ASSERT_TRUE(BecomesIdle("m"));
  std::filesystem::remove_all(directory_.Path("cache/artifacts"));
  std::filesystem::create_directories(directory_.Path("cache/artifacts"));
  artifacts_.Hold();
  absl::Status waited;
  std::thread client([&] { waited = Generate(Request("Once", 5, "m")).status(); });
  EXPECT_TRUE(Eventually([&] { return StateOf("m") == Model::LOADING; }));
  server_.reset();
  client.join();
  EXPECT_THAT(waited, StatusIs(absl::StatusCode::kUnavailable, testing::_));
}

TEST_F(ResidencyTest, ALoadThatFailsSaysSoToWhoWaited) {
  UnloadAfter(absl::Milliseconds(100));
  EXPECT_EQ(Load(CheckpointRequest("gone", "long")).state(), Model::ACTIVE);
  ASSERT_TRUE(BecomesIdle("gone"));
  std::filesystem::remove_all(directory_.Path("models/long"));
  EXPECT_THAT(Generate(Request("Once", 5, "gone")),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("could not be loaded")));
  EXPECT_EQ(StateOf("gone"), Model::FAILED);

  // What may go better later leaves the model as it was.
  EXPECT_EQ(Load(ArtifactRequest("m", PublishArtifact())).state(), Model::ACTIVE);
  ASSERT_TRUE(BecomesIdle("m"));
  std::filesystem::remove_all(directory_.Path("cache/artifacts"));
  std::filesystem::create_directories(directory_.Path("cache/artifacts"));
  artifacts_.BreakReads("manifest.json", 1);
  EXPECT_THAT(Generate(Request("Once", 5, "m")),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("could not be loaded again now")));
  EXPECT_EQ(StateOf("m"), Model::IDLE);
  EXPECT_OK(Generate(Request("Once", 5, "m")));
}

TEST_F(ResidencyTest, ADeltaIsServedOnTopOfABaseThatIsNot) {
  const std::string delta = PublishDelta();
  const Model model = Load(ArtifactRequest("tuned", delta));
  ASSERT_EQ(model.state(), Model::ACTIVE) << model.failure_message();
  EXPECT_EQ(model.artifact(), delta);
  EXPECT_EQ(model.base_artifact(), base_name_);
  EXPECT_EQ(model.shared_memory_bytes(), 0);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse tuned, Generate(Request("Once", 20, "tuned")));
  EXPECT_EQ(tuned.system_fingerprint().substr(0, 12), delta.substr(10, 12));

  // The same model as a whole artifact, and the base: this one alone is another model.
  ASSERT_OK(WriteArtifact(tuned_, LoadArtifact(directory_.Path("artifact-1"))->manifest.lineage,
                          directory_.Path("whole")));
  EXPECT_EQ(Load(ArtifactRequest("whole", artifacts_.Add(directory_.Path("whole")))).state(),
            Model::ACTIVE);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse whole, Generate(Request("Once", 20, "whole")));
  EXPECT_EQ(tuned.text(), whole.text());
  EXPECT_EQ(Load(ArtifactRequest("base", base_name_)).state(), Model::ACTIVE);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse base, Generate(Request("Once", 20, "base")));
  EXPECT_NE(tuned.text(), base.text());
  // From the cache.
  EXPECT_EQ(artifacts_.Reads("delta.safetensors").size(), 1u);
}

TEST_F(ResidencyTest, ADeltaSharesWhatItLeavesAsItIs) {
  const std::string delta = PublishDelta();
  const Model base = Load(ArtifactRequest("base", base_name_));
  const Model model = Load(ArtifactRequest("tuned", delta));
  ASSERT_EQ(model.state(), Model::ACTIVE) << model.failure_message();
  EXPECT_GT(model.shared_memory_bytes(), 0);
  EXPECT_LT(model.shared_memory_bytes(), model.memory_bytes());
  EXPECT_EQ(Metric("quern_model_bytes{kind=\"shared\",model=\"tuned\"}"),
            model.shared_memory_bytes());
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse before, Generate(Request("Once", 20, "tuned")));
  ASSERT_OK(Delete("base"));
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse after, Generate(Request("Once", 20, "tuned")));
  EXPECT_EQ(after.text(), before.text());
}

TEST_F(ResidencyTest, ADeltaWithoutItsBaseIsRefused) {
  const std::string delta = PublishDelta();
  artifacts_.SetFile(base_name_, "manifest.json", "{}");
  const Model model = Load(ArtifactRequest("tuned", delta));
  EXPECT_EQ(model.state(), Model::FAILED);
  EXPECT_THAT(model.failure_message(),
              AllOf(HasSubstr("the base of scale delta"), HasSubstr(base_name_.substr(10))));
}

TEST_F(ResidencyTest, ADamagedDeltaInTheCacheIsPulledAgain) {
  const std::string delta = PublishDelta();
  EXPECT_EQ(Load(ArtifactRequest("tuned", delta)).state(), Model::ACTIVE);
  ASSERT_OK(Delete("tuned"));
  const std::string path =
      directory_.Path("cache/artifacts/" + delta.substr(10) + "/delta.safetensors");
  std::string bytes = ReadFile(path, 1 << 24).value();
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  OverwriteFile(path, bytes);
  EXPECT_EQ(Load(ArtifactRequest("tuned", delta)).state(), Model::ACTIVE);
  EXPECT_EQ(artifacts_.Reads("delta.safetensors").size(), 2u);
}

}  // namespace
}  // namespace quern
