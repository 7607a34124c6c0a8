#include <absl/strings/str_cat.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "core/eval/evaluate.h"

namespace quern {
namespace {

// Tokens between two calls of on_progress, about.
constexpr int64_t kProgressTokens = 256;

// What the sinks of one call have gathered. Thread-safe.
class Gathered {
 public:
  explicit Gathered(int count) : sequences_(count) {}

  void Append(int index, absl::Span<const int32_t> ids) {
    MutexLock lock(&mutex_);
    sequences_[index].insert(sequences_[index].end(), ids.begin(), ids.end());
    const int64_t before = num_tokens_;
    num_tokens_ += static_cast<int64_t>(ids.size());
    if (before / kProgressTokens != num_tokens_ / kProgressTokens) changed_.Signal();
  }

  void Fail(const absl::Status& status) {
    MutexLock lock(&mutex_);
    status_.Update(status);
  }

  void End(const absl::Status& status) {
    MutexLock lock(&mutex_);
    status_.Update(status);
    ++num_ended_;
    changed_.Signal();
  }

  bool failed() const {
    MutexLock lock(&mutex_);
    return !status_.ok();
  }

  // Returns when `num_ended` sequences have ended. `on_tokens(num_tokens)` now and then.
  void WaitForEnded(int num_ended, const std::function<void(int64_t)>& on_tokens) {
    while (true) {
      int64_t num_tokens;
      {
        MutexLock lock(&mutex_);
        while (num_ended_ < num_ended && num_tokens_ < reported_ + kProgressTokens) {
          changed_.Wait(&mutex_);
        }
        if (num_ended_ >= num_ended) return;
        num_tokens = reported_ = num_tokens_;
      }
      on_tokens(num_tokens);
    }
  }

  // When all have ended.
  absl::StatusOr<std::vector<std::vector<int32_t>>> Take() {
    MutexLock lock(&mutex_);
    RETURN_IF_ERROR(status_);
    return std::move(sequences_);
  }

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<std::vector<int32_t>> sequences_ ABSL_GUARDED_BY(mutex_);
  int64_t num_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t reported_ ABSL_GUARDED_BY(mutex_) = 0;
  int num_ended_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

class GatheringSink final : public TokenSink {
 public:
  GatheringSink(std::shared_ptr<Gathered> gathered, int index)
      : gathered_(std::move(gathered)), index_(index) {}
  void OnTokens(absl::Span<const int32_t> ids, absl::string_view) override {
    gathered_->Append(index_, ids);
  }
  void OnEnd(absl::StatusOr<GenerationResult> result) override { gathered_->End(result.status()); }
  // One that failed ends them all.
  bool cancelled() const override { return gathered_->failed(); }

 private:
  const std::shared_ptr<Gathered> gathered_;
  const int index_;
};

// Start tokens of the first and the second half.
std::pair<int32_t, int32_t> StartTokens(const ModelConfig& config) {
  const int bos = config.bos_token_id;
  const int eos = config.eos_token_ids.empty() ? -1 : config.eos_token_ids.front();
  if (bos < 0 && eos < 0) return {0, 0};
  return {bos >= 0 ? bos : eos, eos >= 0 ? eos : bos};
}

}  // namespace

absl::StatusOr<std::vector<std::vector<int32_t>>> SampleSequences(
    Engine& engine, ModelHandle model, int count, int length, uint64_t seed,
    const std::function<void(int64_t done_tokens, int64_t total_tokens)>& on_progress) {
  ASSIGN_OR_RETURN(const ModelInfo info, engine.Info(model));
  if (count < 1 || length < 2 || length > info.max_context_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("wanted at least 1 sequence of 2 to ", info.max_context_tokens,
                     " tokens (the model's context), asked for ", count, " of ", length));
  }
  const int64_t total_tokens = int64_t{count} * (length - 1);
  int64_t reported = 0;
  const auto report = [&](int64_t done) {
    if (!on_progress || done <= reported) return;
    reported = done;
    on_progress(done, total_tokens);
  };
  const auto [first_start, second_start] = StartTokens(info.config);
  auto gathered = std::make_shared<Gathered>(count);
  int num_submitted = 0;
  int num_to_end = 0;  // awaited so far because the engine's queue was full
  while (num_submitted < count && !gathered->failed()) {
    const int32_t start = num_submitted < (count + 1) / 2 ? first_start : second_start;
    GenerationRequest request{.prompt = {start}};
    request.sampling.temperature = 1;
    // Far apart, also for neighbouring seeds of two calls.
    request.sampling.seed = seed + (uint64_t{1} + num_submitted) * 0x9e3779b97f4a7c15;
    request.max_output_tokens = length - 1;
    request.ignore_end_of_text = true;
    const absl::Status status = engine.Submit(
        model, std::move(request), std::make_shared<GatheringSink>(gathered, num_submitted));
    if (status.ok()) {
      ++num_submitted;
    } else if (absl::IsResourceExhausted(status) && num_to_end < num_submitted) {
      gathered->WaitForEnded(++num_to_end, report);
    } else {
      gathered->Fail(status);
    }
  }
  gathered->WaitForEnded(num_submitted, report);
  ASSIGN_OR_RETURN(std::vector<std::vector<int32_t>> sequences, gathered->Take());
  for (int i = 0; i < count; ++i) {
    sequences[i].insert(sequences[i].begin(), i < (count + 1) / 2 ? first_start : second_start);
  }
  report(total_tokens);
  return sequences;
}

}  // namespace quern
