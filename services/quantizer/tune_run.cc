#include "services/quantizer/tune_run.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/artifact/scale_delta.h"
#include "core/base/error_reason.h"
#include "core/base/large_pages.h"
#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/engine/model_source.h"
#include "core/plan/tune_task.h"
#include "core/quant/tune.h"
#include "services/quantizer/artifacts.h"
#include "services/quantizer/calibration.h"
#include "services/quantizer/errors.h"
#include "services/quantizer/evaluation.h"
#include "services/quantizer/instructions.h"

namespace quern {
namespace {

constexpr int kHeldOutShare = 10;  // one of so many examples
constexpr int kMaxHeldOut = 64;

class TuneRun {
 public:
  explicit TuneRun(RunContext& context) : context_(context) {}

  absl::Status Execute(absl::string_view json);

 private:
  absl::Status OpenBase();
  absl::Status MakeThePlan(int64_t num_tokens);
  absl::Status ReadExamples();
  absl::Status Train();
  absl::StatusOr<LoadedArtifact> LoadOwnArtifact() const;
  absl::Status EvaluateAndReport();
  Lineage MakeLineage() const;

  RunContext& context_;
  TuneTask task_;  // resolved
  LoadedArtifact base_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<TuningExample> examples_;
  std::vector<EvaluationText> texts_;  // the examples held back, and the task's text
  std::string examples_digest_;
  // SHA-256 over everything that files kept in the work directory depend on.
  std::string key_;
};

absl::Status TuneRun::Execute(absl::string_view json) {
  absl::StatusOr<TuneTask> task = ParseTuneTask(json);
  if (!task.ok()) return WithReason(task.status(), reason::kInvalidTask);
  task_ = *std::move(task);
  RETURN_IF_ERROR(OpenBase());
  RETURN_IF_ERROR(MakeThePlan(std::numeric_limits<int64_t>::max()));
  context_.progress().Report(Stage::kLoading, 1, 1);
  RETURN_IF_ERROR(ReadExamples());
  RETURN_IF_ERROR(context_.cancellation().Check());
  if (context_.RepeatResult(key_)) return absl::OkStatus();
  if (!LoadOwnArtifact().ok()) RETURN_IF_ERROR(Train());
  return EvaluateAndReport();
}

absl::Status TuneRun::OpenBase() {
  ASSIGN_OR_RETURN(ArtifactAndBase opened, OpenArtifact(context_, "base", task_.base));
  if (opened.base.has_value()) {
    return WithReason(
        absl::FailedPreconditionError(
            absl::StrCat("base artifacts/", task_.base, " is a scale delta, wanted a whole model")),
        reason::kBaseInvalid);
  }
  base_ = std::move(opened.artifact);
  tokenizer_ = std::move(opened.tokenizer);
  return absl::OkStatus();
}

// `num_tokens` of the examples, once they are known.
absl::Status TuneRun::MakeThePlan(int64_t num_tokens) {
  absl::StatusOr<TunePlan> plan = PlanTune(task_, base_.manifest.config, base_.manifest.format,
                                           context_.ThisMachine(0), num_tokens);
  if (!plan.ok()) return PlanError(plan.status());
  RETURN_IF_ERROR(context_.CheckDisk(plan->stages));
  task_ = std::move(plan->resolved);
  context_.progress().SetPlan(std::move(plan->stages));
  return absl::OkStatus();
}

absl::Status TuneRun::ReadExamples() {
  context_.progress().Report(Stage::kCalibrating, 0, 1);
  const auto read = [&]() -> absl::StatusOr<Instructions> {
    ASSIGN_OR_RETURN(const std::string path,
                     context_.Resolve(context_.config().data_root, task_.data_path));
    return ReadInstructions(path, base_.model, *tokenizer_, *task_.settings.sequence_length_tokens);
  };
  absl::StatusOr<Instructions> instructions = read();
  if (!instructions.ok()) {
    return WithReason(Prefixed(instructions.status(), "data.path"), reason::kCalibrationInvalid);
  }
  const size_t count = instructions->examples.size();
  const auto held_out = static_cast<size_t>(task_.settings.held_out_count.value_or(
      std::min<int>(kMaxHeldOut, static_cast<int>(count / kHeldOutShare))));
  if (held_out >= count) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrCat(
            "data.path: has ", count, " examples, of which ", held_out,
            " are to be held back; bring more or set settings.held_out_count to fewer")),
        reason::kCalibrationInvalid);
  }
  EvaluationText text{.name = "held out"};
  Sha256 digest;
  const auto num_training = static_cast<size_t>(*task_.settings.sample_count);
  for (const size_t i : ShuffledOrder(count, task_.seed)) {
    TuningExample& example = instructions->examples[i];
    if (text.sequences.size() < held_out) {
      text.sequences.push_back(std::move(example.ids));
      text.num_context_tokens.push_back(example.num_context_tokens);
      continue;
    }
    if (examples_.size() == num_training) break;
    digest.Update(absl::StrCat(example.ids.size(), " ", example.num_context_tokens, "\n"));
    digest.Update(absl::string_view(reinterpret_cast<const char*>(example.ids.data()),
                                    example.ids.size() * sizeof(int32_t)));
    examples_.push_back(std::move(example));
  }
  examples_digest_ = digest.FinishHex();
  int64_t num_tokens = 0;
  for (const TuningExample& example : examples_) {
    num_tokens += static_cast<int64_t>(example.ids.size());
  }
  RETURN_IF_ERROR(MakeThePlan(num_tokens));
  if (held_out > 0) texts_.push_back(std::move(text));
  ASSIGN_OR_RETURN(std::vector<EvaluationText> more,
                   context_.ReadEvaluationText(task_.evaluation, *tokenizer_));
  std::move(more.begin(), more.end(), std::back_inserter(texts_));
  key_ = Sha256Hex(DumpCanonicalJson({{"task", TuneTaskToJson(task_)},
                                      {"examples", examples_digest_},
                                      {"threads", context_.num_threads()},
                                      {"device", context_.device().name},
                                      {"quern_version", QUERN_VERSION}}));
  LOG(INFO) << "planned tuning examples=" << examples_.size() << " held_out=" << held_out
            << " cut=" << instructions->num_cut << " left_out=" << instructions->num_left_out;
  context_.progress().Report(Stage::kCalibrating, 1, 1);
  return absl::OkStatus();
}

