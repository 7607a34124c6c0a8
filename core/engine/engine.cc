#include "core/engine/engine.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <map>
#include <random>
#include <thread>
#include <utility>

#include "core/base/log.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "core/base/thread_pool.h"
#include "core/engine/backend.h"
#include "core/engine/cpu_backend.h"
#include "core/engine/event.h"
#include "core/engine/request_queue.h"
#include "core/engine/served_model.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

SystemClock& GetSystemClock() {
  static SystemClock clock;
  return clock;
}

// Different for each request. Non-negative as an int64, in which clients get it back.
uint64_t RandomSeed() {
  std::random_device random;
  return uint64_t{random() & 0x7fffffff} << 32 | random();
}

// How fast something gets on, what was done within `memory` counting most.
class RecentSpeed {
 public:
  explicit RecentSpeed(absl::Duration memory) : memory_seconds_(absl::ToDoubleSeconds(memory)) {}

  void Note(int count, absl::Duration duration) {
    const double seconds = absl::ToDoubleSeconds(duration);
    const double kept = std::exp(-seconds / memory_seconds_);
    count_ = count_ * kept + count;
    seconds_ = seconds_ * kept + seconds;
  }
  // 0: not known.
  double per_second() const { return seconds_ > 0 ? count_ / seconds_ : 0; }

 private:
  const double memory_seconds_;
  double count_ = 0;
  double seconds_ = 0;
};

// The sink behind Score.
class ScoreSink final : public TokenSink {
 public:
  void OnTokens(absl::Span<const int32_t>, absl::string_view) override {}
  void OnEnd(absl::StatusOr<GenerationResult> result) override {
    status_ = result.status();
    done_.Notify();
  }
  bool cancelled() const override { return false; }

  absl::Status Wait() {
    done_.Wait();
    return status_;
  }

 private:
  absl::Status status_;
  Event done_;
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(const EngineOptions& options, const kernels::KernelTable& kernels,
             StepObserver* observer, Clock* clock)
      : options_(options),
        observer_(observer),
        clock_(clock),
        pool_(options.num_threads),
        // A step of a large model takes many seconds on few cores; a block of it does not.
        backend_(MakeCpuBackend(kernels, &pool_, [this] { Beat(); })),
        queue_({.max_sequences = options.max_sequences,
                .max_queued_requests = options.max_queued_requests,
                .max_queued_tokens = options.max_queued_tokens,
                .max_queue_wait = options.max_queue_wait}) {
    Beat();
    thread_ = std::thread([this] { Run(); });
  }

  ~EngineImpl() override {
    queue_.Stop();
    thread_.join();
  }

  using Engine::Load;
  absl::StatusOr<ModelHandle> Load(const ModelSource& source, const LoadOptions& options) override;
  using Engine::PlanMemory;
  absl::StatusOr<ModelMemory> PlanMemory(const ModelSource& source,
                                         const LoadOptions& options) const override {
    ASSIGN_OR_RETURN(ModelMemory memory, backend_->PlanMemory(source, options, LimitsOf(options_)));
    if (const ModelSource* draft = options.speculation.draft; draft != nullptr) {
      ASSIGN_OR_RETURN(const ModelMemory more,
                       backend_->PlanMemory(*draft, DraftOptions(options), LimitsOf(options_)));
      memory.weight_bytes += more.weight_bytes;
      memory.kv_bytes += more.kv_bytes;
      memory.workspace_bytes += more.workspace_bytes;
    }
    return memory;
  }
  absl::Status Unload(ModelHandle handle) override;
  absl::StatusOr<ModelInfo> Info(ModelHandle handle) const override;
  absl::StatusOr<std::shared_ptr<const Tokenizer>> GetTokenizer(ModelHandle handle) const override;
  absl::StatusOr<std::vector<int32_t>> EncodeChat(
      ModelHandle handle, const std::vector<ChatMessage>& messages) const override;
  absl::Status CheckRoom(absl::string_view principal) const override {
    return queue_.Check(nullptr, principal, Priority::kLow, /*tokens=*/1);
  }
  absl::Status CheckRoom(absl::string_view principal, ModelHandle handle,
                         Priority priority) const override {
    ASSIGN_OR_RETURN(const auto model, Find(handle));
    return queue_.Check(model.get(), principal, priority, /*tokens=*/1);
  }
  absl::StatusOr<CompiledConstraint> CompileConstraint(ModelHandle handle,
                                                       const ConstraintSpec& spec) const override;
  absl::Status Submit(ModelHandle handle, GenerationRequest request,
                      std::shared_ptr<TokenSink> sink) override;
  absl::Status Score(ModelHandle handle, absl::Span<const int32_t> tokens, int first_position,
                     const LogitsFn& on_logits) override;
  EngineStats Stats() const override;
  bool Healthy(absl::Duration limit) const override;
  void Drain(absl::Duration grace) override;

