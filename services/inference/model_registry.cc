#include "services/inference/model_registry.h"

#include <absl/algorithm/container.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/artifact/artifact.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/engine/model_source.h"
#include "services/inference/request_check.h"

namespace quern {
namespace {

using inference::v1::CreateModelRequest;
using inference::v1::ListModelsRequest;
using inference::v1::ListModelsResponse;
using inference::v1::Model;

constexpr int kNumLoadThreads = 4;
constexpr int kDefaultPageSize = 50;
constexpr int kMaxPageSize = 1000;
constexpr size_t kFingerprintDigits = 12;
constexpr size_t kMaxListBytes = 1 << 20;

absl::Status NoSuchModel(absl::string_view id) {
  return absl::NotFoundError(absl::StrCat("models/", id, " is not on this server"));
}

void SetTimestamp(absl::Time time, google::protobuf::Timestamp* out) {
  absl::Duration rest;
  out->set_seconds(absl::IDivDuration(time - absl::UnixEpoch(), absl::Seconds(1), &rest));
  out->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
}

// What Save writes. Names and sources pass the checks of a request.
absl::StatusOr<std::vector<CreateModelRequest>> ParseModelList(absl::string_view text,
                                                               absl::string_view path) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(text, path));
  ASSIGN_OR_RETURN(const JsonObject root, JsonObject::Of(json, path));
  ASSIGN_OR_RETURN(const Json* models, root.Array("models"));
  if (models->size() > kMaxModels) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": models: found ", models->size(), ", wanted at most ", kMaxModels));
  }
  std::vector<CreateModelRequest> requests;
  for (const Json& element : *models) {
    ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(element, path));
    CreateModelRequest request;
    ASSIGN_OR_RETURN(*request.mutable_model_id(), object.String("id"));
    if (object.Has("artifact")) {
      ASSIGN_OR_RETURN(*request.mutable_model()->mutable_artifact(), object.String("artifact"));
    } else {
      ASSIGN_OR_RETURN(*request.mutable_model()->mutable_checkpoint(), object.String("checkpoint"));
    }
    RETURN_IF_ERROR(CheckCreateModel(request));
    const bool known = absl::c_any_of(requests, [&](const CreateModelRequest& other) {
      return other.model_id() == request.model_id();
    });
    if (known) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": models: ", request.model_id(), " is there twice"));
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

std::string SourceOf(const Model& model) {
  return model.has_artifact() ? model.artifact() : absl::StrCat("checkpoint ", model.checkpoint());
}

}  // namespace

ModelRegistry::ModelRegistry(std::string model_root, std::string list_path, Engine& engine,
                             ArtifactCache& cache, InferenceMetrics& metrics, Clock& clock)
    : model_root_(std::move(model_root)),
      list_path_(std::move(list_path)),
      engine_(engine),
      cache_(cache),
      metrics_(metrics),
      clock_(clock),
      executor_(kNumLoadThreads) {}

ModelRegistry::~ModelRegistry() { Drain(); }

absl::StatusOr<Model> ModelRegistry::Create(const CreateModelRequest& request) {
  RETURN_IF_ERROR(CheckCreateModel(request));
  const std::string& id = request.model_id();
  if (request.model().has_checkpoint()) {
    if (model_root_.empty()) {
      return absl::FailedPreconditionError(
          "model.checkpoint: this server was started without --model-root");
    }
    RETURN_IF_ERROR(ResolveBeneath(model_root_, request.model().checkpoint()).status());
  }
  Model model;
  model.set_name(absl::StrCat("models/", id));
  if (request.model().has_artifact()) model.set_artifact(request.model().artifact());
  if (request.model().has_checkpoint()) model.set_checkpoint(request.model().checkpoint());
  model.set_state(Model::LOADING);
  SetTimestamp(clock_.Now(), model.mutable_create_time());

  MutexLock saving(&save_mutex_);
  {
    MutexLock lock(&mutex_);
    if (draining_) return absl::UnavailableError("the server is shutting down");
    const auto it = entries_.find(id);
    if (it != entries_.end() && it->second.model.state() != Model::FAILED) {
      return absl::AlreadyExistsError(absl::StrCat("models/", id, " is there already (",
                                                   Model::State_Name(it->second.model.state()),
                                                   "): delete it first or take another model_id"));
    }
    if (it == entries_.end() && entries_.size() >= kMaxModels) {
      return absl::ResourceExhaustedError(
          absl::StrCat("this server holds at most ", kMaxModels, " models: delete one first"));
    }
  }
  RETURN_IF_ERROR(Save(&model, ""));
  MutexLock lock(&mutex_);
  StartLoad(id, model);
  return model;
}

void ModelRegistry::StartLoad(const std::string& id, const Model& model) {
  Entry& entry = entries_[id] = Entry{.model = model};
  executor_.Post([this, id, model, stop = entry.stop.get_token()] { RunLoad(id, model, stop); });
}

