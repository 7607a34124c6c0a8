// Load over gRPC: asynchronous calls on one completion queue.

#include <grpcpp/completion_queue.h>
#include <quern/inference/v1/inference_service.grpc.pb.h>

#include <set>

#include "services/cli/context.h"
#include "services/cli/load.h"
#include "services/common/status.h"

namespace quern::cli {
namespace {

using inference::v1::Chat;
using inference::v1::GenerateTextRequest;
using inference::v1::GenerateTextResponse;
using inference::v1::InferenceService;

Chat::Message::Role RoleOf(const std::string& role) {
  if (role == "system") return Chat::Message::SYSTEM;
  if (role == "assistant") return Chat::Message::ASSISTANT;
  return Chat::Message::USER;
}

GenerateTextRequest ToProto(const LoadRequest& request, const LoadClientOptions& options) {
  GenerateTextRequest proto;
  proto.set_model(ResourceName("models", options.model));
  proto.set_max_output_tokens(request.max_tokens);
  proto.set_ignore_end_of_text(options.ignore_end_of_text);
  if (request.messages.is_array()) {
    for (const Json& message : request.messages) {
      Chat::Message& out = *proto.mutable_chat()->add_messages();
      out.set_role(RoleOf(message.at("role").get<std::string>()));
      out.set_content(message.at("content").get<std::string>());
    }
  } else if (!request.prompt_ids.empty()) {
    auto& ids = *proto.mutable_prompt_tokens()->mutable_ids();
    ids.Add(request.prompt_ids.begin(), request.prompt_ids.end());
  } else {
    proto.set_prompt(request.prompt);
  }
  return proto;
}

// One call; each event of the queue ends one step of it and begins the next.
class GrpcLoadCall {
 public:
  GrpcLoadCall(InferenceService::Stub& stub, grpc::CompletionQueue& queue,
               const GenerateTextRequest& request, const LoadStart& start,
               LoadClient::OnOutcome on_outcome)
      : recorder_(start), on_outcome_(std::move(on_outcome)) {
    stream_ = stub.PrepareAsyncStreamGenerateText(&context_, request, &queue);
    stream_->StartCall(this);
  }

  void Cancel() { context_.TryCancel(); }

  // Whether the call is over; HandOver is what is left then.
  bool OnEvent(bool ok) {
    switch (step_) {
      case Step::kStart:
        step_ = ok ? Step::kRead : Step::kFinish;
        break;
      case Step::kRead:
        if (ok) {
          Take();
        } else {
          step_ = Step::kFinish;
        }
        break;
      case Step::kFinish:
        return true;
    }
    if (step_ == Step::kRead) {
      stream_->Read(&message_, this);
    } else {
      stream_->Finish(&status_, this);
    }
    return false;
  }

  void HandOver() {
    const LoadClient::OnOutcome on_outcome = std::move(on_outcome_);
    on_outcome(recorder_.End(CallStatus(status_), usage_));
  }

 private:
  enum class Step { kStart, kRead, kFinish };

  void Take() {
    if (message_.token_ids_size() > 0) recorder_.Piece(message_.token_ids_size());
    if (!message_.has_usage()) return;
    usage_ = {.prompt_tokens = message_.usage().prompt_tokens(),
              .cached_prompt_tokens = message_.usage().cached_prompt_tokens(),
              .output_tokens = message_.usage().output_tokens()};
  }

  Step step_ = Step::kStart;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientAsyncReader<GenerateTextResponse>> stream_;
  GenerateTextResponse message_;
  grpc::Status status_;
  LoadUsage usage_;
  LoadRecorder recorder_;
  LoadClient::OnOutcome on_outcome_;
};

class GrpcLoadClient final : public LoadClient {
 public:
  GrpcLoadClient(std::shared_ptr<grpc::Channel> channel, const LoadClientOptions& options)
      : options_(options), stub_(InferenceService::NewStub(std::move(channel))) {}
  ~GrpcLoadClient() override {
    CancelAll();
    void* tag = nullptr;
    bool ok = false;
    while (!open_.empty() && queue_.Next(&tag, &ok)) {
      auto* call = static_cast<GrpcLoadCall*>(tag);
      if (!call->OnEvent(ok)) continue;
      open_.erase(call);
      delete call;
    }
    // No call is left that could begin a step, as none may from here on.
    queue_.Shutdown();
    while (queue_.Next(&tag, &ok)) {
    }
  }

  void Start(const LoadRequest& request, const LoadStart& start, OnOutcome on_outcome) override {
    open_.insert(
        new GrpcLoadCall(*stub_, queue_, ToProto(request, options_), start, std::move(on_outcome)));
  }

  void HandleUntil(absl::Time time) override {
    const std::chrono::system_clock::time_point deadline = absl::ToChronoTime(time);
    void* tag = nullptr;
    bool ok = false;
    while (!open_.empty() &&
           queue_.AsyncNext(&tag, &ok, deadline) == grpc::CompletionQueue::GOT_EVENT) {
      auto* call = static_cast<GrpcLoadCall*>(tag);
      if (call->OnEvent(ok)) {
        const std::unique_ptr<GrpcLoadCall> over(call);
        open_.erase(call);
        call->HandOver();
      }
      if (std::chrono::system_clock::now() >= deadline) return;
    }
  }

  void CancelAll() override {
    for (GrpcLoadCall* call : open_) call->Cancel();
  }
  int num_open() const override { return static_cast<int>(open_.size()); }

 private:
  const LoadClientOptions options_;
  const std::unique_ptr<InferenceService::Stub> stub_;
  grpc::CompletionQueue queue_;
  std::set<GrpcLoadCall*> open_;  // owned; their tags are in the queue
};

}  // namespace

std::unique_ptr<LoadClient> MakeGrpcLoadClient(std::shared_ptr<grpc::Channel> channel,
                                               const LoadClientOptions& options) {
  return std::make_unique<GrpcLoadClient>(std::move(channel), options);
}

}  // namespace quern::cli
