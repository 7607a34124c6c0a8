#ifndef QUERN_TESTS_SERVICES_INFERENCE_INFERENCE_FIXTURE_H_
#define QUERN_TESTS_SERVICES_INFERENCE_INFERENCE_FIXTURE_H_

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <grpcpp/grpcpp.h>
#include <quern/artifact/v1/artifact_service.grpc.pb.h>
#include <quern/inference/v1/inference_service.grpc.pb.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/artifact/pack.h"
#include "core/base/mutex.h"
#include "services/common/status.h"
#include "services/inference/inference_server.h"
#include "tests/services/common/http_client.h"
#include "tests/support/eventually.h"
#include "tests/support/fake_clock.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"
#include "tests/support/tiny_model.h"

namespace quern {

using inference::v1::GenerateTextRequest;
using inference::v1::GenerateTextResponse;
using inference::v1::InferenceService;
using inference::v1::Model;
using inference::v1::ModelService;

// The tiny model at 4 bits. Another seed, another artifact.
inline PackedModel TinyPackedModel(uint64_t seed = 1) {
  const TinyModelOptions options{.seed = seed};
  PackedModel model;
  model.config = TinyModelConfig(options);
  model.format = {.bits = 4, .group_size = 64};
  model.tokenizer_json = TinyTokenizerJson(options.vocab_size);
  model.chat_template = TinyChatTemplate();
  for (const auto& [name, tensor] : TinyModelWeights(options)) {
    if (tensor.shape.size() == 1) {
      model.vectors[name] = tensor.values;
      continue;
    }
    const bool block = name.find("layers") != std::string::npos;
    model.matrices[name] =
        RoundToNearest(tensor.values, static_cast<int>(tensor.shape[0]),
                       static_cast<int>(tensor.shape[1]), block ? 4 : 8, 64, false)
            .value();
  }
  return model;
}

// quern-jobs' side of a pull: files of artifacts from memory, with faults on demand. Thread-safe.
class FakeArtifactService final : public artifact::v1::ArtifactService::Service {
 public:
  FakeArtifactService() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeArtifactService() override { server_->Shutdown(std::chrono::system_clock::now()); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  // Serves the files of an artifact directory; returns the artifact's name.
  std::string Add(const std::string& directory) {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      files[entry.path().filename()] = ReadFile(entry.path().string(), 64 << 20).value();
    }
    const std::string name =
        absl::StrCat("artifacts/", Sha256Hex(files.at(std::string(kManifestName))));
    MutexLock lock(&mutex_);
    artifacts_[name] = std::move(files);
    return name;
  }

  // Changes one byte of a file.
  void Damage(const std::string& name, const std::string& path, size_t offset) {
    MutexLock lock(&mutex_);
    artifacts_.at(name).at(path)[offset] ^= 1;
  }
  void SetFile(const std::string& name, const std::string& path, const std::string& bytes) {
    MutexLock lock(&mutex_);
    artifacts_.at(name)[path] = bytes;
  }
  // The next `times` reads of a file break off with UNAVAILABLE after half of what they would send.
  void BreakReads(const std::string& path, int times) {
    MutexLock lock(&mutex_);
    breaks_[path] = times;
  }
  // Reads wait until Release, or until the caller is gone.
  void Hold() { held_ = true; }
  void Release() { held_ = false; }

  // Offsets that reads of `path` started at.
  std::vector<int64_t> Reads(const std::string& path) {
    MutexLock lock(&mutex_);
    return reads_[path];
  }