absl::Status ModelRegistry::Restore() {
  absl::StatusOr<std::string> text = ReadFile(list_path_, kMaxListBytes);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  RETURN_IF_ERROR(text.status());
  const absl::StatusOr<std::vector<CreateModelRequest>> list = ParseModelList(*text, list_path_);
  if (!list.ok()) {
    return absl::DataLossError(absl::StrCat(list.status().message(), ": remove ", list_path_,
                                            " to start without models, and load them again"));
  }
  MutexLock lock(&mutex_);
  for (const CreateModelRequest& request : *list) {
    Model model = request.model();
    model.set_name(absl::StrCat("models/", request.model_id()));
    model.set_state(Model::LOADING);
    SetTimestamp(clock_.Now(), model.mutable_create_time());
    StartLoad(request.model_id(), model);
  }
  return absl::OkStatus();
}

absl::Status ModelRegistry::Save(const Model* added, absl::string_view removed) {
  std::map<std::string, Model> models;
  {
    MutexLock lock(&mutex_);
    for (const auto& [id, entry] : entries_) {
      if (entry.model.state() != Model::DELETING && entry.model.name() != removed) {
        models[entry.model.name()] = entry.model;
      }
    }
  }
  if (added != nullptr) models[added->name()] = *added;
  Json list = Json::array();
  for (const auto& [name, model] : models) {
    const char* const source = model.has_artifact() ? "artifact" : "checkpoint";
    list.push_back({{"id", std::string(absl::StripPrefix(name, "models/"))},
                    {source, model.has_artifact() ? model.artifact() : model.checkpoint()}});
  }
  return WriteFileDurably(list_path_, DumpCanonicalJson({{"models", std::move(list)}}));
}

absl::StatusOr<const ModelRegistry::Entry*> ModelRegistry::FindEntry(absl::string_view name) const {
  ASSIGN_OR_RETURN(const std::string id, ParseModelName(name, "name"));
  const auto it = entries_.find(id);
  if (it == entries_.end()) return NoSuchModel(id);
  return &it->second;
}

absl::StatusOr<Model> ModelRegistry::Get(absl::string_view name) const {
  MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(const Entry* entry, FindEntry(name));
  return entry->model;
}

absl::StatusOr<ListModelsResponse> ModelRegistry::List(const ListModelsRequest& request) const {
  if (request.page_size() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size must be 0 or more, got ", request.page_size()));
  }
  // The token is the id that the page before ended with.
  if (!request.page_token().empty()) {
    RETURN_IF_ERROR(CheckModelId(request.page_token(), "page_token"));
  }
  const int wanted = request.page_size() == 0 ? kDefaultPageSize : request.page_size();
  const int page_size = std::min(wanted, kMaxPageSize);
  ListModelsResponse response;
  MutexLock lock(&mutex_);
  for (auto it = entries_.upper_bound(request.page_token()); it != entries_.end(); ++it) {
    if (response.models_size() == page_size) {
      response.set_next_page_token(std::prev(it)->first);
      break;
    }
    *response.add_models() = it->second.model;
  }
  return response;
}

void ModelRegistry::Delete(absl::string_view name, std::function<void(absl::Status)> on_done) {
  const absl::StatusOr<bool> done = BeginDelete(name, on_done);
  if (!done.ok() || *done) on_done(done.status());
}

absl::StatusOr<bool> ModelRegistry::BeginDelete(absl::string_view name,
                                                std::function<void(absl::Status)>& on_done) {
  MutexLock saving(&save_mutex_);
  {
    MutexLock lock(&mutex_);
    RETURN_IF_ERROR(FindEntry(name).status());
  }
  RETURN_IF_ERROR(Save(nullptr, name));
  MutexLock lock(&mutex_);
  // Another call may have brought its deletion to an end meanwhile.
  RETURN_IF_ERROR(FindEntry(name).status());
  const std::string id(absl::StripPrefix(name, "models/"));
  Entry& entry = entries_.at(id);
  if (entry.model.state() == Model::FAILED) {
    entries_.erase(id);
    return true;
  }
  entry.on_deleted.push_back(std::move(on_done));
  if (entry.model.state() == Model::ACTIVE) {
    executor_.Post([this, id, handle = entry.served->handle] { RunUnload(id, handle); });
  }
  // The end of a load under way removes the entry.
  entry.stop.request_stop();
  entry.model.set_state(Model::DELETING);
  entry.served = nullptr;
  return false;
}

