#include "services/inference/model_registry.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <google/protobuf/util/time_util.h>

#include <chrono>
#include <iterator>
#include <optional>
#include <utility>

#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "services/inference/list_page.h"
#include "services/inference/model_load_options.h"
#include "services/inference/request_check.h"

namespace quern {
namespace {

using inference::v1::CreateModelRequest;
using inference::v1::DeleteModelRequest;
using inference::v1::ListModelsRequest;
using inference::v1::ListModelsResponse;
using inference::v1::Model;

constexpr int kNumLoadThreads = 4;
// Requests for one model that wait until it is loaded again.
constexpr size_t kMaxWaitingForLoad = 1024;

absl::Status NoSuchModel(absl::string_view id) {
  return absl::NotFoundError(absl::StrCat("models/", id, " is not on this server"));
}

Model NewModel(const std::string& id, const Model& source, KvCacheType kv_cache_type,
               absl::Time now) {
  Model model;
  model.set_name(absl::StrCat("models/", id));
  if (source.has_artifact()) model.set_artifact(source.artifact());
  if (source.has_checkpoint()) model.set_checkpoint(source.checkpoint());
  model.set_kv_cache_type(source.kv_cache_type() == Model::KV_CACHE_TYPE_UNSPECIFIED
                              ? ToProto(kv_cache_type)
                              : source.kv_cache_type());
  if (source.has_speculation()) *model.mutable_speculation() = source.speculation();
  model.set_state(Model::LOADING);
  *model.mutable_create_time() =
      google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(now));
  return model;
}

absl::Status CouldNotBeLoaded(absl::string_view id, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat("models/", id, " could not be loaded: ", why));
}

// Whether the same load may go well later.
bool MayEndWell(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsUnavailable(status) ||
         absl::IsCancelled(status);
}

std::string SourceOf(const Model& model) {
  return model.has_artifact() ? model.artifact() : absl::StrCat("checkpoint ", model.checkpoint());
}

}  // namespace

bool CanBeAsked(const Model& model) {
  const bool loaded_before = model.context_tokens() > 0;
  return model.state() == Model::ACTIVE || model.state() == Model::IDLE ||
         (model.state() == Model::LOADING && loaded_before);
}

ModelRegistry::ModelRegistry(ModelRegistryOptions options, Engine& engine, ModelLoader& loader,
                             InferenceMetrics& metrics, Clock& clock)
    : options_(std::move(options)),
      engine_(engine),
      loader_(loader),
      metrics_(metrics),
      clock_(clock),
      executor_(kNumLoadThreads) {
  if (options_.idle_timeout < absl::InfiniteDuration()) {
    idle_sweeper_ = std::thread([this] { RunIdleSweeper(); });
  }
  MutexLock lock(&mutex_);
  TellMemory();
}

ModelRegistry::~ModelRegistry() {
  Drain();
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  stop_sweeper_.SignalAll();
  if (idle_sweeper_.joinable()) idle_sweeper_.join();
}

absl::Status ModelRegistry::Restore() {
  ASSIGN_OR_RETURN(ModelList list, ReadModelList(options_.list_path));
  MutexLock lock(&mutex_);
  aliases_ = std::move(list.aliases);
  for (const auto& [id, source] : list.models) {
    StartLoad(id, NewModel(id, source, options_.kv_cache_type, clock_.Now()), LoadCause::kRestart);
  }
  return absl::OkStatus();
}

void ModelRegistry::ObserveHealth(HealthObserver observer) {
  MutexLock lock(&mutex_);
  health_observer_ = std::move(observer);
  for (const auto& [id, entry] : entries_) TellHealth(id);
}

void ModelRegistry::TellHealth(const std::string& id) const {
  if (health_observer_ == nullptr) return;
  const auto it = entries_.find(id);
  const bool serving = it != entries_.end() && CanBeAsked(it->second.model);
  health_observer_(id, serving);
  for (const std::string& alias : AliasesOf(id)) health_observer_(alias, serving);
}

