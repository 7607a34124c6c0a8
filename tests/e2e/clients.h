#ifndef QUERN_TESTS_E2E_CLIENTS_H_
#define QUERN_TESTS_E2E_CLIENTS_H_

// What a client does, in one call each.

#include <absl/status/statusor.h>
#include <absl/time/clock.h>
#include <grpcpp/channel.h>
#include <quern/inference/v1/inference_service.grpc.pb.h>
#include <quern/quantization/v1/quantization_service.grpc.pb.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/status_macros.h"
#include "services/common/status.h"
#include "tests/e2e/deployment.h"

namespace quern {

inline std::chrono::system_clock::time_point ClientDeadline() {
  return absl::ToChronoTime(E2eDeadline());
}

// A task that trains a tiny model in seconds, every stage of it.
inline quantization::v1::CreateQuantizationJobRequest TinyJob(const std::string& checkpoint,
                                                              int bits = 4) {
  quantization::v1::CreateQuantizationJobRequest request;
  auto& task = *request.mutable_quantization_job()->mutable_quantize();
  task.mutable_checkpoint()->set_path(checkpoint);
  task.mutable_format()->set_bits(bits);
  task.mutable_format()->set_group_size(32);
  task.set_method(quantization::v1::QuantizeTask::BLOCK_AP_E2E_QP);
  task.set_preset(quantization::v1::QuantizeTask::QUICK);
  task.mutable_block_ap()->set_sample_count(4);
  task.mutable_block_ap()->set_sequence_length_tokens(32);
  task.mutable_e2e_qp()->set_sample_count(4);
  task.mutable_e2e_qp()->set_sequence_length_tokens(32);
  return request;
}

inline absl::StatusOr<quantization::v1::QuantizationJob> Submit(
    grpc::Channel& channel, const quantization::v1::CreateQuantizationJobRequest& request) {
  quantization::v1::QuantizationService::Stub stub(
      std::shared_ptr<grpc::ChannelInterface>(&channel, [](grpc::ChannelInterface*) {}));
  grpc::ClientContext call;
  call.set_deadline(ClientDeadline());
  call.set_wait_for_ready(true);
  quantization::v1::QuantizationJob job;
  RETURN_IF_ERROR(FromGrpcStatus(stub.CreateQuantizationJob(&call, request, &job)));
  return job;
}

// Follows a job from its first event; `on_event` returns false to stop early. The last state seen.
inline absl::StatusOr<quantization::v1::QuantizationJob> Watch(
    grpc::Channel& channel, const std::string& name,
    const std::function<bool(const quantization::v1::JobEvent&)>& on_event = {}) {
  quantization::v1::QuantizationService::Stub stub(
      std::shared_ptr<grpc::ChannelInterface>(&channel, [](grpc::ChannelInterface*) {}));
  grpc::ClientContext call;
  call.set_deadline(ClientDeadline());
  call.set_wait_for_ready(true);
  quantization::v1::WatchQuantizationJobRequest request;
  request.set_name(name);
  auto stream = stub.WatchQuantizationJob(&call, request);
  quantization::v1::JobEvent event;
  quantization::v1::QuantizationJob job;
  while (stream->Read(&event)) {
    if (event.has_job()) job = event.job();
    if (on_event && !on_event(event)) {
      call.TryCancel();
      while (stream->Read(&event)) {
      }
      stream->Finish().ok();  // CANCELLED, by us
      return job;
    }
  }
  RETURN_IF_ERROR(FromGrpcStatus(stream->Finish()));
  return job;
}

// Loads a model and waits until it is ACTIVE or FAILED.
inline absl::StatusOr<inference::v1::Model> LoadModel(grpc::Channel& channel, const std::string& id,
                                                      const inference::v1::Model& source) {
  inference::v1::ModelService::Stub stub(
      std::shared_ptr<grpc::ChannelInterface>(&channel, [](grpc::ChannelInterface*) {}));
  inference::v1::CreateModelRequest request;
  request.set_model_id(id);
  *request.mutable_model() = source;
  inference::v1::Model model;
  {
    grpc::ClientContext call;
    call.set_deadline(ClientDeadline());
    RETURN_IF_ERROR(FromGrpcStatus(stub.CreateModel(&call, request, &model)));
  }
  const absl::Time deadline = E2eDeadline();
  while (model.state() == inference::v1::Model::LOADING) {
    if (absl::Now() > deadline) return absl::DeadlineExceededError("the model stays LOADING");
    grpc::ClientContext call;
    call.set_deadline(ClientDeadline());
    inference::v1::GetModelRequest get;
    get.set_name(model.name());
    RETURN_IF_ERROR(FromGrpcStatus(stub.GetModel(&call, get, &model)));
  }
  return model;
}

inline inference::v1::Model FromArtifact(const std::string& name) {
  inference::v1::Model model;
  model.set_artifact(name);
  return model;
}

inline inference::v1::Model FromCheckpoint(const std::string& path) {
  inference::v1::Model model;
  model.set_checkpoint(path);
  return model;
}

// The messages of one stream, joined: text, ids, and the fields of the last one.
inline absl::StatusOr<inference::v1::GenerateTextResponse> Stream(
    grpc::Channel& channel, const inference::v1::GenerateTextRequest& request) {
  inference::v1::InferenceService::Stub stub(
      std::shared_ptr<grpc::ChannelInterface>(&channel, [](grpc::ChannelInterface*) {}));
  grpc::ClientContext call;
  call.set_deadline(ClientDeadline());
  auto stream = stub.StreamGenerateText(&call, request);
  inference::v1::GenerateTextResponse message;
  inference::v1::GenerateTextResponse joined;
  while (stream->Read(&message)) {
    inference::v1::GenerateTextResponse next = message;
    next.set_text(joined.text() + message.text());
    next.mutable_token_ids()->CopyFrom(joined.token_ids());
    next.mutable_token_ids()->MergeFrom(message.token_ids());
    joined = next;
  }
  RETURN_IF_ERROR(FromGrpcStatus(stream->Finish()));
  return joined;
}

}  // namespace quern

#endif  // QUERN_TESTS_E2E_CLIENTS_H_