absl::StatusOr<std::shared_ptr<const ServedModel>> ModelRegistry::Find(
    absl::string_view name) const {
  ASSIGN_OR_RETURN(const std::string id, ParseModelName(name, "model"));
  MutexLock lock(&mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end()) return NoSuchModel(id);
  switch (it->second.model.state()) {
    case Model::ACTIVE:
      return it->second.served;
    case Model::LOADING:
      return absl::UnavailableError(
          absl::StrCat("models/", id, " is still being loaded; try again later"));
    case Model::FAILED:
      return absl::FailedPreconditionError(absl::StrCat(
          "models/", id, " could not be loaded: ", it->second.model.failure_message()));
    default:
      return absl::FailedPreconditionError(absl::StrCat("models/", id, " is being deleted"));
  }
}

void ModelRegistry::Drain() {
  MutexLock lock(&mutex_);
  draining_ = true;
  for (auto& [id, entry] : entries_) {
    if (entry.model.state() == Model::LOADING) entry.stop.request_stop();
  }
}

void ModelRegistry::RunLoad(const std::string& id, Model model, std::stop_token stop) {
  LOG(INFO) << "model loading model=" << id << " source=" << SourceOf(model);
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<Loaded> loaded = Load(model, stop);
  bool deleted = false;
  {
    MutexLock lock(&mutex_);
    Entry& entry = entries_.at(id);
    deleted = entry.model.state() == Model::DELETING;
    if (!deleted && !loaded.ok()) {
      entry.model.set_state(Model::FAILED);
      entry.model.set_failure_message(loaded.status().ToString());
      metrics_.ModelFailed();
      LOG(ERROR) << "model failed model=" << id << " error=" << loaded.status();
    }
    if (!deleted && loaded.ok()) {
      ServedModel& served = loaded->served;
      LoadedModelFacts& facts = loaded->facts;
      served.id = id;
      facts.load_duration = absl::FromChrono(std::chrono::steady_clock::now() - start);
      served.metrics = metrics_.ModelLoaded(id, facts);
      entry.model.set_memory_bytes(facts.weight_bytes + facts.kv_bytes);
      entry.model.set_chat_format(std::string(ChatFormatName(served.info.chat_format)));
      entry.model.set_context_tokens(served.info.config.max_position_embeddings);
      entry.model.set_state(Model::ACTIVE);
      LOG(INFO) << "model ready model=" << id << " fingerprint=" << served.system_fingerprint
                << " chat_format=" << entry.model.chat_format()
                << " memory_bytes=" << entry.model.memory_bytes()
                << " seconds=" << absl::ToDoubleSeconds(facts.load_duration);
      entry.served = std::make_shared<const ServedModel>(std::move(served));
    }
  }
  if (!deleted) return;
  if (loaded.ok()) {
    RunUnload(id, loaded->served.handle);
  } else {
    Remove(id, absl::OkStatus());
  }
}

absl::StatusOr<ModelRegistry::Loaded> ModelRegistry::Load(const Model& model,
                                                          const std::stop_token& stop) {
  if (stop.stop_requested()) return absl::CancelledError("the load was cancelled");
  if (model.has_artifact()) return LoadArtifactModel(model.artifact(), stop);
  return LoadCheckpointModel(model.checkpoint());
}

absl::StatusOr<ModelRegistry::Loaded> ModelRegistry::LoadArtifactModel(
    absl::string_view name, const std::stop_token& stop) {
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

absl::StatusOr<ModelRegistry::Loaded> ModelRegistry::LoadCheckpointModel(absl::string_view path) {
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

absl::StatusOr<ModelRegistry::Loaded> ModelRegistry::LoadSource(const ModelSource& source) {
  Loaded loaded;
  ASSIGN_OR_RETURN(loaded.served.handle, engine_.Load(source));
  ASSIGN_OR_RETURN(loaded.served.info, engine_.Info(loaded.served.handle));
  ASSIGN_OR_RETURN(loaded.served.tokenizer, engine_.GetTokenizer(loaded.served.handle));
  loaded.facts.kernel = loaded.served.info.kernel;
  loaded.facts.weight_bytes = loaded.served.info.weight_bytes;
  loaded.facts.kv_bytes = loaded.served.info.kv_bytes;
  return loaded;
}

void ModelRegistry::RunUnload(const std::string& id, ModelHandle handle) {
  const absl::Status status = engine_.Unload(handle);
  metrics_.ModelUnloaded(id);
  if (status.ok()) {
    LOG(INFO) << "model unloaded model=" << id;
  } else {
    LOG(ERROR) << "model not unloaded model=" << id << " error=" << status;
  }
  Remove(id, status);
}

void ModelRegistry::Remove(const std::string& id, const absl::Status& status) {
  std::vector<std::function<void(absl::Status)>> on_deleted;
  {
    MutexLock lock(&mutex_);
    const auto it = entries_.find(id);
    on_deleted = std::move(it->second.on_deleted);
    entries_.erase(it);
  }
  for (const auto& done : on_deleted) done(status);
}

}  // namespace quern