absl::StatusOr<Model> ModelRegistry::Create(const CreateModelRequest& request) {
  RETURN_IF_ERROR(CheckCreateModel(request));
  RETURN_IF_ERROR(loader_.CheckSource(request.model()));
  const std::string& id = request.model_id();
  const Model model = NewModel(id, request.model(), options_.kv_cache_type, clock_.Now());
  const std::optional<ModelMemory> need = loader_.PlanMemory(model);

  MutexLock saving(&save_mutex_);
  ModelList list;
  {
    MutexLock lock(&mutex_);
    if (draining_) return absl::UnavailableError("the server is shutting down");
    if (const auto alias = aliases_.find(id); alias != aliases_.end()) {
      return absl::AlreadyExistsError(absl::StrCat("models/", id, " is an alias of models/",
                                                   alias->second.model, ": take another model_id"));
    }
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
    if (need.has_value()) RETURN_IF_ERROR(CheckMemory(id, *need));
    list = Listed();
  }
  list.models[id] = request.model();
  RETURN_IF_ERROR(WriteModelList(options_.list_path, list));
  MutexLock lock(&mutex_);
  StartLoad(id, model, LoadCause::kCreated);
  // So that what is asked for next sees it taken. What takes evictions waits for the load's thread.
  if (need.has_value() && need->total_bytes() <= FreeBytes()) {
    entries_.at(id).reserved_bytes = need->total_bytes();
    TellMemory();
  }
  return model;
}

void ModelRegistry::StartLoad(const std::string& id, const Model& model, LoadCause cause) {
  Entry& entry = entries_[id] = Entry{.model = model, .cause = cause};
  PostLoad(id, entry);
}

void ModelRegistry::PostLoad(const std::string& id, Entry& entry) {
  TellHealth(id);
  executor_.Post(
      [this, id, model = entry.model, stop = entry.stop.get_token()] { RunLoad(id, model, stop); });
}

ModelList ModelRegistry::Listed() const {
  ModelList list{.aliases = aliases_};
  for (const auto& [id, entry] : entries_) {
    if (entry.model.state() != Model::DELETING) list.models[id] = entry.model;
  }
  return list;
}

const std::string& ModelRegistry::ResolveAlias(const std::string& id) const {
  const auto it = aliases_.find(id);
  return it == aliases_.end() ? id : it->second.model;
}

absl::StatusOr<Model> ModelRegistry::Get(absl::string_view name) const {
  ASSIGN_OR_RETURN(const std::string id, ParseModelName(name, "name"));
  MutexLock lock(&mutex_);
  const auto it = entries_.find(ResolveAlias(id));
  if (it == entries_.end()) return NoSuchModel(id);
  return Describe(it->first, it->second);
}

Model ModelRegistry::Describe(const std::string& id, const Entry& entry) const {
  Model model = entry.model;
  for (const std::string& alias : AliasesOf(id)) model.add_aliases("aliases/" + alias);
  return model;
}

absl::StatusOr<ListModelsResponse> ModelRegistry::List(const ListModelsRequest& request) const {
  ListModelsResponse response;
  MutexLock lock(&mutex_);
  std::vector<const std::pair<const std::string, Entry>*> page;
  RETURN_IF_ERROR(FillPage(request, entries_, response,
                           [&](const auto& element) { page.push_back(&element); }));
  for (const auto* element : page) {
    *response.add_models() = Describe(element->first, element->second);
  }
  return response;
}

void ModelRegistry::Delete(const DeleteModelRequest& request,
                           std::function<void(absl::Status)> on_done) {
  const absl::StatusOr<bool> done = BeginDelete(request, on_done);
  if (!done.ok() || *done) on_done(done.status());
}

std::vector<std::string> ModelRegistry::AliasesOf(const std::string& id) const {
  std::vector<std::string> aliases;
  for (const auto& [alias, target] : aliases_) {
    if (target.model == id) aliases.push_back(alias);
  }
  return aliases;
}

absl::StatusOr<std::string> ModelRegistry::CheckDelete(const DeleteModelRequest& request) const {
  ASSIGN_OR_RETURN(std::string id, ParseModelName(request.name(), "name"));
  if (const auto alias = aliases_.find(id); alias != aliases_.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("models/", id, " is an alias of models/", alias->second.model,
                     ": name the model itself, or delete aliases/", id));
  }
  if (!entries_.contains(id)) return NoSuchModel(id);
  if (const auto aliases = AliasesOf(id); !aliases.empty() && !request.force()) {
    return absl::FailedPreconditionError(
        absl::StrCat("models/", id, " is what aliases/", absl::StrJoin(aliases, ", aliases/"),
                     " stands for: point that to another model first, or set force"));
  }
  return id;
}

