#include "services/quantizer/quantize_run.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/base/error_reason.h"
#include "core/base/large_pages.h"
#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/engine/model_source.h"
#include "core/eval/evaluate.h"
#include "core/plan/plan.h"
#include "core/quant/quantize.h"
#include "services/quantizer/calibration.h"
#include "services/quantizer/errors.h"
#include "services/quantizer/evaluation.h"
#include "services/quantizer/source.h"
#include "services/quantizer/text_file.h"

namespace quern {
namespace {

class QuantizeRun {
 public:
  explicit QuantizeRun(RunContext& context) : context_(context) {}

  absl::Status Execute(absl::string_view json);

 private:
  absl::Status OpenSource();
  absl::Status MakeThePlan();
  absl::Status ReadEvaluationText();
  absl::Status Calibrate();
  absl::StatusOr<TokenSequences> MakeCalibration();
  absl::Status Train();
  absl::StatusOr<LoadedArtifact> LoadOwnArtifact() const;
  absl::Status EvaluateAndReport();
  Lineage MakeLineage() const;

  RunContext& context_;
  Task task_;  // resolved
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::string checkpoint_digest_;
  // SHA-256 over everything that files kept in the work directory depend on.
  std::string key_;
  std::vector<EvaluationText> texts_;
  TokenSequences calibration_;
};

absl::Status QuantizeRun::Execute(absl::string_view json) {
  absl::StatusOr<Task> task = ParseTask(json);
  if (!task.ok()) return WithReason(task.status(), reason::kInvalidTask);
  task_ = *std::move(task);
  RETURN_IF_ERROR(OpenSource());
  RETURN_IF_ERROR(MakeThePlan());
  RETURN_IF_ERROR(ReadEvaluationText());
  context_.progress().Report(Stage::kLoading, 1, 1);
  RETURN_IF_ERROR(context_.cancellation().Check());
  if (context_.RepeatResult(key_)) return absl::OkStatus();
  RETURN_IF_ERROR(Calibrate());
  if (!LoadOwnArtifact().ok()) RETURN_IF_ERROR(Train());
  return EvaluateAndReport();
}

absl::Status QuantizeRun::OpenSource() {
  ASSIGN_OR_RETURN(Source source,
                   OpenSourceCheckpoint(context_, "checkpoint.path", task_.checkpoint_path,
                                        task_.checkpoint_digest));
  checkpoint_ = std::move(source.checkpoint);
  checkpoint_digest_ = std::move(source.digest);
  return absl::OkStatus();
}

absl::Status QuantizeRun::MakeThePlan() {
  absl::StatusOr<PlanResult> plan =
      MakePlan(task_, checkpoint_->config(),
               context_.ThisMachine(
                   SourceBytesPerWeight(checkpoint_->config(), checkpoint_->weight_bytes())));
  if (!plan.ok()) return PlanError(plan.status());
  RETURN_IF_ERROR(context_.CheckDisk(plan->stages));
  int64_t memory_bytes = 0;
  std::vector<std::string> seconds;
  for (const StageCost& stage : plan->stages) {
    memory_bytes = std::max(memory_bytes, stage.host_memory_bytes);
    seconds.push_back(
        absl::StrFormat("%s:%.1f", StageName(stage.stage), absl::ToDoubleSeconds(stage.duration)));
  }
  task_ = std::move(plan->resolved);
  key_ = Sha256Hex(DumpCanonicalJson({{"task", TaskToJson(task_)},
                                      {"checkpoint", checkpoint_digest_},
                                      {"threads", context_.num_threads()},
                                      {"device", context_.device().name},
                                      {"quern_version", QUERN_VERSION}}));
  context_.progress().SetPlan(std::move(plan->stages));
  LOG(INFO) << "planned method=" << MethodName(task_.method) << " bits=" << task_.format.bits
            << " artifact_bytes=" << plan->artifact_size_bytes << " memory_bytes=" << memory_bytes
            << " seconds=" << absl::StrJoin(seconds, ",") << " estimate="
            << absl::FormatDuration(absl::Trunc(context_.progress().Remaining(), absl::Seconds(1)));
  return absl::OkStatus();
}

// Before hours of training, not after.
absl::Status QuantizeRun::ReadEvaluationText() {
  if (task_.evaluation.path.empty()) return absl::OkStatus();
  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = SourceTokenizer(*checkpoint_);
  if (!tokenizer.ok()) {
    return WithReason(Prefixed(tokenizer.status(), "evaluation.path"), reason::kEvaluationInvalid);
  }
  ASSIGN_OR_RETURN(texts_, context_.ReadEvaluationText(task_.evaluation, **tokenizer));
  return absl::OkStatus();
}

absl::Status QuantizeRun::Calibrate() {
  const CalibrationShape shape = CalibrationShapeOf(task_);
  if (shape.num_sequences == 0) return absl::OkStatus();
  const int64_t tokens = int64_t{shape.num_sequences} * shape.length_tokens;
  const std::string path = context_.Work("calibration.safetensors");
  absl::StatusOr<TokenSequences> kept =
      LoadTokens(path, key_, shape.num_sequences, shape.length_tokens);
  if (kept.ok()) {
    calibration_ = *std::move(kept);
  } else {
    if (!absl::IsNotFound(kept.status())) {
      LOG(WARNING) << "calibration is made again: " << kept.status().message();
    }
    context_.progress().Report(Stage::kCalibrating, 0, tokens);
    ASSIGN_OR_RETURN(calibration_, MakeCalibration());
    RETURN_IF_ERROR(SaveTokens(path, key_, calibration_));
  }
  context_.progress().Report(Stage::kCalibrating, tokens, tokens);
  return context_.cancellation().Check();
}

absl::StatusOr<TokenSequences> QuantizeRun::MakeCalibration() {
  const CalibrationShape shape = CalibrationShapeOf(task_);
  absl::StatusOr<TokenSequences> of_text = TokenSequences();
  const auto cut = [&]() -> absl::StatusOr<TokenSequences> {
    ASSIGN_OR_RETURN(const std::string path,
                     context_.Resolve(context_.config().data_root, task_.calibration_path));
    ASSIGN_OR_RETURN(const std::vector<std::string> documents, ReadDocuments(path));
    ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer,
                     SourceTokenizer(*checkpoint_));
    return CutDocuments(*tokenizer, documents, shape, task_.seed, context_.cancellation());
  };
  // Before sampling, which takes longer.
  if (!task_.calibration_path.empty()) of_text = cut();
  if (!of_text.ok()) {
    return WithReason(Prefixed(of_text.status(), "calibration.path"), reason::kCalibrationInvalid);
  }
  if (shape.num_sampled == 0) return of_text;
  absl::StatusOr<TokenSequences> sampled =
      SampleCalibration(*checkpoint_, shape, task_.seed, context_.TrainingOptions(),
                        context_.cancellation(), [&](int64_t done, int64_t total) {
                          context_.progress().Report(Stage::kCalibrating, done, total);
                        });
  if (!sampled.ok()) return CheckpointError(sampled.status());
  GiveBackFreedMemory();  // the model's that drew them
  return Interleave(shape, *std::move(of_text), *std::move(sampled));
}

absl::Status QuantizeRun::Train() {
  absl::StatusOr<PackedModel> model =
      Quantize(*checkpoint_, task_, calibration_, context_.TrainingOptions());
  // What the quantizer finds wrong with values is wrong with the files.
  if (!model.ok()) return CheckpointError(model.status());
  return context_.KeepArtifact([&](const std::string& directory) {
    return WriteArtifact(*model, MakeLineage(), directory).status();
  });
}

Lineage QuantizeRun::MakeLineage() const {
  return {.checkpoint_digest = checkpoint_digest_,
          .task_digest = TaskDigest(task_),
          .calibration_digest = calibration_.empty() ? "" : DigestOf(calibration_),
          .quern_version = QUERN_VERSION};
}

absl::StatusOr<LoadedArtifact> QuantizeRun::LoadOwnArtifact() const {
  ASSIGN_OR_RETURN(LoadedArtifact artifact, LoadArtifact(context_.Work("artifact")));
  if (artifact.manifest.lineage != MakeLineage()) {
    return absl::FailedPreconditionError("the artifact there is another task's");
  }
  return artifact;
}

absl::Status QuantizeRun::EvaluateAndReport() {
  GiveBackFreedMemory();  // training's
  context_.progress().Report(Stage::kEvaluating, 0, 1);
  EvaluationInput input{.source = MakeModelSource(checkpoint_),
                        .config = checkpoint_->config(),
                        .held_out_path = context_.Work("held_out.safetensors"),
                        .key = key_,
                        .seed = task_.seed,
                        .texts = texts_,
                        .num_threads = context_.num_threads(),
                        .on_progress = [&](int64_t done, int64_t total) {
                          context_.progress().Report(Stage::kEvaluating, done, total);
                        }};
  ASSIGN_OR_RETURN(LoadedArtifact artifact, LoadOwnArtifact());
  const int64_t artifact_bytes = SizeOf(artifact.manifest);
  // Of a round-to-nearest task the result itself is that row.
  if (task_.method != QuantMethod::kRtn) {
    // As many bits for each matrix as the result has.
    Task rounded{.format = artifact.model.format, .method = QuantMethod::kRtn};
    QuantizeOptions options = context_.TrainingOptions();
    options.on_progress = nullptr;
    ASSIGN_OR_RETURN(PackedModel model, Quantize(*checkpoint_, rounded, {}, options));
    input.models.emplace_back("rtn", std::make_shared<const PackedModel>(std::move(model)));
  }
  input.models.emplace_back("result",
                            std::make_shared<const PackedModel>(std::move(artifact.model)));
  ASSIGN_OR_RETURN(const EvaluationResults results,
                   EvaluateModels(std::move(input), context_.cancellation()));
  return context_.Finish(key_, artifact.id,
                         ReportToJson(results, checkpoint_->weight_bytes(), artifact_bytes));
}

}  // namespace

absl::Status RunQuantizeTask(RunContext& context, absl::string_view json) {
  return QuantizeRun(context).Execute(json);
}

}  // namespace quern
