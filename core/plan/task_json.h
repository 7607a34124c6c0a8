#ifndef QUERN_CORE_PLAN_TASK_JSON_H_
#define QUERN_CORE_PLAN_TASK_JSON_H_

// What the JSON forms of the kinds of tasks have in common.

#include <optional>
#include <string>

#include "core/base/json.h"
#include "core/plan/proto_json.h"
#include "core/plan/task.h"

namespace quern {

const EnumNames<std::optional<E2eTrainable>>& E2eTrainableNames();
const EnumNames<std::optional<ComputeDtype>>& ComputeDtypeNames();

// quern.quantization.v1.CheckpointSource; the member is required.
void ParseCheckpoint(ProtoJson& json, std::string& path, std::string& digest);

// quern.quantization.v1.EvaluationData; the member is optional.
void ParseEvaluationData(ProtoJson& json, EvaluationData& data);
Json EvaluationDataToJson(const EvaluationData& data);

template <typename T>
Json OrNull(const std::optional<T>& value) {
  return value.has_value() ? Json(*value) : Json(nullptr);
}

}  // namespace quern

#endif  // QUERN_CORE_PLAN_TASK_JSON_H_