  grpc::Status ReadArtifactFile(
      grpc::ServerContext* context, const artifact::v1::ReadArtifactFileRequest* request,
      grpc::ServerWriter<artifact::v1::ReadArtifactFileResponse>* writer) override {
    std::string bytes;
    bool breaks = false;
    {
      MutexLock lock(&mutex_);
      reads_[request->path()].push_back(request->offset_bytes());
      const auto artifact = artifacts_.find(request->name());
      if (artifact == artifacts_.end()) {
        return grpc::Status(grpc::StatusCode::NOT_FOUND, request->name() + " is not stored");
      }
      const auto file = artifact->second.find(request->path());
      if (file == artifact->second.end()) {
        return grpc::Status(grpc::StatusCode::NOT_FOUND, request->path() + " is not in it");
      }
      bytes = file->second.substr(request->offset_bytes());
      breaks = breaks_[request->path()] > 0;
      if (breaks) --breaks_[request->path()];
    }
    while (held_ && !context->IsCancelled()) PauseBetweenLooks();
    if (breaks) bytes.resize(bytes.size() / 2);
    constexpr size_t kChunkBytes = 10'000;
    for (size_t offset = 0; offset < bytes.size(); offset += kChunkBytes) {
      artifact::v1::ReadArtifactFileResponse response;
      response.set_chunk(bytes.substr(offset, kChunkBytes));
      if (!writer->Write(response)) break;
    }
    if (breaks) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going away");
    return grpc::Status::OK;
  }

 private:
  int port_ = 0;
  std::atomic<bool> held_ = false;
  Mutex mutex_;
  std::map<std::string, std::map<std::string, std::string>> artifacts_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int> breaks_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::vector<int64_t>> reads_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::Server> server_;
};

// quern-inference in this process on free loopback ports, with two tiny checkpoints below the model
// root: "tiny" (a context of 256 tokens) and "long" (16,384).
class InferenceServerTest : public testing::Test {
 protected:
  static constexpr int kContext = 256;

  InferenceServerTest() {
    std::filesystem::create_directories(directory_.Path("models"));
    EXPECT_OK(WriteTinyCheckpoint(directory_.Path("models/tiny")));
    EXPECT_OK(WriteTinyCheckpoint(directory_.Path("models/long"),
                                  {.max_position_embeddings = 16384, .seed = 7}));
    config_.listen = "127.0.0.1:0";
    config_.http_listen = "127.0.0.1:0";
    config_.metrics_listen = "127.0.0.1:0";
    config_.jobs = artifacts_.address();
    config_.cache_directory = directory_.Path("cache");
    config_.model_root = directory_.Path("models");
    config_.threads = 1;
    config_.kv_cache_mib = 32;
    Start();
  }

  // Also again: a restart on the same cache.
  void Start() {
    server_.reset();
    auto server = InferenceServer::Start(config_, clock_);
    ASSERT_OK(server);
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(server_->grpc_address(), grpc::InsecureChannelCredentials());
    inference_ = InferenceService::NewStub(channel_);
    models_ = ModelService::NewStub(channel_);
  }

