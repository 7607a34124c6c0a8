#include "services/inference/model_loader.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <unistd.h>

#include <memory>
#include <utility>

#include "core/artifact/artifact.h"
#include "core/artifact/packed_model.h"
#include "core/artifact/scale_delta.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/engine/model_source.h"
#include "services/inference/model_load_options.h"

namespace quern {
namespace {

constexpr size_t kFingerprintDigits = 12;

// Whether a directory below the model root is an artifact, e.g. an imported one.
bool IsArtifact(const std::string& path) {
  return access(absl::StrCat(path, "/", kManifestName).c_str(), F_OK) == 0;
}

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

std::unique_ptr<ModelSource> ModelLoader::ShapeOfCached(absl::string_view artifact) const {
  const auto digest = Digest::Parse(absl::StripPrefix(artifact, "artifacts/"));
  const std::optional<std::string> directory =
      digest.ok() ? cache_.Find(*digest) : std::optional<std::string>();
  if (!directory.has_value()) return nullptr;
  const absl::StatusOr<Manifest> manifest = ReadManifest(*directory);
  if (!manifest.ok()) return nullptr;
  return MakeModelSource(std::make_shared<const PackedModel>(ShapeOf(*manifest)));
}

std::optional<ModelMemory> ModelLoader::PlanMemory(const inference::v1::Model& model) const {
  LoadOptions options = LoadOptionsOf(model);
  std::unique_ptr<ModelSource> draft;
  if (const std::string& name = model.speculation().draft_artifact(); !name.empty()) {
    draft = ShapeOfCached(name);
    if (draft == nullptr) return std::nullopt;
    options.speculation.draft = draft.get();
  }
  std::unique_ptr<ModelSource> source;
  if (model.has_artifact()) {
    source = ShapeOfCached(model.artifact());
    if (source == nullptr) return std::nullopt;
  } else {
    const absl::StatusOr<std::string> path = ResolveBeneath(model_root_, model.checkpoint());
    if (!path.ok()) return std::nullopt;
    if (IsArtifact(*path)) {
      const absl::StatusOr<Manifest> manifest = ReadManifest(*path);
      if (!manifest.ok()) return std::nullopt;
      source = MakeModelSource(std::make_shared<const PackedModel>(ShapeOf(*manifest)));
    } else {
      absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = OpenCheckpoint(*path);
      if (!checkpoint.ok()) return std::nullopt;
      source = MakeModelSource(std::shared_ptr<const Checkpoint>(*std::move(checkpoint)));
    }
  }
  const absl::StatusOr<ModelMemory> need = engine_.PlanMemory(*source, options);
  return need.ok() ? *need : std::optional<ModelMemory>();
}

absl::StatusOr<ModelLoader::Loaded> ModelLoader::Load(const inference::v1::Model& model,
                                                      const Admission& admit,
                                                      const std::stop_token& stop) {
  if (stop.stop_requested()) return absl::CancelledError("the load was cancelled");
  LoadOptions options = LoadOptionsOf(model);
  std::unique_ptr<ModelSource> draft;
  if (const std::string& name = model.speculation().draft_artifact(); !name.empty()) {
    ASSIGN_OR_RETURN(draft, LoadDraft(name, stop));
    options.speculation.draft = draft.get();
  }
  if (model.has_artifact()) return LoadArtifactModel(model.artifact(), options, admit, stop);
  return LoadCheckpointModel(model.checkpoint(), options, admit);
}

absl::StatusOr<LoadedArtifact> ModelLoader::ReadCached(const Digest& digest, const ReadFn& read,
                                                       const std::stop_token& stop) {
  ASSIGN_OR_RETURN(std::string directory, cache_.Fetch(digest, stop));
  absl::StatusOr<LoadedArtifact> artifact = read(directory);
  if (!absl::IsDataLoss(artifact.status())) return artifact;
  // The cache's disk damaged it since it was pulled: the source may have it whole.
  LOG(WARNING) << "cached artifact damaged, pulling again artifact=" << digest.hex()
               << " error=" << artifact.status();
  RETURN_IF_ERROR(cache_.Discard(digest));
  ASSIGN_OR_RETURN(directory, cache_.Fetch(digest, stop));
  return read(directory);
}

absl::StatusOr<LoadedArtifact> ModelLoader::ReadArtifact(const Digest& digest,
                                                         const std::stop_token& stop) {
  const auto read_base = [&](const Digest& base) {
    return ReadCached(
        base, [&](const std::string& directory) { return LoadArtifact(directory, base.hex()); },
        stop);
  };
  return ReadCached(
      digest,
      [&](const std::string& directory) -> absl::StatusOr<LoadedArtifact> {
        ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(directory));
        if (manifest.base.empty()) return LoadArtifact(directory, digest.hex());
        ASSIGN_OR_RETURN(const Digest base_digest, Digest::Parse(manifest.base));
        const absl::StatusOr<LoadedArtifact> base = read_base(base_digest);
        if (!base.ok()) {
          return absl::Status(base.status().code(),
                              absl::StrCat("the base of scale delta ", digest.hex(), ": ",
                                           base.status().message()));
        }
        return LoadScaleDelta(directory, *base, digest.hex());
      },
      stop);
}

absl::StatusOr<std::unique_ptr<ModelSource>> ModelLoader::LoadDraft(absl::string_view name,
                                                                    const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const Digest digest, Digest::Parse(absl::StripPrefix(name, "artifacts/")));
  absl::StatusOr<LoadedArtifact> artifact = ReadArtifact(digest, stop);
  if (!artifact.ok()) {
    return absl::Status(artifact.status().code(),
                        absl::StrCat("the draft model: ", artifact.status().message()));
  }
  return MakeModelSource(std::make_shared<const PackedModel>(std::move(artifact->model)));
}

