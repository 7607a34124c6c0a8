#include "services/quantizer/evaluate_run.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/base/error_reason.h"
#include "core/base/status_macros.h"
#include "core/engine/model_source.h"
#include "core/eval/zero_shot.h"
#include "core/plan/evaluate_task.h"
#include "services/quantizer/artifacts.h"
#include "services/quantizer/errors.h"
#include "services/quantizer/evaluation.h"
#include "services/quantizer/source.h"

namespace quern {
namespace {

constexpr size_t kMaxZeroShotBytes = size_t{1} << 30;

class EvaluateRun {
 public:
  explicit EvaluateRun(RunContext& context) : context_(context) {}

  absl::Status Execute(absl::string_view json);

 private:
  absl::Status OpenModels();
  absl::Status MakeThePlan();
  absl::Status ReadData();

  RunContext& context_;
  EvaluateTask task_;  // resolved
  ArtifactAndBase model_;
  std::shared_ptr<const Checkpoint> reference_;  // null: none is named
  std::vector<EvaluationText> texts_;
  std::vector<ZeroShotTask> zero_shot_;
};

absl::Status EvaluateRun::Execute(absl::string_view json) {
  absl::StatusOr<EvaluateTask> task = ParseEvaluateTask(json);
  if (!task.ok()) return WithReason(task.status(), reason::kInvalidTask);
  task_ = *std::move(task);
  RETURN_IF_ERROR(OpenModels());
  RETURN_IF_ERROR(MakeThePlan());
  RETURN_IF_ERROR(ReadData());
  context_.progress().Report(Stage::kLoading, 1, 1);
  context_.progress().Report(Stage::kEvaluating, 0, 1);

  const auto own = [](PackedModel model) {
    return std::make_shared<const PackedModel>(std::move(model));
  };
  EvaluationInput input{.config = model_.artifact.model.config,
                        .texts = std::move(texts_),
                        .zero_shot = std::move(zero_shot_),
                        .num_threads = context_.num_threads(),
                        .on_progress = [&](int64_t done, int64_t total) {
                          context_.progress().Report(Stage::kEvaluating, done, total);
                        }};
  const int64_t artifact_bytes = SizeOf(model_.artifact.manifest);
  int64_t source_bytes = artifact_bytes;
  if (reference_ != nullptr) {
    source_bytes = reference_->weight_bytes();
    input.source = MakeModelSource(reference_);
  } else if (model_.base.has_value()) {
    source_bytes = SizeOf(model_.base->manifest);
    input.source = MakeModelSource(own(std::move(model_.base->model)));
    input.source_name = "base";
  } else {
    input.source = MakeModelSource(own(model_.artifact.model));
    input.source_name = "artifact";
  }
  if (input.source_name != "artifact") {
    input.models.emplace_back("artifact", own(std::move(model_.artifact.model)));
  }
  ASSIGN_OR_RETURN(const EvaluationResults results,
                   EvaluateModels(std::move(input), context_.cancellation()));
  context_.ReportEvaluation(ReportToJson(results, source_bytes, artifact_bytes));
  return absl::OkStatus();
}

absl::Status EvaluateRun::OpenModels() {
  ASSIGN_OR_RETURN(model_, OpenArtifact(context_, "artifact", task_.artifact));
  if (task_.reference_path.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(Source source,
                   OpenSourceCheckpoint(context_, "reference.path", task_.reference_path,
                                        task_.reference_digest));
  reference_ = std::move(source.checkpoint);
  if (reference_->config().vocab_size == model_.artifact.model.config.vocab_size) {
    return absl::OkStatus();
  }
  return WithReason(absl::InvalidArgumentError(absl::StrCat(
                        "reference.path: ", task_.reference_path, " has a vocabulary of ",
                        reference_->config().vocab_size, " tokens, the artifact one of ",
                        model_.artifact.model.config.vocab_size, "; they cannot be compared")),
                    reason::kInvalidTask);
}

absl::Status EvaluateRun::MakeThePlan() {
  const Manifest& manifest = model_.artifact.manifest;
  const int source_bytes = reference_ == nullptr ? 0
                                                 : SourceBytesPerWeight(reference_->config(),
                                                                        reference_->weight_bytes());
  absl::StatusOr<EvaluatePlan> plan =
      PlanEvaluate(task_, manifest.config, manifest.format, context_.ThisMachine(source_bytes));
  if (!plan.ok()) return PlanError(plan.status());
  task_ = std::move(plan->resolved);
  context_.progress().SetPlan(std::move(plan->stages));
  return absl::OkStatus();
}

absl::Status EvaluateRun::ReadData() {
  for (const EvaluationData& data : task_.texts) {
    ASSIGN_OR_RETURN(std::vector<EvaluationText> text,
                     context_.ReadEvaluationText(data, *model_.tokenizer));
    std::move(text.begin(), text.end(), std::back_inserter(texts_));
  }
  for (const ZeroShotData& data : task_.zero_shot) {
    const auto read = [&]() -> absl::StatusOr<ZeroShotTask> {
      ASSIGN_OR_RETURN(const std::string path,
                       context_.Resolve(context_.config().data_root, data.path));
      ASSIGN_OR_RETURN(const std::string jsonl, ReadFile(path, kMaxZeroShotBytes));
      const std::string name = std::filesystem::path(data.path).filename();
      return ParseZeroShotTask(absl::StripSuffix(name, ".jsonl"), jsonl, data.max_item_count);
    };
    absl::StatusOr<ZeroShotTask> task = read();
    if (!task.ok()) {
      return WithReason(Prefixed(task.status(), absl::StrCat("zero_shot, ", data.path)),
                        reason::kEvaluationInvalid);
    }
    zero_shot_.push_back(*std::move(task));
  }
  return context_.cancellation().Check();
}

}  // namespace

absl::Status RunEvaluateTask(RunContext& context, absl::string_view json) {
  return EvaluateRun(context).Execute(json);
}

}  // namespace quern
