#ifndef QUERN_TESTS_SERVICES_JOBS_JOBS_FIXTURE_H_
#define QUERN_TESTS_SERVICES_JOBS_JOBS_FIXTURE_H_

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <grpcpp/grpcpp.h>
#include <quern/artifact/v1/artifact_service.grpc.pb.h>
#include <quern/quantization/v1/quantization_service.grpc.pb.h>
#include <quern/worker/v1/worker_service.grpc.pb.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "services/common/status.h"
#include "services/jobs/jobs_server.h"
#include "tests/core/artifact/fixture.h"
#include "tests/services/common/http_client.h"
#include "tests/support/eventually.h"
#include "tests/support/fake_clock.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {

using artifact::v1::ArtifactService;
using quantization::v1::JobEvent;
using quantization::v1::QuantizationJob;
using quantization::v1::QuantizationService;
using worker::v1::WorkerService;

// quern-jobs in this process, on free loopback ports, over a fake clock; with a tiny checkpoint
// "tiny" below the model root and a text "text.txt" below the data root.
class JobsServerTest : public testing::Test {
 protected:
  using Job = QuantizationJob;

  JobsServerTest() {
    std::filesystem::create_directories(directory_ / "models");
    std::filesystem::create_directories(directory_ / "data");
    WriteAll(directory_ / "data/text.txt", "Some text to calibrate on.\n");
    EXPECT_OK(WriteTinyCheckpoint(directory_ / "models/tiny"));
    config_.listen = "127.0.0.1:0";
    config_.metrics_listen = "127.0.0.1:0";
    config_.data_directory = directory_ / "jobs";
    config_.model_root = directory_ / "models";
    config_.data_root = directory_ / "data";
    config_.reap_interval = absl::Milliseconds(5);
    config_.disk_reserve_bytes = 0;
    config_.drain_grace = absl::Seconds(10);
    Start();
  }

  // Also again: what an orderly restart does.
  void Start() {
    if (server_ != nullptr) server_->Shutdown();
    server_.reset();
    auto server = JobsServer::Start(config_, clock_);
    ASSERT_OK(server);
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(server_->grpc_address(), grpc::InsecureChannelCredentials());
    jobs_ = QuantizationService::NewStub(channel_);
    worker_ = WorkerService::NewStub(channel_);
    artifacts_ = ArtifactService::NewStub(channel_);
  }

