#ifndef QUERN_SERVICES_INFERENCE_MODEL_LIST_H_
#define QUERN_SERVICES_INFERENCE_MODEL_LIST_H_

// models.json: which models and aliases a server was asked for, so that a restart has them again.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <map>
#include <string>

namespace quern {

// Beyond them CreateModel and CreateAlias are RESOURCE_EXHAUSTED. Each model keeps weights and KV
// pages in memory.
inline constexpr int kMaxModels = 16;
inline constexpr int kMaxAliases = 64;

struct AliasTarget {
  std::string model;       // id
  absl::Time update_time;  // whole seconds
};

struct ModelList {
  std::map<std::string, inference::v1::Model>
      models;                                  // by id; the source and how to load it are set
  std::map<std::string, AliasTarget> aliases;  // by id; each leads to one of `models`
};

// Empty when there is no such file. DATA_LOSS naming the file when it is damaged: names and sources
// pass the checks of a request.
absl::StatusOr<ModelList> ReadModelList(const std::string& path);

// Durable when it returns.
absl::Status WriteModelList(const std::string& path, const ModelList& list);

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_MODEL_LIST_H_
