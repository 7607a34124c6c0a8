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
#include "services/inference/artifact_cache.h"
#include "services/inference/metrics.h"
#include "services/inference/served_model.h"

namespace quern {

// Beyond it CreateModel is RESOURCE_EXHAUSTED; each model keeps weights and KV pages in memory.
inline constexpr int kMaxModels = 16;

// The models of this server, by name, and the threads that load and unload them. Thread-safe.
class ModelRegistry {
 public:
  // `model_root`: where checkpoints may be; empty: none can be served. `list_path`: the file that
  // keeps which models were asked for, so that a restart loads them again. All references must
  // outlive the registry.
  ModelRegistry(std::string model_root, std::string list_path, Engine& engine, ArtifactCache& cache,
                InferenceMetrics& metrics, Clock& clock);
  // Cancels loads and waits for them; models stay in the engine.
  ~ModelRegistry();

  // Starts to load the models of the list; one that cannot be loaded any more is there as FAILED.
  // Before anything else. DATA_LOSS when the list is damaged.
  absl::Status Restore() ABSL_LOCKS_EXCLUDED(mutex_);

  // Starts to load, once the list has it, and returns the model in LOADING. A FAILED model of the
  // same name is replaced. INVALID_ARGUMENT, NOT_FOUND (a checkpoint that is not there),
  // ALREADY_EXISTS, RESOURCE_EXHAUSTED, UNAVAILABLE after Drain.
  absl::StatusOr<inference::v1::Model> Create(const inference::v1::CreateModelRequest& request)
      ABSL_LOCKS_EXCLUDED(save_mutex_, mutex_);

  absl::StatusOr<inference::v1::Model> Get(absl::string_view name) const;

  absl::StatusOr<inference::v1::ListModelsResponse> List(
      const inference::v1::ListModelsRequest& request) const;

  // Takes the model away: a load is cancelled, running requests finish. `on_done` is called once,
  // on any thread, when the memory is free or with why it is not.
  void Delete(absl::string_view name, std::function<void(absl::Status)> on_done);

  // The model `name` ("models/{model}") for a request. NOT_FOUND; UNAVAILABLE while it loads;
  // FAILED_PRECONDITION when it failed or is being deleted.
  absl::StatusOr<std::shared_ptr<const ServedModel>> Find(absl::string_view name) const;

  // Refuses new models and cancels loads under way.
  void Drain();

 private:
  struct Entry {
    inference::v1::Model model;                 // its state is the state of the entry
    std::shared_ptr<const ServedModel> served;  // in ACTIVE
    std::stop_source stop;                      // of the load
    std::vector<std::function<void(absl::Status)>> on_deleted;
  };
  struct Loaded {
    ServedModel served;
    LoadedModelFacts facts;
  };

  void StartLoad(const std::string& id, const inference::v1::Model& model)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunLoad(const std::string& id, inference::v1::Model model, std::stop_token stop)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Loaded> Load(const inference::v1::Model& model, const std::stop_token& stop);
  absl::StatusOr<Loaded> LoadArtifactModel(absl::string_view name, const std::stop_token& stop);
  absl::StatusOr<Loaded> LoadCheckpointModel(absl::string_view path);
  // Gives the engine the source and collects what requests need.
  absl::StatusOr<Loaded> LoadSource(const ModelSource& source);
  void RunUnload(const std::string& id, ModelHandle handle) ABSL_LOCKS_EXCLUDED(mutex_);
  // Removes the entry and tells those who wait for its end.
  void Remove(const std::string& id, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<const Entry*> FindEntry(absl::string_view name) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Writes the list as it is to be: with `added`, without the model `removed`.
  absl::Status Save(const inference::v1::Model* added, absl::string_view removed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(save_mutex_) ABSL_LOCKS_EXCLUDED(mutex_);
  // Begins to take a model away; true when that is done at once.
  absl::StatusOr<bool> BeginDelete(absl::string_view name,
                                   std::function<void(absl::Status)>& on_done)
      ABSL_LOCKS_EXCLUDED(save_mutex_, mutex_);

  const std::string model_root_;
  const std::string list_path_;
  Engine& engine_;
  ArtifactCache& cache_;
  InferenceMetrics& metrics_;
  Clock& clock_;

  // Held from the check of a change until it is made, so that requests need not wait for the disk.
  Mutex save_mutex_;
  mutable Mutex mutex_ ABSL_ACQUIRED_AFTER(save_mutex_);
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  // Last, so that its threads end before what they use.
  Executor executor_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_MODEL_REGISTRY_H_
