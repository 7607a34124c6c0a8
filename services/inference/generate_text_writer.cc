#include "services/inference/generate_text_writer.h"

#include <chrono>
#include <utility>

#include "services/common/grpc_hand_over.h"
#include "services/common/status.h"

namespace quern {
namespace {

using inference::v1::GenerateTextResponse;

// MergeFrom would replace the text.
void Append(const GenerateTextResponse& piece, GenerateTextResponse* response) {
  response->mutable_token_ids()->MergeFrom(piece.token_ids());
  response->mutable_logprobs()->MergeFrom(piece.logprobs());
  response->mutable_prompt_logprobs()->MergeFrom(piece.prompt_logprobs());
  response->mutable_text()->append(piece.text());
}

}  // namespace

std::shared_ptr<GenerateTextWriter> GenerateTextWriter::Start(InferenceMetrics& metrics) {
  std::shared_ptr<GenerateTextWriter> writer(new GenerateTextWriter(metrics));
  MutexLock lock(&writer->mutex_);
  writer->self_ = writer;
  ReleaseToGrpc(writer.get());
  return writer;
}

void GenerateTextWriter::Deliver(const GenerateTextResponse& piece) {
  MutexLock lock(&mutex_);
  if (broken_) return;
  Append(piece, &pending_);
  if (writing_ && !pending_since_.has_value()) pending_since_ = std::chrono::steady_clock::now();
  Advance();
}

void GenerateTextWriter::Close(const absl::Status& status, const GenerateTextResponse& closing) {
  MutexLock lock(&mutex_);
  pending_.MergeFrom(closing);
  end_ = status;
  Advance();
}

void GenerateTextWriter::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  if (pending_since_.has_value()) {
    metrics().StreamBlocked(absl::FromChrono(std::chrono::steady_clock::now() - *pending_since_));
    pending_since_.reset();
  }
  if (!ok) {
    broken_ = true;
    pending_.Clear();
    MarkCancelled();
  }
  Advance();
}

void GenerateTextWriter::OnCancel() {
  AcquireFromGrpc(this);
  MarkCancelled();
}

void GenerateTextWriter::OnDone() {
  std::shared_ptr<GenerateTextWriter> last_use;
  MutexLock lock(&mutex_);
  last_use = std::move(self_);
}

void GenerateTextWriter::Advance() {
  if (writing_ || finished_) return;
  const bool has_pieces = pending_.token_ids_size() > 0 || !pending_.text().empty();
  if (end_.has_value() && end_->ok() && !broken_) {
    finished_ = true;
    message_ = std::exchange(pending_, {});
    StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
  } else if (has_pieces) {
    writing_ = true;
    message_ = std::exchange(pending_, {});
    StartWrite(&message_);
  } else if (end_.has_value()) {
    finished_ = true;
    Finish(end_->ok() ? grpc::Status::CANCELLED : ToGrpcStatus(*end_));
  }
}

std::shared_ptr<GenerateTextCall> GenerateTextCall::Start(InferenceMetrics& metrics,
                                                          GenerateTextResponse* response) {
  std::shared_ptr<GenerateTextCall> call(new GenerateTextCall(metrics, response));
  call->self_ = call;
  ReleaseToGrpc(call.get());
  return call;
}

void GenerateTextCall::Deliver(const GenerateTextResponse& piece) { Append(piece, response_); }

void GenerateTextCall::Close(const absl::Status& status, const GenerateTextResponse& closing) {
  response_->MergeFrom(closing);
  Finish(ToGrpcStatus(status));
}

void GenerateTextCall::OnCancel() {
  AcquireFromGrpc(this);
  MarkCancelled();
}

void GenerateTextCall::OnDone() {
  AcquireFromGrpc(this);
  const std::shared_ptr<GenerateTextCall> last_use = std::move(self_);
}

}  // namespace quern
