#ifndef QUERN_SERVICES_INFERENCE_MODEL_REGISTRY_H_
#define QUERN_SERVICES_INFERENCE_MODEL_REGISTRY_H_

#include <absl/base/thread_annotations.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <functional>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/mutex.h"
#include "core/engine/engine.h"
#include "services/common/executor.h"
#include "services/inference/metrics.h"
#include "services/inference/model_list.h"
#include "services/inference/model_loader.h"
#include "services/inference/resident_model.h"
#include "services/inference/served_model.h"

namespace quern {

// The models of this server, by name, their aliases, and the threads that load and unload them.
// Thread-safe.
class ModelRegistry {
 public:
  // Hears whether models/{id} can be asked, for a model's or an alias's id.
  using HealthObserver = std::function<void(const std::string& id, bool serving)>;

  // `list_path`: the file that keeps which models were asked for, so that a restart loads them
  // again. All references must outlive the registry.
  ModelRegistry(std::string list_path, Engine& engine, ModelLoader& loader,
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
  // ALREADY_EXISTS, RESOURCE_EXHAUSTED, UNAVAILABLE after Drain.
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
  // memory as long as the result is held. NOT_FOUND; UNAVAILABLE while it loads;
  // FAILED_PRECONDITION when it failed or is being deleted.
  absl::StatusOr<std::shared_ptr<const ServedModel>> Find(absl::string_view name) const;

  // Refuses new models and cancels loads under way.
  void Drain();

 private:
  struct Entry {
    inference::v1::Model model;               // its state is the state of the entry
    std::shared_ptr<ResidentModel> resident;  // in ACTIVE
    std::stop_source stop;                    // of the load
    std::vector<std::function<void(absl::Status)>> on_deleted;
  };

  void StartLoad(const std::string& id, const inference::v1::Model& model)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunLoad(const std::string& id, inference::v1::Model model, std::stop_token stop)
      ABSL_LOCKS_EXCLUDED(mutex_);
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

  const std::string list_path_;
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
  // Last, so that its threads end before what they use.
  Executor executor_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_MODEL_REGISTRY_H_
