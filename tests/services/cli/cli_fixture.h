#ifndef QUERN_TESTS_SERVICES_CLI_CLI_FIXTURE_H_
#define QUERN_TESTS_SERVICES_CLI_CLI_FIXTURE_H_

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/server_interceptor.h>
#include <quern/artifact/v1/artifact_service.grpc.pb.h>
#include <quern/inference/v1/inference_service.grpc.pb.h>
#include <quern/quantization/v1/quantization_service.grpc.pb.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/base/mutex.h"
#include "core/base/subprocess.h"
#include "services/common/grpc_hand_over.h"
#include "tests/support/eventually.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"

namespace quern {

// What the test did comes before the calls of the program that it starts, and they before what it
// does once the program has ended; a sanitizer cannot see that through the program.
inline const char program_runs = 0;

class OrderCalls final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo*) override {
    AcquireFromGrpc(&program_runs);
    return new Call;
  }

 private:
  class Call final : public grpc::experimental::Interceptor {
    void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
      if (methods->QueryInterceptionHookPoint(
              grpc::experimental::InterceptionHookPoints::PRE_SEND_STATUS)) {
        ReleaseToGrpc(&program_runs);
      }
      methods->Proceed();
    }
  };
};

// quern-jobs and quern-inference as far as the command line sees them: each answers what the test
// put in, and keeps what it was asked. Set answers before the program runs.
class FakeServices final : public quantization::v1::QuantizationService::Service,
                           public artifact::v1::ArtifactService::Service,
                           public inference::v1::ModelService::Service,
                           public inference::v1::InferenceService::Service {
 public:
  using Job = quantization::v1::QuantizationJob;

  FakeServices() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(static_cast<quantization::v1::QuantizationService::Service*>(this));
    builder.RegisterService(static_cast<artifact::v1::ArtifactService::Service*>(this));
    builder.RegisterService(static_cast<inference::v1::ModelService::Service*>(this));
    builder.RegisterService(static_cast<inference::v1::InferenceService::Service*>(this));
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> creators;
    creators.push_back(std::make_unique<OrderCalls>());
    builder.experimental().SetInterceptorCreators(std::move(creators));
    server_ = builder.BuildAndStart();
  }
  ~FakeServices() override { server_->Shutdown(std::chrono::system_clock::now()); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  // Answers.
  Job job;
  std::vector<quantization::v1::JobEvent> events;
  std::atomic<bool> watch_stays_open = false;
  artifact::v1::Artifact artifact;
  std::map<std::string, std::string> files;
  inference::v1::Model model;
  std::vector<inference::v1::GenerateTextResponse> pieces;
  std::atomic<bool> generation_stays_open = false;
  grpc::Status failure;

  // What was asked.
  quantization::v1::CreateQuantizationJobRequest created_job;
  inference::v1::CreateModelRequest created_model;
  inference::v1::Alias alias;
  inference::v1::UpdateAliasRequest updated_alias;
  // A copy, since the program may be asking while the test looks.
  inference::v1::GenerateTextRequest generated() {
    MutexLock lock(&mutex_);
    return generated_;
  }
  std::atomic<int> num_cancelled_jobs = 0;
  std::atomic<int> num_deleted = 0;
  std::atomic<bool> open = false;  // a stream that stays open is
  std::atomic<bool> client_left = false;

  grpc::Status CreateQuantizationJob(grpc::ServerContext*,
                                     const quantization::v1::CreateQuantizationJobRequest* request,
                                     Job* response) override {
    created_job = *request;
    *response = job;
    return failure;
  }
  grpc::Status GetQuantizationJob(grpc::ServerContext*,
                                  const quantization::v1::GetQuantizationJobRequest* request,
                                  Job* response) override {
    if (request->name() != job.name()) {
      return grpc::Status(grpc::StatusCode::NOT_FOUND, request->name() + " is not there");
    }
    *response = job;
    return failure;
  }
  grpc::Status ListQuantizationJobs(
      grpc::ServerContext*, const quantization::v1::ListQuantizationJobsRequest*,
      quantization::v1::ListQuantizationJobsResponse* response) override {
    *response->add_quantization_jobs() = job;
    return failure;
  }
  grpc::Status CancelQuantizationJob(grpc::ServerContext*,
                                     const quantization::v1::CancelQuantizationJobRequest*,
                                     Job* response) override {
    ++num_cancelled_jobs;
    *response = job;
    response->set_state(Job::CANCELLING);
    return failure;
  }
  grpc::Status DeleteQuantizationJob(grpc::ServerContext*,
                                     const quantization::v1::DeleteQuantizationJobRequest*,
                                     google::protobuf::Empty*) override {
    ++num_deleted;
    return failure;
  }
  grpc::Status WatchQuantizationJob(
      grpc::ServerContext* context, const quantization::v1::WatchQuantizationJobRequest* request,
      grpc::ServerWriter<quantization::v1::JobEvent>* writer) override {
    for (const auto& event : events) {
      if (event.sequence() > request->after_sequence()) writer->Write(event);
    }
    if (watch_stays_open) StayOpen(context);
    return failure;
  }

  grpc::Status GetArtifact(grpc::ServerContext*, const artifact::v1::GetArtifactRequest*,
                           artifact::v1::Artifact* response) override {
    *response = artifact;
    return failure;
  }
  grpc::Status ListArtifacts(grpc::ServerContext*, const artifact::v1::ListArtifactsRequest*,
                             artifact::v1::ListArtifactsResponse* response) override {
    *response->add_artifacts() = artifact;
    return failure;
  }
  grpc::Status DeleteArtifact(grpc::ServerContext*, const artifact::v1::DeleteArtifactRequest*,
                              google::protobuf::Empty*) override {
    ++num_deleted;
    return failure;
  }
  grpc::Status ReadArtifactFile(
      grpc::ServerContext*, const artifact::v1::ReadArtifactFileRequest* request,
      grpc::ServerWriter<artifact::v1::ReadArtifactFileResponse>* writer) override {
    artifact::v1::ReadArtifactFileResponse response;
    response.set_chunk(files[request->path()]);
    writer->Write(response);
    return failure;
  }

  grpc::Status CreateModel(grpc::ServerContext*, const inference::v1::CreateModelRequest* request,
                           inference::v1::Model* response) override {
    created_model = *request;
    *response = model;
    response->set_state(inference::v1::Model::LOADING);
    return failure;
  }
  grpc::Status GetModel(grpc::ServerContext*, const inference::v1::GetModelRequest*,
                        inference::v1::Model* response) override {
    *response = model;
    return failure;
  }
  grpc::Status ListModels(grpc::ServerContext*, const inference::v1::ListModelsRequest*,
                          inference::v1::ListModelsResponse* response) override {
    *response->add_models() = model;
    return failure;
  }
  grpc::Status DeleteModel(grpc::ServerContext*, const inference::v1::DeleteModelRequest*,
                           google::protobuf::Empty*) override {
    ++num_deleted;
    return failure;
  }
  // A token for each byte.
  grpc::Status CountTokens(grpc::ServerContext*, const inference::v1::CountTokensRequest* request,
                           inference::v1::CountTokensResponse* response) override {
    response->set_token_count(static_cast<int>(request->text().size()));
    return failure;
  }
  grpc::Status GetAlias(grpc::ServerContext*, const inference::v1::GetAliasRequest*,
                        inference::v1::Alias* response) override {
    *response = alias;
    return failure;
  }
  grpc::Status UpdateAlias(grpc::ServerContext*, const inference::v1::UpdateAliasRequest* request,
                           inference::v1::Alias* response) override {
    updated_alias = *request;
    *response = request->alias();
    return failure;
  }
  grpc::Status DeleteAlias(grpc::ServerContext*, const inference::v1::DeleteAliasRequest*,
                           google::protobuf::Empty*) override {
    ++num_deleted;
    return failure;
  }
  grpc::Status StreamGenerateText(
      grpc::ServerContext* context, const inference::v1::GenerateTextRequest* request,
      grpc::ServerWriter<inference::v1::GenerateTextResponse>* writer) override {
    {
      MutexLock lock(&mutex_);
      generated_ = *request;
    }
    for (const auto& piece : pieces) writer->Write(piece);
    if (generation_stays_open) StayOpen(context);
    return failure;
  }

 private:
  void StayOpen(grpc::ServerContext* context) {
    open = true;
    while (!context->IsCancelled()) PauseBetweenLooks();
    client_left = true;
  }

  Mutex mutex_;
  inference::v1::GenerateTextRequest generated_ ABSL_GUARDED_BY(mutex_);
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// Runs build/bin/quern against the fakes, with a state directory of its own.
class CliTest : public testing::Test {
 protected:
  struct Result {
    int exit_code = -1;
    std::string output;
    std::string error;
  };

  void SetUp() override {
    const char* bin = std::getenv("QUERN_BIN_DIR");
    if (bin == nullptr) GTEST_SKIP() << "QUERN_BIN_DIR is not set; ctest sets it";
    program_ = std::string(bin) + "/quern";
  }

  std::unique_ptr<Subprocess> Start(const std::vector<std::string>& arguments) {
    std::vector<std::string> argv = {program_};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    ReleaseToGrpc(&program_runs);
    auto process = Subprocess::Start({.argv = argv,
                                      .environment = {{"XDG_STATE_HOME", directory_.path()}},
                                      .capture_output = true,
                                      .capture_error = true});
    EXPECT_OK(process);
    return *std::move(process);
  }
  static Result Finish(Subprocess& process) {
    Result result;
    const absl::Time limit = absl::Now() + absl::Minutes(1);
    const auto drain = [&](auto read, std::string* text) {
      while (true) {
        const absl::StatusOr<std::optional<std::string>> line = read();
        ASSERT_OK(line);
        if (!line->has_value()) return;
        absl::StrAppend(text, **line, "\n");
      }
    };
    drain([&] { return process.ReadLine(limit); }, &result.output);
    drain([&] { return process.ReadErrorLine(limit); }, &result.error);
    const absl::StatusOr<ExitStatus> status = process.Wait(limit);
    EXPECT_OK(status);
    AcquireFromGrpc(&program_runs);
    if (status.ok() && status->signal == 0) result.exit_code = status->exit_code;
    return result;
  }
  Result Run(const std::vector<std::string>& arguments) { return Finish(*Start(arguments)); }
  // With the fakes' addresses.
  std::vector<std::string> Connected(std::vector<std::string> arguments) const {
    arguments.push_back("--jobs=" + services_.address());
    arguments.push_back("--inference=" + services_.address());
    return arguments;
  }
  Result RunConnected(const std::vector<std::string>& arguments) {
    return Run(Connected(arguments));
  }
  // The one JSON document on standard output.
  Json RunJson(std::vector<std::string> arguments) {
    arguments.push_back("--json");
    const Result result = RunConnected(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.error;
    const absl::StatusOr<Json> json = ParseJson(result.output, "output");
    EXPECT_OK(json);
    return json.value_or(Json());
  }

  const TempDirectory directory_;
  FakeServices services_;
  std::string program_;
};

}  // namespace quern

#endif  // QUERN_TESTS_SERVICES_CLI_CLI_FIXTURE_H_
