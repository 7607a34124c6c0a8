#include "services/inference/model_loader.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include <memory>
#include <utility>

#include "core/artifact/artifact.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/engine/model_source.h"

namespace quern {
namespace {

constexpr size_t kFingerprintDigits = 12;

}  // namespace

ModelLoader::ModelLoader(std::string model_root, Engine& engine, ArtifactCache& cache)
    : model_root_(std::move(model_root)), engine_(engine), cache_(cache) {}

absl::Status ModelLoader::CheckSource(const inference::v1::Model& model) const {
  if (!model.has_checkpoint()) return absl::OkStatus();
  if (model_root_.empty()) {
    return absl::FailedPreconditionError(
        "model.checkpoint: this server was started without --model-root");
  }
  return ResolveBeneath(model_root_, model.checkpoint()).status();
}

absl::StatusOr<ModelLoader::Loaded> ModelLoader::Load(const inference::v1::Model& model,
                                                      const std::stop_token& stop) {
  if (stop.stop_requested()) return absl::CancelledError("the load was cancelled");
  if (model.has_artifact()) return LoadArtifactModel(model.artifact(), stop);
  return LoadCheckpointModel(model.checkpoint());
}

absl::StatusOr<ModelLoader::Loaded> ModelLoader::LoadArtifactModel(absl::string_view name,
                                                                   const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const Digest digest, Digest::Parse(absl::StripPrefix(name, "artifacts/")));
  ASSIGN_OR_RETURN(std::string directory, cache_.Fetch(digest, stop));
  absl::StatusOr<LoadedArtifact> artifact = LoadArtifact(directory, digest.hex());
  if (absl::IsDataLoss(artifact.status())) {
    // The cache's disk damaged it since it was pulled: the source may have it whole.
    LOG(WARNING) << "cached artifact damaged, pulling again artifact=" << digest.hex()
                 << " error=" << artifact.status();
    RETURN_IF_ERROR(cache_.Discard(digest));
    ASSIGN_OR_RETURN(directory, cache_.Fetch(digest, stop));
    artifact = LoadArtifact(directory, digest.hex());
  }
  RETURN_IF_ERROR(artifact.status());
  const QuantFormat format = artifact->model.format;
  const auto source =
      MakeModelSource(std::make_shared<const PackedModel>(std::move(artifact->model)));
  ASSIGN_OR_RETURN(Loaded loaded, LoadSource(*source));
  loaded.facts.artifact = digest.hex().substr(0, kFingerprintDigits);
  loaded.facts.bits = format.bits;
  loaded.facts.group_size = format.group_size;
  loaded.served.system_fingerprint = absl::StrCat(loaded.facts.artifact, "-", loaded.facts.kernel);
  return loaded;
}

absl::StatusOr<ModelLoader::Loaded> ModelLoader::LoadCheckpointModel(absl::string_view path) {
  ASSIGN_OR_RETURN(const std::string resolved, ResolveBeneath(model_root_, path));
  ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> opened, OpenCheckpoint(resolved));
  const std::shared_ptr<const Checkpoint> checkpoint = std::move(opened);
  // Reads the files once more, so that answers can be traced to exactly these bytes.
  ASSIGN_OR_RETURN(const std::string digest, checkpoint->DigestHex());
  const auto source = MakeModelSource(checkpoint);
  ASSIGN_OR_RETURN(Loaded loaded, LoadSource(*source));
  loaded.served.system_fingerprint =
      absl::StrCat(digest.substr(0, kFingerprintDigits), "-", loaded.facts.kernel);
  return loaded;
}

absl::StatusOr<ModelLoader::Loaded> ModelLoader::LoadSource(const ModelSource& source) {
  Loaded loaded;
  ASSIGN_OR_RETURN(loaded.served.handle, engine_.Load(source));
  ASSIGN_OR_RETURN(loaded.served.info, engine_.Info(loaded.served.handle));
  ASSIGN_OR_RETURN(loaded.served.tokenizer, engine_.GetTokenizer(loaded.served.handle));
  loaded.facts.kernel = loaded.served.info.kernel;
  loaded.facts.weight_bytes = loaded.served.info.weight_bytes;
  loaded.facts.kv_bytes = loaded.served.info.kv_bytes;
  return loaded;
}

}  // namespace quern