  // A context with a deadline, so that a test that hangs fails.
  struct Context : grpc::ClientContext {
    Context() { set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60)); }
  };

  static quantization::v1::CreateQuantizationJobRequest CreateRequest() {
    quantization::v1::CreateQuantizationJobRequest request;
    auto& task = *request.mutable_quantization_job()->mutable_quantize();
    task.mutable_checkpoint()->set_path("tiny");
    task.mutable_format()->set_bits(4);
    task.mutable_format()->set_group_size(64);
    task.set_method(quantization::v1::QuantizeTask::RTN);
    return request;
  }
  absl::StatusOr<Job> Create(const quantization::v1::CreateQuantizationJobRequest& request) {
    Context context;
    Job job;
    const grpc::Status status = jobs_->CreateQuantizationJob(&context, request, &job);
    if (!status.ok()) return FromGrpcStatus(status);
    return job;
  }
  std::string CreateName() { return Create(CreateRequest()).value().name(); }
  absl::StatusOr<Job> Get(const std::string& name) {
    Context context;
    quantization::v1::GetQuantizationJobRequest request;
    request.set_name(name);
    Job job;
    const grpc::Status status = jobs_->GetQuantizationJob(&context, request, &job);
    if (!status.ok()) return FromGrpcStatus(status);
    return job;
  }
  absl::StatusOr<Job> Cancel(const std::string& name) {
    Context context;
    quantization::v1::CancelQuantizationJobRequest request;
    request.set_name(name);
    Job job;
    const grpc::Status status = jobs_->CancelQuantizationJob(&context, request, &job);
    if (!status.ok()) return FromGrpcStatus(status);
    return job;
  }

  static worker::v1::LeaseJobRequest LeaseRequest(const std::string& request_id = "request-1") {
    worker::v1::LeaseJobRequest request;
    request.set_worker("worker-a");
    request.set_request_id(request_id);
    request.mutable_capabilities()->set_device(worker::v1::WorkerCapabilities::CPU);
    return request;
  }
  absl::StatusOr<worker::v1::LeaseJobResponse> LeaseJob(
      const worker::v1::LeaseJobRequest& request) {
    Context context;
    worker::v1::LeaseJobResponse response;
    const grpc::Status status = worker_->LeaseJob(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }
  worker::v1::Lease Lease(const std::string& request_id = "request-1") {
    return LeaseJob(LeaseRequest(request_id)).value().lease();
  }
  absl::StatusOr<worker::v1::RenewLeaseResponse> Renew(
      const worker::v1::RenewLeaseRequest& request) {
    Context context;
    worker::v1::RenewLeaseResponse response;
    const grpc::Status status = worker_->RenewLease(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }
  absl::Status RenewWithProgress(const std::string& token, int64_t completed) {
    worker::v1::RenewLeaseRequest request;
    request.set_token(token);
    request.mutable_progress()->set_stage(quantization::v1::Progress::BLOCK_AP);
    request.mutable_progress()->set_completed_count(completed);
    request.mutable_progress()->set_total_count(1000);
    return Renew(request).status();
  }
  absl::Status Release(const std::string& token) {
    Context context;
    worker::v1::ReleaseLeaseRequest request;
    request.set_token(token);
    google::protobuf::Empty response;
    return FromGrpcStatus(worker_->ReleaseLease(&context, request, &response));
  }
  absl::Status Complete(const worker::v1::CompleteJobRequest& request) {
    Context context;
    google::protobuf::Empty response;
    return FromGrpcStatus(worker_->CompleteJob(&context, request, &response));
  }
  absl::Status Succeed(const std::string& token, const std::string& artifact) {
    worker::v1::CompleteJobRequest request;
    request.set_token(token);
    request.mutable_result()->set_artifact(artifact);
    auto& row = *request.mutable_result()->mutable_evaluation()->add_rows();
    row.set_model("result");
    row.set_perplexity(17.5);
    return Complete(request);
  }
  static worker::v1::CompleteJobRequest ErrorRequest(const std::string& token, int code,
                                                     const std::string& reason) {
    worker::v1::CompleteJobRequest request;
    request.set_token(token);
    request.mutable_error()->set_code(code);
    request.mutable_error()->set_reason(reason);
    request.mutable_error()->set_message("why");
    return request;
  }

  // Writes an artifact directory (another one for another seed) and returns its path.
  std::string MakeArtifact(const std::string& name, int bits = 4) {
    const std::string path = directory_ / name;
    EXPECT_OK(WriteArtifact(TinyModel({.bits = bits, .group_size = 32}), TinyLineage(), path));
    return path;
  }
  // The messages that stage an artifact directory.
  static std::vector<worker::v1::StageArtifactRequest> StageMessages(const std::string& token,
                                                                     const std::string& path) {
    std::vector<worker::v1::StageArtifactRequest> messages(1);
    messages[0].mutable_header()->set_token(token);
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      const std::string bytes = ReadAll(entry.path());
      auto& file = *messages[0].mutable_header()->add_files();
      file.set_path(entry.path().filename());
      file.set_size_bytes(static_cast<int64_t>(bytes.size()));
      file.set_sha256(Sha256Hex(bytes));
      for (size_t offset = 0; offset < bytes.size(); offset += 1000) {
        messages.emplace_back().set_chunk(bytes.substr(offset, 1000));
      }
    }
    return messages;
  }
  absl::StatusOr<std::string> Stage(const std::vector<worker::v1::StageArtifactRequest>& messages) {
    Context context;
    worker::v1::StageArtifactResponse response;
    auto writer = worker_->StageArtifact(&context, &response);
    for (const auto& message : messages) {
      if (!writer->Write(message)) break;
    }
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    if (!status.ok()) return FromGrpcStatus(status);
    return response.artifact();
  }
  absl::StatusOr<std::string> Stage(const std::string& token, const std::string& path) {
    return Stage(StageMessages(token, path));
  }

  // A whole job: created, leased, staged, completed. Returns the artifact's name.
  std::string PublishArtifact(const std::string& name, int bits = 4) {
    CreateName();
    const worker::v1::Lease lease = Lease("publish-" + name);
    const std::string artifact = Stage(lease.token(), MakeArtifact(name, bits)).value();
    EXPECT_OK(Succeed(lease.token(), artifact));
    return artifact;
  }

  // All messages of a watch until it ends.
  absl::StatusOr<std::vector<JobEvent>> Watch(const std::string& name, int64_t after = 0) {
    Context context;
    quantization::v1::WatchQuantizationJobRequest request;
    request.set_name(name);
    request.set_after_sequence(after);
    auto reader = jobs_->WatchQuantizationJob(&context, request);
    std::vector<JobEvent> events;
    JobEvent event;
    while (reader->Read(&event)) events.push_back(event);
    const grpc::Status status = reader->Finish();
    if (!status.ok()) return FromGrpcStatus(status);
    return events;
  }

  std::string Scrape() { return HttpGet(server_->metrics_address(), "/metrics"); }

  const TemporaryDirectory directory_;
  FakeClock clock_;
  JobsConfig config_;
  std::unique_ptr<JobsServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<QuantizationService::Stub> jobs_;
  std::unique_ptr<WorkerService::Stub> worker_;
  std::unique_ptr<ArtifactService::Stub> artifacts_;
};

}  // namespace quern

#endif  // QUERN_TESTS_SERVICES_JOBS_JOBS_FIXTURE_H_