absl::StatusOr<bool> ModelRegistry::BeginDelete(const DeleteModelRequest& request,
                                                std::function<void(absl::Status)>& on_done) {
  MutexLock saving(&save_mutex_);
  ModelList list;
  std::string id;
  {
    MutexLock lock(&mutex_);
    ASSIGN_OR_RETURN(id, CheckDelete(request));
    list = Listed();
  }
  list.models.erase(id);
  std::erase_if(list.aliases, [&](const auto& alias) { return alias.second.model == id; });
  RETURN_IF_ERROR(WriteModelList(options_.list_path, list));
  MutexLock lock(&mutex_);
  // Another call may have brought its deletion to an end meanwhile.
  auto it = entries_.find(id);
  while (it != entries_.end() && it->second.evicting) {
    evicted_.Wait(&mutex_);
    it = entries_.find(id);
  }
  if (it == entries_.end()) return NoSuchModel(id);
  Entry& entry = it->second;
  const bool in_memory = entry.model.state() != Model::FAILED && entry.model.state() != Model::IDLE;
  entry.model.set_state(Model::DELETING);
  TellHealth(id);
  aliases_ = std::move(list.aliases);
  if (!in_memory) {
    entries_.erase(it);
    return true;
  }
  entry.on_deleted.push_back(std::move(on_done));
  // The end of a load under way removes the entry.
  entry.stop.request_stop();
  if (const auto resident = std::exchange(entry.resident, nullptr); resident != nullptr) {
    resident->Close([this, id, handle = resident->model().handle] {
      executor_.Post([this, id, handle] { RunUnload(id, handle); });
    });
  }
  return false;
}

absl::StatusOr<std::shared_ptr<const ActiveModel>> ModelRegistry::Find(absl::string_view name,
                                                                       Waiter when_loaded) {
  ASSIGN_OR_RETURN(const std::string id, ParseModelName(name, "model"));
  MutexLock lock(&mutex_);
  const std::string root = ResolveAlias(id);
  const auto it = entries_.find(root);
  if (it == entries_.end()) return NoSuchModel(id);
  Entry& entry = it->second;
  switch (entry.model.state()) {
    case Model::ACTIVE:
      return entry.resident->Use();
    case Model::IDLE:
      if (draining_) return absl::UnavailableError("the server is shutting down");
      entry.model.set_state(Model::LOADING);
      entry.cause = LoadCause::kRequest;
      entry.stop = std::stop_source();
      entry.waiting.push_back(std::move(when_loaded));
      PostLoad(root, entry);
      return nullptr;
    case Model::LOADING:
      if (entry.cause != LoadCause::kRequest || draining_) {
        return absl::UnavailableError(
            absl::StrCat("models/", root, " is still being loaded; try again later"));
      }
      if (entry.waiting.size() >= kMaxWaitingForLoad) {
        return absl::ResourceExhaustedError(absl::StrCat("models/", root, " is being loaded and ",
                                                         kMaxWaitingForLoad,
                                                         " requests wait for it already"));
      }
      entry.waiting.push_back(std::move(when_loaded));
      return nullptr;
    case Model::FAILED:
      return CouldNotBeLoaded(root, entry.model.failure_message());
    default:
      return absl::FailedPreconditionError(absl::StrCat("models/", root, " is being deleted"));
  }
}

void ModelRegistry::Drain() {
  std::vector<Waiter> waiting;
  {
    MutexLock lock(&mutex_);
    draining_ = true;
    for (auto& [id, entry] : entries_) {
      if (entry.model.state() == Model::LOADING) entry.stop.request_stop();
      std::move(entry.waiting.begin(), entry.waiting.end(), std::back_inserter(waiting));
      entry.waiting.clear();
    }
  }
  for (const Waiter& waiter : waiting) {
    waiter(absl::UnavailableError("the server is shutting down"));
  }
}

