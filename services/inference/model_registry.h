#ifndef QUERN_SERVICES_INFERENCE_MODEL_REGISTRY_H_
#define QUERN_SERVICES_INFERENCE_MODEL_REGISTRY_H_

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "core/base/clock.h"
#include "core/base/mutex.h"
#include "core/engine/engine.h"
#include "services/common/executor.h"
#include "services/inference/active_model.h"
#include "services/inference/metrics.h"
#include "services/inference/model_list.h"
#include "services/inference/model_loader.h"
#include "services/inference/resident_model.h"

namespace quern {

// In memory, or to be loaded again by the next request.
bool CanBeAsked(const inference::v1::Model& model);

struct ModelRegistryOptions {
  // The file that keeps which models were asked for, so that a restart loads them again.
  std::string list_path;
  // Of models that are asked for without one.
  KvCacheType kv_cache_type = KvCacheType::kFloat16;
  // For weights, KV pages and buffers of all models together.
  int64_t memory_bytes = std::numeric_limits<int64_t>::max();
  // A load that finds no memory takes models out that nobody uses, the longest unused first.
  bool evict_for_memory = false;
  // A model that nobody used for this long is taken out of memory; infinite: none is.
  absl::Duration idle_timeout = absl::InfiniteDuration();
};

// The models of this server, by name, their aliases, and the threads that load and unload them.
// What is taken out of memory stays here, IDLE, until the next request for it. Thread-safe.
class ModelRegistry {
 public:
  // Hears whether models/{id} can be asked, for a model's or an alias's id.
  using HealthObserver = std::function<void(const std::string& id, bool serving)>;

  // Hears of the model once it is loaded, or why it could not be.
  using Waiter = std::function<void(const absl::StatusOr<std::shared_ptr<const ActiveModel>>&)>;

  // All references must outlive the registry.
  ModelRegistry(ModelRegistryOptions options, Engine& engine, ModelLoader& loader,
                InferenceMetrics& metrics, Clock& clock);
  // Cancels loads and waits for them; models stay in the engine. No request holds a model any more.
  ~ModelRegistry();

  // Starts to load the models of the list; one that cannot be loaded any more is there as FAILED.
  // Before anything else. DATA_LOSS when the list is damaged.
  absl::Status Restore() ABSL_LOCKS_EXCLUDED(mutex_);

  // Tells `observer` of all models and aliases now, then of each change, until another or null
  // takes its place. It must not call back.
  void ObserveHealth(HealthObserver observer) ABSL_LOCKS_EXCLUDED(mutex_);

  // Starts to load, once the list has it, and returns the model in LOADING. A FAILED model of the
  // same name is replaced. INVALID_ARGUMENT, NOT_FOUND (a checkpoint that is not there),
  // ALREADY_EXISTS, RESOURCE_EXHAUSTED (too many models, or no memory for it and none that may be
  // taken from others; what is known only after a pull ends in FAILED), UNAVAILABLE after Drain.
  absl::StatusOr<inference::v1::Model> Create(const inference::v1::CreateModelRequest& request)
      ABSL_LOCKS_EXCLUDED(save_mutex_, mutex_);

  // The model that the name of a model or an alias stands for.
  absl::StatusOr<inference::v1::Model> Get(absl::string_view name) const;

  absl::StatusOr<inference::v1::ListModelsResponse> List(
      const inference::v1::ListModelsRequest& request) const;

  // Takes the model away: a load is cancelled, running requests finish. `on_done` is called once,
  // on any thread, when the memory is free or with why it is not. FAILED_PRECONDITION for an alias,
  // and for a model with aliases unless they are to go with it.
  void Delete(const inference::v1::DeleteModelRequest& request,
              std::function<void(absl::Status)> on_done);

  // See ModelService.
  absl::StatusOr<inference::v1::Alias> CreateAlias(const inference::v1::CreateAliasRequest& request)
      ABSL_LOCKS_EXCLUDED(save_mutex_, mutex_);
  absl::StatusOr<inference::v1::Alias> UpdateAlias(const inference::v1::UpdateAliasRequest& request)
      ABSL_LOCKS_EXCLUDED(save_mutex_, mutex_);
  absl::Status DeleteAlias(const inference::v1::DeleteAliasRequest& request)
      ABSL_LOCKS_EXCLUDED(save_mutex_, mutex_);
  absl::StatusOr<inference::v1::Alias> GetAlias(absl::string_view name) const;
  absl::StatusOr<inference::v1::ListAliasesResponse> ListAliases(
      const inference::v1::ListAliasesRequest& request) const;

  // The model that `name`, models/{model or alias}, stands for now, for one request: it stays in
  // memory as long as the result is held. When the model is IDLE, begins to load it (once, whoever
  // asks meanwhile) and returns null: `when_loaded` is called later, once, on a thread that must
  // not be held up. NOT_FOUND; UNAVAILABLE while it loads for the first time and after Drain;
  // FAILED_PRECONDITION when it failed or is being deleted; RESOURCE_EXHAUSTED when too many wait.
  absl::StatusOr<std::shared_ptr<const ActiveModel>> Find(absl::string_view name,
                                                          Waiter when_loaded);

