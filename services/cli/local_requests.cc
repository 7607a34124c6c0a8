#include "services/cli/local_requests.h"

#include <absl/time/time.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "core/base/mutex.h"
#include "core/base/status_macros.h"

namespace quern::cli {
namespace {

class CollectingSink final : public TokenSink {
 public:
  void OnTokens(absl::Span<const int32_t> ids, absl::string_view) override {
    answer_.ids.insert(answer_.ids.end(), ids.begin(), ids.end());
  }
  void OnEnd(absl::StatusOr<GenerationResult> result) override {
    MutexLock lock(&mutex_);
    status_ = result.status();
    if (result.ok()) answer_.result = *std::move(result);
    ended_ = true;
    changed_.Signal();
  }
  bool cancelled() const override { return false; }

  absl::StatusOr<LocalAnswer> Wait() {
    MutexLock lock(&mutex_);
    while (!ended_) changed_.Wait(&mutex_);
    RETURN_IF_ERROR(status_);
    return std::move(answer_);
  }

 private:
  LocalAnswer answer_;  // the engine thread's until the end
  Mutex mutex_;
  CondVar changed_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::vector<LocalAnswer>> GenerateTogether(Engine& engine, ModelHandle model,
                                                          std::vector<GenerationRequest> requests) {
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (GenerationRequest& request : requests) {
    sinks.push_back(std::make_shared<CollectingSink>());
    RETURN_IF_ERROR(engine.Submit(model, std::move(request), sinks.back()));
  }
  std::vector<LocalAnswer> answers;
  for (const auto& sink : sinks) {
    ASSIGN_OR_RETURN(LocalAnswer answer, sink->Wait());
    answers.push_back(std::move(answer));
  }
  return answers;
}

LocalSpeed SpeedOf(const std::vector<LocalAnswer>& answers) {
  absl::Duration first, last;
  int64_t prompt_tokens = 0;
  int64_t decoded_tokens = 0;
  for (const LocalAnswer& answer : answers) {
    first = std::max(first, answer.result.time_to_first_token);
    last = std::max(last, answer.result.total_duration);
    prompt_tokens += answer.result.prompt_tokens;
    decoded_tokens += answer.result.output_tokens - 1;
  }
  return {.prefill = static_cast<double>(prompt_tokens) / absl::ToDoubleSeconds(first),
          .decode = static_cast<double>(decoded_tokens) / absl::ToDoubleSeconds(last - first)};
}

}  // namespace quern::cli