 private:
  struct Entry {
    std::shared_ptr<ServedModel> model;
    bool unloading = false;
  };

  absl::StatusOr<std::shared_ptr<ServedModel>> Find(ModelHandle handle) const
      ABSL_LOCKS_EXCLUDED(models_mutex_);
  absl::Status Enqueue(ModelHandle handle, GenerationRequest request,
                       std::shared_ptr<TokenSink> sink, LogitsFn on_logits, int first_position)
      ABSL_LOCKS_EXCLUDED(models_mutex_);

  // --- Engine thread --------------------------------------------------------------------------
  void Run();
  // Takes in what others want. Returns whether the thread goes on.
  bool HandleInbox();
  void StepModel(ServedModel& model);
  // For estimates of how long others wait.
  void NoteOutput(const EndedSequence& ended);
  void PublishLoad();
  // Lets go of models that are to be unloaded and have nothing left to do.
  void ReleaseIdleModels();
  void EndAll(const absl::Status& status);
  // Publishes the stats, then tells the sinks of `ended_`.
  void NotifyEnded();
  void PublishStats() ABSL_LOCKS_EXCLUDED(stats_mutex_);
  bool HasWork() const;
  void Beat() { heartbeat_nanos_.store(absl::ToUnixNanos(clock_->Now())); }

  const EngineOptions options_;
  StepObserver* const observer_;
  Clock* const clock_;
  ThreadPool pool_;  // the engine thread alone runs regions
  const std::unique_ptr<Backend> backend_;
  RequestQueue queue_;
  // When the engine thread last got anywhere, or first had something to do again.
  std::atomic<int64_t> heartbeat_nanos_{0};

  mutable Mutex models_mutex_;
  std::map<ModelHandle, Entry> models_ ABSL_GUARDED_BY(models_mutex_);
  ModelHandle next_handle_ ABSL_GUARDED_BY(models_mutex_) = 1;

  mutable Mutex stats_mutex_;
  EngineStats published_ ABSL_GUARDED_BY(stats_mutex_);

  // The engine thread's own.
  std::vector<ServedModel*> serving_;
  std::vector<std::pair<ServedModel*, Event*>> unloads_;
  std::vector<EndedSequence> ended_;
  RecentSpeed speed_{absl::Seconds(30)};
  RecentSpeed prompt_speed_{absl::Seconds(30)};  // of the steps that are mostly of prompts
  RecentSpeed rounds_{absl::Seconds(1)};         // a step of each model that has work
  // Of answers that ended well, the latest ones above all: their tokens, and those asked for.
  double output_tokens_ = 0;
  double asked_tokens_ = 0;
  EngineStats counters_;  // its gauges are filled in when it is published

  std::thread thread_;
};

// --- Callers' threads ---------------------------------------------------------------------------