  // Refuses new models, cancels loads under way and sends away who waits for one.
  void Drain() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Entry {
    inference::v1::Model model;               // its state is the state of the entry
    std::shared_ptr<ResidentModel> resident;  // in ACTIVE
    std::stop_source stop;                    // of the load
    std::vector<std::function<void(absl::Status)>> on_deleted;
    int64_t reserved_bytes = 0;  // of the memory for models, from admission to the unload's end
    bool evicting = false;       // IDLE, but not yet out of memory
    LoadCause cause = LoadCause::kCreated;  // of the load under way or the last one
    std::vector<Waiter> waiting;            // LOADING again after IDLE
  };
  // A model on its way out of memory.
  struct Eviction {
    std::string id;
    ModelHandle handle = 0;
    int64_t bytes = 0;
    EvictionReason reason = EvictionReason::kIdle;
  };

  void StartLoad(const std::string& id, const inference::v1::Model& model, LoadCause cause)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PostLoad(const std::string& id, Entry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunLoad(const std::string& id, const inference::v1::Model& model,
               const std::stop_token& stop) ABSL_LOCKS_EXCLUDED(mutex_);
  // The entry becomes ACTIVE, or what a failure makes of it.
  void FinishLoad(const std::string& id, Entry& entry, ModelLoader::Loaded loaded,
                  absl::Duration duration) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailLoad(const std::string& id, Entry& entry, const absl::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What a waiter is told at the end of a load.
  absl::StatusOr<std::shared_ptr<const ActiveModel>> ResultOfLoad(const std::string& id,
                                                                  const Entry& entry,
                                                                  const absl::Status& loaded) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Sets memory aside for the model, by evictions if need be. RESOURCE_EXHAUSTED.
  absl::Status Reserve(const std::string& id, const ModelMemory& need) ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t FreeBytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of models that may be evicted now.
  int64_t EvictableBytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // OK when there is memory, or evictions would make it. RESOURCE_EXHAUSTED.
  absl::Status CheckMemory(const std::string& id, const ModelMemory& need) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TellMemory() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The model that nobody has used for the longest time, since `before` at least; end() if none.
  std::map<std::string, Entry>::iterator FindUnused(absl::Time before)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Makes the entry IDLE; FinishEviction, without the lock, takes it out of memory.
  Eviction BeginEviction(const std::string& id, Entry& entry, EvictionReason reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishEviction(const Eviction& eviction) ABSL_LOCKS_EXCLUDED(mutex_);
  // The thread that looks for models that nobody uses.
  void RunIdleSweeper() ABSL_LOCKS_EXCLUDED(mutex_);

  void RunUnload(const std::string& id, ModelHandle handle) ABSL_LOCKS_EXCLUDED(mutex_);
  // Removes the entry and tells those who wait for its end.
  void Remove(const std::string& id, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  inference::v1::Model Describe(const std::string& id, const Entry& entry) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `id`, or the model that it is an alias of.
  const std::string& ResolveAlias(const std::string& id) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What is to be in the list as things stand, for a change to be made to it.
  ModelList Listed() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Begins to take a model away; true when that is done at once.
  absl::StatusOr<bool> BeginDelete(const inference::v1::DeleteModelRequest& request,
                                   std::function<void(absl::Status)>& on_done)
      ABSL_LOCKS_EXCLUDED(save_mutex_, mutex_);
  absl::StatusOr<std::string> CheckDelete(const inference::v1::DeleteModelRequest& request) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<std::string> AliasesOf(const std::string& id) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The id of a model that an alias may be pointed to.
  absl::StatusOr<std::string> CheckTarget(absl::string_view model) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Writes the list with the alias and makes the change. `save_mutex_` is held since the checks.
  absl::StatusOr<inference::v1::Alias> SetAlias(const std::string& id, const std::string& model)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(save_mutex_) ABSL_LOCKS_EXCLUDED(mutex_);
  // Of the model and its aliases.
  void TellHealth(const std::string& id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ModelRegistryOptions options_;
  Engine& engine_;
  ModelLoader& loader_;
  InferenceMetrics& metrics_;
  Clock& clock_;

  // Held from the check of a change until it is made, so that requests need not wait for the disk.
  Mutex save_mutex_;
  mutable Mutex mutex_ ABSL_ACQUIRED_AFTER(save_mutex_);
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, AliasTarget> aliases_ ABSL_GUARDED_BY(mutex_);
  HealthObserver health_observer_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  // Of models that are being evicted; no entry has it any more.
  int64_t evicting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  CondVar evicted_;  // an eviction has come to its end
  CondVar stop_sweeper_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread idle_sweeper_;
  // Last, so that its threads end before what they use.
  Executor executor_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_MODEL_REGISTRY_H_