absl::StatusOr<ModelLoader::Loaded> ModelLoader::LoadArtifactModel(absl::string_view name,
                                                                   const LoadOptions& options,
                                                                   const Admission& admit,
                                                                   const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const Digest digest, Digest::Parse(absl::StripPrefix(name, "artifacts/")));
  ASSIGN_OR_RETURN(LoadedArtifact artifact, ReadArtifact(digest, stop));
  return LoadPacked(std::move(artifact), options, admit);
}

absl::StatusOr<ModelLoader::Loaded> ModelLoader::LoadPacked(LoadedArtifact artifact,
                                                            const LoadOptions& options,
                                                            const Admission& admit) {
  const std::string id = std::move(artifact.id);
  const QuantFormat format = artifact.model.format;
  const double bits = MeanBits(format, artifact.model.config);
  const auto source =
      MakeModelSource(std::make_shared<const PackedModel>(std::move(artifact.model)));
  ASSIGN_OR_RETURN(Loaded loaded, LoadSource(*source, options, id, admit));
  loaded.facts.artifact = id.substr(0, kFingerprintDigits);
  loaded.facts.bits = bits;
  loaded.facts.group_size = format.group_size;
  if (const std::string& base = artifact.manifest.base; !base.empty()) {
    loaded.base = absl::StrCat("artifacts/", base);
  }
  return loaded;
}

absl::StatusOr<ModelLoader::Loaded> ModelLoader::LoadCheckpointModel(absl::string_view path,
                                                                     const LoadOptions& options,
                                                                     const Admission& admit) {
  ASSIGN_OR_RETURN(const std::string resolved, ResolveBeneath(model_root_, path));
  if (IsArtifact(resolved)) {
    ASSIGN_OR_RETURN(LoadedArtifact artifact, LoadArtifact(resolved));
    return LoadPacked(std::move(artifact), options, admit);
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> opened, OpenCheckpoint(resolved));
  const std::shared_ptr<const Checkpoint> checkpoint = std::move(opened);
  // Reads the files once more, so that answers can be traced to exactly these bytes.
  ASSIGN_OR_RETURN(const std::string digest, checkpoint->DigestHex());
  const auto source = MakeModelSource(checkpoint);
  return LoadSource(*source, options, digest, admit);
}

absl::StatusOr<ModelLoader::Loaded> ModelLoader::LoadSource(const ModelSource& source,
                                                            const LoadOptions& options,
                                                            absl::string_view digest,
                                                            const Admission& admit) {
  ASSIGN_OR_RETURN(const ModelMemory need, engine_.PlanMemory(source, options));
  RETURN_IF_ERROR(admit(need));
  Loaded loaded;
  ASSIGN_OR_RETURN(loaded.served.handle, engine_.Load(source, options));
  ASSIGN_OR_RETURN(loaded.served.info, engine_.Info(loaded.served.handle));
  ASSIGN_OR_RETURN(loaded.served.tokenizer, engine_.GetTokenizer(loaded.served.handle));
  loaded.facts.kernel = loaded.served.info.kernel;
  loaded.facts.weight_bytes = loaded.served.info.weight_bytes;
  loaded.facts.shared_bytes = loaded.served.info.shared_weight_bytes;
  loaded.facts.kv_bytes = loaded.served.info.kv_bytes;
  loaded.facts.kv_cache_type = std::string(KvCacheTypeName(options.kv_cache_type));
  loaded.served.system_fingerprint =
      absl::StrCat(digest.substr(0, kFingerprintDigits), "-", loaded.facts.kernel);
  if (options.kv_cache_type != KvCacheType::kFloat16) {
    // Its numbers are others.
    absl::StrAppend(&loaded.served.system_fingerprint, "-kv-", loaded.facts.kv_cache_type);
  }
  return loaded;
}

}  // namespace quern