absl::StatusOr<ModelHandle> EngineImpl::Load(const ModelSource& source,
                                             const LoadOptions& options) {
  ASSIGN_OR_RETURN(std::shared_ptr<ServedModel> model,
                   ServedModel::Load(source, options, options_, backend_.get(), &pool_, clock_));
  const ModelInfo& info = model->info();
  LOG(INFO) << "model loaded type=" << info.config.model_type
            << " weight_bytes=" << info.weight_bytes << " kv_bytes=" << info.kv_bytes
            << " kv_cache=" << KvCacheTypeName(info.kv_cache_type)
            << " kv_token_bytes=" << info.kv_token_bytes
            << (info.kv_cache_kl.has_value()
                    ? absl::StrFormat(" kv_cache_kl=%.3g", *info.kv_cache_kl)
                    : "")
            << " kernels=" << info.kernel;
  MutexLock lock(&models_mutex_);
  const ModelHandle handle = next_handle_++;
  queue_.PushLoaded(model.get());
  models_[handle] = {.model = std::move(model)};
  return handle;
}

absl::Status EngineImpl::Unload(ModelHandle handle) {
  Event done;
  {
    MutexLock lock(&models_mutex_);
    const auto it = models_.find(handle);
    if (it == models_.end()) {
      return absl::NotFoundError(absl::StrCat("there is no model ", handle));
    }
    if (it->second.unloading) {
      return absl::FailedPreconditionError(
          absl::StrCat("model ", handle, " is being unloaded already"));
    }
    it->second.unloading = true;
    // Behind every request that was accepted: those are queued under this lock too.
    queue_.PushUnload(it->second.model.get(), &done);
  }
  done.Wait();
  std::shared_ptr<ServedModel> model;
  {
    MutexLock lock(&models_mutex_);
    model = std::move(models_.extract(handle).mapped().model);
  }
  // The memory goes here, on this thread: unmapping gigabytes takes longer than a step.
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<ServedModel>> EngineImpl::Find(ModelHandle handle) const {
  MutexLock lock(&models_mutex_);
  const auto it = models_.find(handle);
  if (it == models_.end()) {
    return absl::NotFoundError(absl::StrCat("there is no model ", handle));
  }
  return it->second.model;
}

absl::StatusOr<ModelInfo> EngineImpl::Info(ModelHandle handle) const {
  ASSIGN_OR_RETURN(const auto model, Find(handle));
  return model->info();
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> EngineImpl::GetTokenizer(
    ModelHandle handle) const {
  ASSIGN_OR_RETURN(const auto model, Find(handle));
  return model->tokenizer();
}

absl::StatusOr<std::vector<int32_t>> EngineImpl::EncodeChat(
    ModelHandle handle, const std::vector<ChatMessage>& messages) const {
  ASSIGN_OR_RETURN(const auto model, Find(handle));
  if (model->tokenizer() == nullptr) {
    return absl::FailedPreconditionError(
        "the model came without a tokenizer; send token ids instead of a chat");
  }
  return RenderChat(model->info().chat_format, model->chat_template(), *model->tokenizer(),
                    messages);
}

absl::StatusOr<CompiledConstraint> EngineImpl::CompileConstraint(ModelHandle handle,
                                                                 const ConstraintSpec& spec) const {
  ASSIGN_OR_RETURN(const auto model, Find(handle));
  if (model->constraints() == nullptr) {
    return absl::FailedPreconditionError(
        "the model came without a tokenizer; a constraint is on text");
  }
  return model->constraints()->Compile(spec);
}

absl::Status EngineImpl::Submit(ModelHandle handle, GenerationRequest request,
                                std::shared_ptr<TokenSink> sink) {
  return Enqueue(handle, std::move(request), std::move(sink), nullptr, 0);
}

absl::Status EngineImpl::Enqueue(ModelHandle handle, GenerationRequest request,
                                 std::shared_ptr<TokenSink> sink, LogitsFn on_logits,
                                 int first_position) {
  ASSIGN_OR_RETURN(const auto model, Find(handle));
  RETURN_IF_ERROR(model->Validate(request));
  const uint64_t seed = request.sampling.seed.has_value() ? *request.sampling.seed : RandomSeed();
  auto sequence =
      model->NewSequence(std::move(request), std::move(sink), std::move(on_logits), seed);
  sequence->num_scored = first_position;

  MutexLock lock(&models_mutex_);
  const auto it = models_.find(handle);
  if (it == models_.end() || it->second.unloading) {
    return absl::FailedPreconditionError(absl::StrCat("model ", handle, " is being unloaded"));
  }
  if (queue_.num_unended() == 0) Beat();
  return queue_.Push(it->second.model.get(), std::move(sequence));
}

absl::Status EngineImpl::Score(ModelHandle handle, absl::Span<const int32_t> tokens,
                               int first_position, const LogitsFn& on_logits) {
  if (first_position < 0 || (first_position > 0 && first_position >= std::ssize(tokens))) {
    return absl::InvalidArgumentError(absl::StrCat("scores from position ", first_position,
                                                   " on are wanted of ", tokens.size(), " tokens"));
  }
  auto sink = std::make_shared<ScoreSink>();
  GenerationRequest request;
  request.prompt.assign(tokens.begin(), tokens.end());
  RETURN_IF_ERROR(Enqueue(handle, std::move(request), sink, on_logits, first_position));
  return sink->Wait();
}

EngineStats EngineImpl::Stats() const {
  // What waits in the queue is not the engine thread's yet.
  const int num_queued = queue_.num_queued();
  const int64_t num_tokens = queue_.num_tokens();
  MutexLock lock(&stats_mutex_);
  EngineStats stats = published_;
  stats.requests_waiting += num_queued;
  stats.queued_tokens = num_tokens;
  return stats;
}

bool EngineImpl::Healthy(absl::Duration limit) const {
  if (queue_.num_unended() == 0) return true;
  return clock_->Now() - absl::FromUnixNanos(heartbeat_nanos_.load()) <= limit;
}

void EngineImpl::Drain(absl::Duration grace) {
  LOG(INFO) << "engine draining unended=" << queue_.num_unended() << " grace=" << grace;
  queue_.Close();
  if (queue_.WaitUntilIdle(grace)) return;
  LOG(WARNING) << "drain is over its grace; ending unended=" << queue_.num_unended();
  queue_.EndAll();
  queue_.WaitUntilIdle(absl::InfiniteDuration());
}

// --- Engine thread ------------------------------------------------------------------------------

void EngineImpl::Run() {
  while (HandleInbox()) {
    // One step of each in turn: no model waits for more than a step of every other.
    const absl::Time start = clock_->Now();
    const bool worked = HasWork();
    for (ServedModel* model : serving_) {
      if (model->has_work()) StepModel(*model);
    }
    if (worked) rounds_.Note(1, clock_->Now() - start);
    ReleaseIdleModels();
  }
}

bool EngineImpl::HandleInbox() {
  Inbox inbox = queue_.Take(/*wait=*/!HasWork());
  Beat();
  serving_.insert(serving_.end(), inbox.loaded.begin(), inbox.loaded.end());
  for (auto& [model, sequence] : inbox.sequences) model->Add(std::move(sequence));
  unloads_.insert(unloads_.end(), inbox.unloads.begin(), inbox.unloads.end());
  PublishStats();
  PublishLoad();
  if (inbox.end_all || inbox.stop) EndAll(absl::UnavailableError("the engine is shutting down"));
  if (!inbox.stop) return true;
  ReleaseIdleModels();
  return false;
}

void EngineImpl::StepModel(ServedModel& model) {
  const absl::Time start = clock_->Now();
  model.Plan(counters_, ended_);
  PublishLoad();
  NotifyEnded();  // those that were cancelled need not wait for the step
  const ServedModel::StepReport report = model.Step(counters_, ended_);
  const absl::Time end = clock_->Now();
  Beat();
  if (report.num_tokens > 0) {
    ++counters_.steps;
    counters_.last_step_time = end;
    speed_.Note(report.num_tokens, end - start);
    // Guesses of decoding sequences are no prompts.
    if (report.num_tokens - (1 + kMaxGuesses) * report.num_sequences >=
        options_.max_step_tokens / 4) {
      prompt_speed_.Note(report.num_tokens, end - start);
    }
    // Before anybody hears that its request ended: who asks then finds the step counted.
    if (observer_ != nullptr) {
      observer_->OnStep(end - start, report.num_tokens, report.num_sequences);
    }
  }
  NotifyEnded();
}

void EngineImpl::NoteOutput(const EndedSequence& ended) {
  constexpr double kKept = 1 - 1.0 / 32;
  if (!ended.result.ok() || ended.sequence->scoring()) return;
  output_tokens_ = output_tokens_ * kKept + ended.sequence->num_output_tokens();
  asked_tokens_ = asked_tokens_ * kKept +
                  static_cast<double>(std::max<int64_t>(1, ended.sequence->asked_output_tokens()));
}

void EngineImpl::PublishLoad() {
  const auto computed = static_cast<double>(counters_.prompt_tokens);
  const double prompts = computed + static_cast<double>(counters_.cached_prompt_tokens);
  const double output_share = asked_tokens_ > 0 ? output_tokens_ / asked_tokens_ : 1;
  for (const ServedModel* model : serving_) {
    EngineLoad load{.tokens_per_second = speed_.per_second(),
                    .prompt_tokens_per_second = prompt_speed_.per_second()};
    if (prompts > 0) load.computed_share = computed / prompts;
    if (rounds_.per_second() > 0) load.seconds_per_step = 1 / rounds_.per_second();
    model->AddLoad(output_share, load);
    queue_.SetLoad(model, load);
  }
}

void EngineImpl::ReleaseIdleModels() {
  for (auto it = unloads_.begin(); it != unloads_.end();) {
    auto [model, done] = *it;
    if (model->has_work()) {
      ++it;
      continue;
    }
    std::erase(serving_, model);
    queue_.ForgetLoad(model);
    it = unloads_.erase(it);
    PublishStats();
    done->Notify();
  }
}

void EngineImpl::EndAll(const absl::Status& status) {
  for (ServedModel* model : serving_) model->EndAll(status, counters_, ended_);
  NotifyEnded();
}

void EngineImpl::NotifyEnded() {
  PublishStats();
  const int count = static_cast<int>(ended_.size());
  if (count == 0) return;
  queue_.ReleasePlaces(ended_);
  PublishLoad();  // before anybody hears of it, and asks for the place
  for (EndedSequence& ended : ended_) {
    try {
      NoteOutput(ended);
      if (!ended.result.ok()) ended.sequence->sink->OnDiscarded(ended.sequence->work_tokens);
      ended.sequence->sink->OnEnd(std::move(ended.result));
    } catch (const std::exception& error) {
      LOG(ERROR) << "OnEnd threw error=" << error.what();
    } catch (...) {
      LOG(ERROR) << "OnEnd threw";
    }
  }
  ended_.clear();
  queue_.MarkEnded(count);
}

void EngineImpl::PublishStats() {
  EngineStats stats = counters_;
  for (const ServedModel* model : serving_) model->AddGauges(stats);
  MutexLock lock(&stats_mutex_);
  published_ = stats;
}

bool EngineImpl::HasWork() const {
  return std::any_of(serving_.begin(), serving_.end(),
                     [](const ServedModel* model) { return model->has_work(); });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options,
                                                       StepObserver* observer, Clock* clock) {
  RETURN_IF_ERROR(options.Validate());
  const kernels::KernelTable* kernels =
      options.kernels.empty() ? &kernels::BestKernels() : kernels::FindKernels(options.kernels);
  return std::make_unique<EngineImpl>(options, *kernels, observer,
                                      clock != nullptr ? clock : &GetSystemClock());
}

}  // namespace quern