  // A context with a deadline, so that a test that hangs fails.
  struct Context : grpc::ClientContext {
    Context() { set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120)); }
  };

  absl::StatusOr<Model> Create(const inference::v1::CreateModelRequest& request) {
    Context context;
    Model model;
    const grpc::Status status = models_->CreateModel(&context, request, &model);
    if (!status.ok()) return FromGrpcStatus(status);
    return model;
  }
  static inference::v1::CreateModelRequest CheckpointRequest(const std::string& id,
                                                             const std::string& path) {
    inference::v1::CreateModelRequest request;
    request.set_model_id(id);
    request.mutable_model()->set_checkpoint(path);
    return request;
  }
  static inference::v1::CreateModelRequest ArtifactRequest(const std::string& id,
                                                           const std::string& artifact) {
    inference::v1::CreateModelRequest request;
    request.set_model_id(id);
    request.mutable_model()->set_artifact(artifact);
    return request;
  }
  absl::StatusOr<Model> Get(const std::string& id) {
    Context context;
    inference::v1::GetModelRequest request;
    request.set_name("models/" + id);
    Model model;
    const grpc::Status status = models_->GetModel(&context, request, &model);
    if (!status.ok()) return FromGrpcStatus(status);
    return model;
  }
  absl::Status Delete(const std::string& id, bool force = false) {
    Context context;
    inference::v1::DeleteModelRequest request;
    request.set_name("models/" + id);
    request.set_force(force);
    google::protobuf::Empty response;
    return FromGrpcStatus(models_->DeleteModel(&context, request, &response));
  }
  absl::StatusOr<inference::v1::Alias> SetAlias(const std::string& id, const std::string& model,
                                                const std::string& etag = "") {
    Context context;
    inference::v1::UpdateAliasRequest request;
    request.set_allow_missing(true);
    request.mutable_alias()->set_name("aliases/" + id);
    request.mutable_alias()->set_model("models/" + model);
    request.mutable_alias()->set_etag(etag);
    inference::v1::Alias alias;
    const grpc::Status status = models_->UpdateAlias(&context, request, &alias);
    if (!status.ok()) return FromGrpcStatus(status);
    return alias;
  }
  // The model when it is no longer LOADING.
  Model WaitForLoad(const std::string& id) {
    Model model;
    EXPECT_TRUE(Eventually([&] {
      const absl::StatusOr<Model> found = Get(id);
      EXPECT_OK(found);
      if (!found.ok()) return true;
      model = *found;
      return model.state() != Model::LOADING;
    }));
    return model;
  }
  Model Load(const inference::v1::CreateModelRequest& request) {
    EXPECT_OK(Create(request));
    return WaitForLoad(request.model_id());
  }
  void LoadTiny() { EXPECT_EQ(Load(CheckpointRequest("tiny", "tiny")).state(), Model::ACTIVE); }
  void LoadLong() { EXPECT_EQ(Load(CheckpointRequest("long", "long")).state(), Model::ACTIVE); }

  // Writes an artifact and offers it to pulls; returns its name.
  std::string PublishArtifact(uint64_t seed = 1) {
    const std::string path = directory_.Path(absl::StrCat("artifact-", seed));
    EXPECT_OK(WriteArtifact(TinyPackedModel(seed),
                            {.checkpoint_digest = std::string(64, 'a'),
                             .task_digest = std::string(64, 'b'),
                             .calibration_digest = "",
                             .quern_version = "0.1.0"},
                            path));
    return artifacts_.Add(path);
  }

  static GenerateTextRequest Request(const std::string& prompt = "Once upon a time",
                                     int max_output_tokens = 20, const std::string& id = "tiny") {
    GenerateTextRequest request;
    request.set_model("models/" + id);
    request.set_prompt(prompt);
    request.set_max_output_tokens(max_output_tokens);
    // Greedy; set, so that two answers agree in every field.
    request.mutable_sampling()->set_seed(1);
    return request;
  }
  absl::StatusOr<GenerateTextResponse> Generate(const GenerateTextRequest& request) {
    Context context;
    GenerateTextResponse response;
    const grpc::Status status = inference_->GenerateText(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }
  // All messages of a stream.
  absl::StatusOr<std::vector<GenerateTextResponse>> Stream(const GenerateTextRequest& request) {
    Context context;
    auto reader = inference_->StreamGenerateText(&context, request);
    std::vector<GenerateTextResponse> messages;
    GenerateTextResponse message;
    while (reader->Read(&message)) messages.push_back(message);
    const grpc::Status status = reader->Finish();
    if (!status.ok()) return FromGrpcStatus(status);
    return messages;
  }
  // A stream's messages as the one that the unary call would give.
  static GenerateTextResponse Joined(const std::vector<GenerateTextResponse>& messages) {
    GenerateTextResponse joined = messages.back();
    joined.clear_text();
    joined.clear_token_ids();
    for (const GenerateTextResponse& message : messages) {
      joined.mutable_text()->append(message.text());
      joined.mutable_token_ids()->MergeFrom(message.token_ids());
    }
    return joined;
  }

  std::string Scrape() { return HttpGet(server_->metrics_address(), "/metrics"); }
  double Metric(const std::string& series) { return ScrapedValue(Scrape(), series); }

  const TempDirectory directory_;
  FakeArtifactService artifacts_;
  FakeClock clock_;
  InferenceConfig config_;
  std::unique_ptr<InferenceServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<InferenceService::Stub> inference_;
  std::unique_ptr<ModelService::Stub> models_;
};

}  // namespace quern

#endif  // QUERN_TESTS_SERVICES_INFERENCE_INFERENCE_FIXTURE_H_
