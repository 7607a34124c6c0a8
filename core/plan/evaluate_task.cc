#include "core/plan/evaluate_task.h"

#include <utility>

#include "core/base/status_macros.h"
#include "core/plan/task_json.h"

namespace quern {
namespace {

constexpr size_t kMaxFiles = 16;

}  // namespace

absl::StatusOr<EvaluateTask> ParseEvaluateTask(absl::string_view json) {
  ASSIGN_OR_RETURN(const Json value, ParseJson(json, "task", JsonLimits{.max_depth = 8}));
  if (value.is_null()) return absl::InvalidArgumentError("task is null, wanted an object");
  EvaluateTask task;
  ProtoJson root(&value, "");
  root.ArtifactName("artifact", task.artifact);
  root.Message("reference", [&](ProtoJson& nested) {
    if (nested.present()) ParseCheckpoint(nested, task.reference_path, task.reference_digest);
  });
  root.Messages("texts", kMaxFiles, [&](ProtoJson& nested) {
    EvaluationData data;
    ParseEvaluationData(nested, data);
    task.texts.push_back(std::move(data));
  });
  root.Messages("zero_shot", kMaxFiles, [&](ProtoJson& nested) {
    ZeroShotData data;
    nested.Path("path", {".jsonl"}, data.path);
    nested.Int("max_item_count", 0, 1'000'000, data.max_item_count);
    task.zero_shot.push_back(std::move(data));
  });
  RETURN_IF_ERROR(root.Finish());
  if (task.texts.empty() && task.zero_shot.empty()) {
    return absl::InvalidArgumentError(
        "texts is empty, and so is zero_shot; wanted one to measure on");
  }
  return task;
}

Json EvaluateTaskToJson(const EvaluateTask& task) {
  Json texts = Json::array();
  for (const EvaluationData& data : task.texts) texts.push_back(EvaluationDataToJson(data));
  Json zero_shot = Json::array();
  for (const ZeroShotData& data : task.zero_shot) {
    zero_shot.push_back({{"path", data.path}, {"max_item_count", data.max_item_count}});
  }
  return {{"artifact", "artifacts/" + task.artifact},
          {"reference", {{"path", task.reference_path}, {"digest", task.reference_digest}}},
          {"texts", std::move(texts)},
          {"zero_shot", std::move(zero_shot)}};
}

}  // namespace quern
