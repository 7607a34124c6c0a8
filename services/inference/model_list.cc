#include "services/inference/model_list.h"

#include <absl/strings/str_cat.h>

#include <utility>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "services/inference/model_load_options.h"
#include "services/inference/request_check.h"

namespace quern {
namespace {

using inference::v1::CreateModelRequest;
using inference::v1::Model;

constexpr size_t kMaxListBytes = 1 << 20;
constexpr int64_t kMaxUnixSeconds = int64_t{1} << 40;

absl::Status CheckCount(absl::string_view where, absl::string_view key, size_t found, size_t max) {
  if (found <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": ", key, ": found ", found, ", wanted at most ", max));
}

absl::Status Twice(absl::string_view where, absl::string_view key, absl::string_view id) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", key, ": ", id, " is there twice"));
}

absl::Status ParseModels(const Json& array, absl::string_view where, ModelList& list) {
  RETURN_IF_ERROR(CheckCount(where, "models", array.size(), kMaxModels));
  for (const Json& element : array) {
    ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(element, where));
    CreateModelRequest request;
    ASSIGN_OR_RETURN(*request.mutable_model_id(), object.String("id"));
    if (object.Has("artifact")) {
      ASSIGN_OR_RETURN(*request.mutable_model()->mutable_artifact(), object.String("artifact"));
    } else {
      ASSIGN_OR_RETURN(*request.mutable_model()->mutable_checkpoint(), object.String("checkpoint"));
    }
    // Versions before it wrote none.
    ASSIGN_OR_RETURN(const std::string type,
                     object.StringOr("kv_cache_type", KvCacheTypeName(KvCacheType::kFloat16)));
    ASSIGN_OR_RETURN(const KvCacheType kv_cache_type, ParseKvCacheType(type));
    request.mutable_model()->set_kv_cache_type(ToProto(kv_cache_type));
    if (object.Has("speculation")) {
      ASSIGN_OR_RETURN(const JsonObject speculation, object.Object("speculation"));
      Model::Speculation& wanted = *request.mutable_model()->mutable_speculation();
      ASSIGN_OR_RETURN(const int64_t max_guesses, speculation.Int("max_guesses", 1, kMaxGuesses));
      wanted.set_max_guesses(static_cast<int>(max_guesses));
      ASSIGN_OR_RETURN(*wanted.mutable_draft_artifact(),
                       speculation.StringOr("draft_artifact", ""));
    }
    RETURN_IF_ERROR(CheckCreateModel(request));
    if (!list.models.emplace(request.model_id(), request.model()).second) {
      return Twice(where, "models", request.model_id());
    }
  }
  return absl::OkStatus();
}

absl::Status ParseAliases(const Json& array, absl::string_view where, ModelList& list) {
  RETURN_IF_ERROR(CheckCount(where, "aliases", array.size(), kMaxAliases));
  for (const Json& element : array) {
    ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(element, where));
    ASSIGN_OR_RETURN(const std::string id, object.String("id"));
    RETURN_IF_ERROR(CheckModelId(id, absl::StrCat(where, ": aliases: id")));
    AliasTarget target;
    ASSIGN_OR_RETURN(target.model, object.String("model"));
    ASSIGN_OR_RETURN(const int64_t seconds, object.Int("update_time", 0, kMaxUnixSeconds));
    target.update_time = absl::FromUnixSeconds(seconds);
    if (!list.models.contains(target.model)) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": aliases: ", id, " leads to a model that is not in the list"));
    }
    if (list.models.contains(id) || !list.aliases.emplace(id, std::move(target)).second) {
      return Twice(where, "aliases", id);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelList> ParseModelList(absl::string_view text, absl::string_view where) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(text, where));
  ASSIGN_OR_RETURN(const JsonObject root, JsonObject::Of(json, where));
  ModelList list;
  ASSIGN_OR_RETURN(const Json* models, root.Array("models"));
  RETURN_IF_ERROR(ParseModels(*models, where, list));
  // Versions before aliases wrote none.
  if (root.Has("aliases")) {
    ASSIGN_OR_RETURN(const Json* aliases, root.Array("aliases"));
    RETURN_IF_ERROR(ParseAliases(*aliases, where, list));
  }
  return list;
}

}  // namespace

absl::StatusOr<ModelList> ReadModelList(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxListBytes);
  if (absl::IsNotFound(text.status())) return ModelList();
  RETURN_IF_ERROR(text.status());
  absl::StatusOr<ModelList> list = ParseModelList(*text, path);
  if (list.ok()) return list;
  return absl::DataLossError(absl::StrCat(list.status().message(), ": remove ", path,
                                          " to start without models, and load them again"));
}

absl::Status WriteModelList(const std::string& path, const ModelList& list) {
  Json models = Json::array();
  for (const auto& [id, model] : list.models) {
    const bool artifact = model.has_artifact();
    Json entry = {
        {"id", id},
        {artifact ? "artifact" : "checkpoint", artifact ? model.artifact() : model.checkpoint()},
        {"kv_cache_type", std::string(KvCacheTypeName(KvCacheTypeOf(model)))}};
    if (model.has_speculation()) {
      entry["speculation"] = {{"max_guesses", model.speculation().max_guesses()},
                              {"draft_artifact", model.speculation().draft_artifact()}};
    }
    models.push_back(std::move(entry));
  }
  Json aliases = Json::array();
  for (const auto& [id, target] : list.aliases) {
    aliases.push_back({{"id", id},
                       {"model", target.model},
                       {"update_time", absl::ToUnixSeconds(target.update_time)}});
  }
  return WriteFileDurably(
      path, DumpCanonicalJson({{"models", std::move(models)}, {"aliases", std::move(aliases)}}));
}

}  // namespace quern
