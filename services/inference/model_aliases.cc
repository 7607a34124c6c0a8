// The aliases of ModelRegistry.

#include <absl/strings/str_cat.h>
#include <google/protobuf/util/time_util.h>

#include <utility>

#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "services/inference/list_page.h"
#include "services/inference/model_registry.h"
#include "services/inference/request_check.h"

namespace quern {
namespace {

using google::protobuf::util::TimeUtil;
using inference::v1::Alias;
using inference::v1::CreateAliasRequest;
using inference::v1::DeleteAliasRequest;
using inference::v1::ListAliasesRequest;
using inference::v1::ListAliasesResponse;
using inference::v1::Model;
using inference::v1::UpdateAliasRequest;

constexpr size_t kEtagDigits = 16;

absl::Status NoSuchAlias(absl::string_view id) {
  return absl::NotFoundError(absl::StrCat("aliases/", id, " is not on this server"));
}

// Of what can be changed: who reads the same may change it.
std::string EtagOf(const std::string& id, const AliasTarget& target) {
  return Sha256Hex(
             absl::StrCat(id, "\n", target.model, "\n", absl::ToUnixSeconds(target.update_time)))
      .substr(0, kEtagDigits);
}

Alias MakeAlias(const std::string& id, const AliasTarget& target) {
  Alias alias;
  alias.set_name(absl::StrCat("aliases/", id));
  alias.set_model(absl::StrCat("models/", target.model));
  alias.set_etag(EtagOf(id, target));
  *alias.mutable_update_time() =
      TimeUtil::SecondsToTimestamp(absl::ToUnixSeconds(target.update_time));
  return alias;
}

absl::Status CheckEtag(const std::string& id, const AliasTarget* found, absl::string_view etag) {
  if (etag.empty() || (found != nullptr && EtagOf(id, *found) == etag)) return absl::OkStatus();
  if (found == nullptr) {
    return absl::AbortedError(absl::StrCat("aliases/", id, " was deleted since its etag was read"));
  }
  return absl::AbortedError(absl::StrCat("aliases/", id,
                                         " was changed since its etag was read: it ",
                                         "stands for models/", found->model, " now"));
}

}  // namespace

absl::StatusOr<std::string> ModelRegistry::CheckTarget(absl::string_view model) const {
  ASSIGN_OR_RETURN(std::string id, ParseModelName(model, "alias.model"));
  if (const auto alias = aliases_.find(id); alias != aliases_.end()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "alias.model: ", model, " is an alias itself: name models/", alias->second.model));
  }
  const auto it = entries_.find(id);
  if (it == entries_.end()) {
    return absl::NotFoundError(absl::StrCat("alias.model: ", model, " is not on this server"));
  }
  // What an alias leads to answers.
  const Model::State state = it->second.model.state();
  if (state != Model::ACTIVE && state != Model::IDLE) {
    return absl::FailedPreconditionError(absl::StrCat("alias.model: ", model, " is ",
                                                      Model::State_Name(state),
                                                      ", wanted a model that is ACTIVE"));
  }
  return id;
}

absl::StatusOr<Alias> ModelRegistry::SetAlias(const std::string& id, const std::string& model) {
  // Whole seconds, as the list keeps them.
  const AliasTarget target{.model = model,
                           .update_time = absl::FromUnixSeconds(absl::ToUnixSeconds(clock_.Now()))};
  ModelList list;
  {
    MutexLock lock(&mutex_);
    list = Listed();
  }
  list.aliases[id] = target;
  RETURN_IF_ERROR(WriteModelList(options_.list_path, list));
  MutexLock lock(&mutex_);
  aliases_[id] = target;
  TellHealth(model);
  LOG(INFO) << "alias set alias=" << id << " model=" << model;
  return MakeAlias(id, target);
}

absl::StatusOr<Alias> ModelRegistry::CreateAlias(const CreateAliasRequest& request) {
  const std::string& id = request.alias_id();
  RETURN_IF_ERROR(CheckModelId(id, "alias_id"));
  MutexLock saving(&save_mutex_);
  std::string model;
  {
    MutexLock lock(&mutex_);
    if (const auto it = aliases_.find(id); it != aliases_.end()) {
      return absl::AlreadyExistsError(absl::StrCat("aliases/", id, " is there already, for models/",
                                                   it->second.model, ": update it"));
    }
    if (entries_.contains(id)) {
      return absl::AlreadyExistsError(
          absl::StrCat("alias_id: models/", id, " is a model: take another name"));
    }
    if (aliases_.size() >= kMaxAliases) {
      return absl::ResourceExhaustedError(
          absl::StrCat("this server holds at most ", kMaxAliases, " aliases: delete one first"));
    }
    ASSIGN_OR_RETURN(model, CheckTarget(request.alias().model()));
  }
  return SetAlias(id, model);
}

absl::StatusOr<Alias> ModelRegistry::UpdateAlias(const UpdateAliasRequest& request) {
  ASSIGN_OR_RETURN(const std::string id, ParseAliasName(request.alias().name(), "alias.name"));
  {
    MutexLock saving(&save_mutex_);
    std::string model;
    bool found = false;
    {
      MutexLock lock(&mutex_);
      const auto it = aliases_.find(id);
      found = it != aliases_.end();
      if (!found && !request.allow_missing()) return NoSuchAlias(id);
      RETURN_IF_ERROR(CheckEtag(id, found ? &it->second : nullptr, request.alias().etag()));
      if (found) {
        ASSIGN_OR_RETURN(model, CheckTarget(request.alias().model()));
      }
    }
    if (found) return SetAlias(id, model);
  }
  CreateAliasRequest create;
  create.set_alias_id(id);
  *create.mutable_alias() = request.alias();
  return CreateAlias(create);
}

absl::Status ModelRegistry::DeleteAlias(const DeleteAliasRequest& request) {
  ASSIGN_OR_RETURN(const std::string id, ParseAliasName(request.name(), "name"));
  MutexLock saving(&save_mutex_);
  ModelList list;
  {
    MutexLock lock(&mutex_);
    const auto it = aliases_.find(id);
    if (it == aliases_.end()) return NoSuchAlias(id);
    RETURN_IF_ERROR(CheckEtag(id, &it->second, request.etag()));
    list = Listed();
  }
  list.aliases.erase(id);
  RETURN_IF_ERROR(WriteModelList(options_.list_path, list));
  MutexLock lock(&mutex_);
  aliases_.erase(id);
  if (health_observer_ != nullptr) health_observer_(id, false);
  LOG(INFO) << "alias deleted alias=" << id;
  return absl::OkStatus();
}

absl::StatusOr<Alias> ModelRegistry::GetAlias(absl::string_view name) const {
  ASSIGN_OR_RETURN(const std::string id, ParseAliasName(name, "name"));
  MutexLock lock(&mutex_);
  const auto it = aliases_.find(id);
  if (it == aliases_.end()) return NoSuchAlias(id);
  return MakeAlias(id, it->second);
}

absl::StatusOr<ListAliasesResponse> ModelRegistry::ListAliases(
    const ListAliasesRequest& request) const {
  ListAliasesResponse response;
  MutexLock lock(&mutex_);
  RETURN_IF_ERROR(FillPage(request, aliases_, response, [&](const auto& element) {
    *response.add_aliases() = MakeAlias(element.first, element.second);
  }));
  return response;
}

}  // namespace quern