void ModelRegistry::RunLoad(const std::string& id, const Model& model,
                            const std::stop_token& stop) {
  LOG(INFO) << "model loading model=" << id << " source=" << SourceOf(model);
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<ModelLoader::Loaded> loaded = loader_.Load(
      model, [&](const ModelMemory& need) { return Reserve(id, need); }, stop);
  const absl::Status status = loaded.status();
  const ModelHandle handle = loaded.ok() ? loaded->served.handle : 0;
  std::vector<std::pair<Waiter, absl::StatusOr<std::shared_ptr<const ActiveModel>>>> waiting;
  bool deleted = false;
  {
    MutexLock lock(&mutex_);
    Entry& entry = entries_.at(id);
    deleted = entry.model.state() == Model::DELETING;
    if (!deleted && loaded.ok()) {
      const auto duration = absl::FromChrono(std::chrono::steady_clock::now() - start);
      FinishLoad(id, entry, *std::move(loaded), duration);
    } else if (!deleted) {
      FailLoad(id, entry, status);
    }
    TellHealth(id);
    for (Waiter& waiter : std::exchange(entry.waiting, {})) {
      waiting.emplace_back(std::move(waiter), ResultOfLoad(id, entry, status));
    }
  }
  for (const auto& [waiter, result] : waiting) waiter(result);
  if (!deleted) return;
  if (status.ok()) {
    RunUnload(id, handle);
  } else {
    Remove(id, absl::OkStatus());
  }
}

void ModelRegistry::FinishLoad(const std::string& id, Entry& entry, ModelLoader::Loaded loaded,
                               absl::Duration duration) {
  ActiveModel& served = loaded.served;
  LoadedModelFacts& facts = loaded.facts;
  served.id = id;
  facts.load_duration = duration;
  facts.cause = entry.cause;
  served.metrics = metrics_.ModelLoaded(id, facts);
  entry.model.set_memory_bytes(facts.weight_bytes + facts.kv_bytes);
  entry.model.set_shared_memory_bytes(facts.shared_bytes);
  entry.model.set_base_artifact(loaded.base);
  entry.model.set_chat_format(std::string(ChatFormatName(served.info.chat_format)));
  entry.model.set_context_tokens(served.info.config.max_position_embeddings);
  if (served.info.kv_cache_kl.has_value()) {
    entry.model.set_kv_cache_kl(*served.info.kv_cache_kl);
  }
  entry.model.set_state(Model::ACTIVE);
  LOG(INFO) << "model ready model=" << id << " fingerprint=" << served.system_fingerprint
            << " chat_format=" << entry.model.chat_format()
            << " memory_bytes=" << entry.model.memory_bytes()
            << " shared_bytes=" << facts.shared_bytes
            << " seconds=" << absl::ToDoubleSeconds(duration);
  entry.resident = std::make_shared<ResidentModel>(std::move(served), clock_);
}

void ModelRegistry::FailLoad(const std::string& id, Entry& entry, const absl::Status& status) {
  metrics_.ModelFailed();
  LOG(ERROR) << "model failed model=" << id << " error=" << status;
  entry.reserved_bytes = 0;
  TellMemory();
  if (entry.cause == LoadCause::kRequest && MayEndWell(status)) {
    entry.model.set_state(Model::IDLE);
    return;
  }
  entry.model.set_state(Model::FAILED);
  entry.model.set_failure_message(status.ToString());
}

absl::StatusOr<std::shared_ptr<const ActiveModel>> ModelRegistry::ResultOfLoad(
    const std::string& id, const Entry& entry, const absl::Status& loaded) const {
  switch (entry.model.state()) {
    case Model::ACTIVE:
      return entry.resident->Use();
    case Model::IDLE:
      return absl::UnavailableError(
          absl::StrCat("models/", id, " could not be loaded again now: ", loaded.message()));
    case Model::FAILED:
      return CouldNotBeLoaded(id, entry.model.failure_message());
    default:
      return absl::FailedPreconditionError(absl::StrCat("models/", id, " is being deleted"));
  }
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
    TellMemory();
  }
  for (const auto& done : on_deleted) done(status);
}

}  // namespace quern