Lineage TuneRun::MakeLineage() const {
  return {.checkpoint_digest = base_.manifest.lineage.checkpoint_digest,
          .task_digest = TuneTaskDigest(task_),
          .calibration_digest = examples_digest_,
          .quern_version = QUERN_VERSION};
}

absl::Status TuneRun::Train() {
  absl::StatusOr<PackedModel> tuned =
      Tune(base_.model, base_.id, E2eSettingsOf(task_.settings), *task_.settings.compute_dtype,
           examples_, context_.TrainingOptions());
  RETURN_IF_ERROR(tuned.status());
  return context_.KeepArtifact([&](const std::string& directory) -> absl::Status {
    absl::StatusOr<std::string> id = WriteScaleDelta(base_, *tuned, MakeLineage(), directory);
    // The settings were such that nothing changed.
    if (absl::IsInvalidArgument(id.status())) {
      return WithReason(id.status(), reason::kInvalidTask);
    }
    return id.status();
  });
}

absl::StatusOr<LoadedArtifact> TuneRun::LoadOwnArtifact() const {
  ASSIGN_OR_RETURN(LoadedArtifact artifact, LoadScaleDelta(context_.Work("artifact"), base_));
  if (artifact.manifest.lineage != MakeLineage()) {
    return absl::FailedPreconditionError("the artifact there is another task's");
  }
  return artifact;
}

absl::Status TuneRun::EvaluateAndReport() {
  GiveBackFreedMemory();  // training's
  context_.progress().Report(Stage::kEvaluating, 0, 1);
  ASSIGN_OR_RETURN(LoadedArtifact artifact, LoadOwnArtifact());
  const int64_t artifact_bytes = SizeOf(artifact.manifest);
  EvaluationInput input{.source = MakeModelSource(std::make_shared<const PackedModel>(base_.model)),
                        .config = base_.model.config,
                        .source_name = "base",
                        .texts = std::move(texts_),
                        .num_threads = context_.num_threads(),
                        .on_progress = [&](int64_t done, int64_t total) {
                          context_.progress().Report(Stage::kEvaluating, done, total);
                        }};
  input.models.emplace_back("result",
                            std::make_shared<const PackedModel>(std::move(artifact.model)));
  ASSIGN_OR_RETURN(const EvaluationResults results,
                   EvaluateModels(std::move(input), context_.cancellation()));
  return context_.Finish(key_, artifact.id,
                         ReportToJson(results, SizeOf(base_.manifest), artifact_bytes));
}

}  // namespace

absl::Status RunTuneTask(RunContext& context, absl::string_view json) {
  return TuneRun(context).Execute(json);
}

}  // namespace quern
