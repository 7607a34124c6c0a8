#ifndef QUERN_SERVICES_INFERENCE_MODEL_LOADER_H_
#define QUERN_SERVICES_INFERENCE_MODEL_LOADER_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <stop_token>
#include <string>

#include "core/engine/engine.h"
#include "services/inference/artifact_cache.h"
#include "services/inference/metrics.h"
#include "services/inference/served_model.h"

namespace quern {

// The way of a model from its source into the engine. Thread-safe.
class ModelLoader {
 public:
  struct Loaded {
    ServedModel served;  // without `id` and `metrics`
    LoadedModelFacts facts;
  };

  // `model_root`: where checkpoints may be; empty: none can be served. The references outlive this.
  ModelLoader(std::string model_root, Engine& engine, ArtifactCache& cache);

  // What can be said of a source before it is read: FAILED_PRECONDITION for a checkpoint when there
  // is no model root, INVALID_ARGUMENT or NOT_FOUND when it is not below it.
  absl::Status CheckSource(const inference::v1::Model& model) const;

  // Pulls what is missing, verifies it and gives it to the engine. Blocks; `stop` ends a pull with
  // CANCELLED. Errors as ArtifactCache::Fetch, LoadArtifact, OpenCheckpoint and Engine::Load.
  absl::StatusOr<Loaded> Load(const inference::v1::Model& model, const std::stop_token& stop);

 private:
  absl::StatusOr<Loaded> LoadArtifactModel(absl::string_view name, const std::stop_token& stop);
  absl::StatusOr<Loaded> LoadCheckpointModel(absl::string_view path);
  // Gives the engine the source and collects what requests need.
  absl::StatusOr<Loaded> LoadSource(const ModelSource& source);

  const std::string model_root_;
  Engine& engine_;
  ArtifactCache& cache_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_MODEL_LOADER_H_
