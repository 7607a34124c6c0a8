#ifndef QUERN_SERVICES_INFERENCE_GENERATE_TEXT_WRITER_H_
#define QUERN_SERVICES_INFERENCE_GENERATE_TEXT_WRITER_H_

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>
#include <grpcpp/support/server_callback.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <memory>
#include <optional>

#include "core/base/mutex.h"
#include "services/inference/generation_sink.h"

namespace quern {

// Writes one generation to its stream. What arrives while a write is in flight is joined to the
// next message, so a slow client holds back neither the engine nor other clients; what waits is at
// most the text of one context. Thread-safe.
//
// Life: the call holds the writer until OnDone, whoever else drives it holds a shared_ptr. gRPC
// calls OnDone after its other reactions have returned.
class GenerateTextWriter final
    : public grpc::ServerWriteReactor<inference::v1::GenerateTextResponse>,
      public GenerationSink {
 public:
  static std::shared_ptr<GenerateTextWriter> Start(InferenceMetrics& metrics);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  explicit GenerateTextWriter(InferenceMetrics& metrics) : GenerationSink(metrics) {}
  void Deliver(const inference::v1::GenerateTextResponse& piece) override;
  void Close(const absl::Status& status,
             const inference::v1::GenerateTextResponse& closing) override;
  // Starts the next operation unless one is in flight.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Mutex mutex_;
  std::shared_ptr<GenerateTextWriter> self_ ABSL_GUARDED_BY(mutex_);  // until OnDone
  // Pieces that wait; after Close also the closing fields.
  inference::v1::GenerateTextResponse pending_ ABSL_GUARDED_BY(mutex_);
  std::optional<SteadyTime> pending_since_ ABSL_GUARDED_BY(mutex_);  // while a write is in flight
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  // The client is gone: what waits goes nowhere.
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  // In flight; gRPC may read it until OnWriteDone.
  inference::v1::GenerateTextResponse message_;
};

// The same for the unary call: collects everything into the one response.
class GenerateTextCall final : public grpc::ServerUnaryReactor, public GenerationSink {
 public:
  // `response` lives until OnDone.
  static std::shared_ptr<GenerateTextCall> Start(InferenceMetrics& metrics,
                                                 inference::v1::GenerateTextResponse* response);

  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateTextCall(InferenceMetrics& metrics, inference::v1::GenerateTextResponse* response)
      : GenerationSink(metrics), response_(response) {}
  void Deliver(const inference::v1::GenerateTextResponse& piece) override;
  void Close(const absl::Status& status,
             const inference::v1::GenerateTextResponse& closing) override;

  std::shared_ptr<GenerateTextCall> self_;
  inference::v1::GenerateTextResponse* const response_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_GENERATE_TEXT_WRITER_H_
