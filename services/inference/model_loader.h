#ifndef QUERN_SERVICES_INFERENCE_MODEL_LOADER_H_
#define QUERN_SERVICES_INFERENCE_MODEL_LOADER_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "core/artifact/artifact.h"
#include "core/base/sha256.h"
#include "core/engine/engine.h"
#include "core/engine/model_source.h"
#include "services/artifact_cache/artifact_cache.h"
#include "services/inference/active_model.h"
#include "services/inference/metrics.h"

namespace quern {

// The way of a model from its source into the engine. Thread-safe.
class ModelLoader {
 public:
  struct Loaded {
    ActiveModel served;  // without `id` and `metrics`
    LoadedModelFacts facts;
    std::string base;  // of a scale delta: artifacts/{artifact}
  };
  // Asked before memory is taken, with the bytes that the model needs; an error ends the load.
  using Admission = std::function<absl::Status(const ModelMemory& need)>;

  // `model_root`: where checkpoints may be; empty: none can be served. The references outlive this.
  ModelLoader(std::string model_root, Engine& engine, ArtifactCache& cache);

  // What can be said of a source before it is read: FAILED_PRECONDITION for a checkpoint when there
  // is no model root, INVALID_ARGUMENT or NOT_FOUND when it is not below it.
  absl::Status CheckSource(const inference::v1::Model& model) const;

  // The memory that the model will need, where that can be said without a pull: nothing for an
  // artifact that is not in the cache yet, and for what will fail to load.
  std::optional<ModelMemory> PlanMemory(const inference::v1::Model& model) const;

  // Pulls what is missing, a scale delta's base included, verifies it, asks for admission and gives
  // it to the engine. Blocks; `stop` ends a pull with CANCELLED. Errors as ArtifactCache::Fetch,
  // LoadArtifact, LoadScaleDelta, OpenCheckpoint, Engine::Load, and those of `admit`.
  absl::StatusOr<Loaded> Load(const inference::v1::Model& model, const Admission& admit,
                              const std::stop_token& stop);

 private:
  using ReadFn = std::function<absl::StatusOr<LoadedArtifact>(const std::string& directory)>;

  absl::StatusOr<Loaded> LoadArtifactModel(absl::string_view name, const LoadOptions& options,
                                           const Admission& admit, const std::stop_token& stop);
  // The model that guesses for another.
  absl::StatusOr<std::unique_ptr<ModelSource>> LoadDraft(absl::string_view name,
                                                         const std::stop_token& stop);
  absl::StatusOr<Loaded> LoadCheckpointModel(absl::string_view path, const LoadOptions& options,
                                             const Admission& admit);
  // A whole model's artifact, or a scale delta's with its base's weights.
  absl::StatusOr<Loaded> LoadPacked(LoadedArtifact artifact, const LoadOptions& options,
                                    const Admission& admit);
  // A source of which only the shapes are to be had; null when the artifact is not in the cache.
  std::unique_ptr<ModelSource> ShapeOfCached(absl::string_view artifact) const;
  // Gives the engine the source and collects what requests need. `digest`: of what it was made of.
  absl::StatusOr<Loaded> LoadSource(const ModelSource& source, const LoadOptions& options,
                                    absl::string_view digest, const Admission& admit);
  // The artifact in memory, whether it is a whole model or a scale delta.
  absl::StatusOr<LoadedArtifact> ReadArtifact(const Digest& digest, const std::stop_token& stop);
  // Reads it from the cache; once more when what was there is damaged.
  absl::StatusOr<LoadedArtifact> ReadCached(const Digest& digest, const ReadFn& read,
                                            const std::stop_token& stop);

  const std::string model_root_;
  Engine& engine_;
  ArtifactCache& cache_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_MODEL_LOADER_H_
