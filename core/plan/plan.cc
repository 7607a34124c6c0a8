#include "core/plan/plan.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/base/status_macros.h"
#include "core/model/tensor_names.h"
#include "core/plan/cost_model.h"
#include "core/plan/evaluate_task.h"
#include "core/plan/presets.h"
#include "core/plan/tune_task.h"

namespace quern {
namespace {

absl::Status Wrong(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, " ", what));
}

absl::Status CheckLength(absl::string_view field, const std::optional<int>& length,
                         const ModelConfig& config) {
  if (!length.has_value() || *length <= config.max_position_embeddings) return absl::OkStatus();
  return Wrong(field, absl::StrCat("is ", *length, ", the model's context is ",
                                   config.max_position_embeddings, " tokens"));
}

absl::Status CheckBatch(absl::string_view where, int batch_size, int sample_count) {
  if (sample_count % batch_size == 0) return absl::OkStatus();
  return Wrong(absl::StrCat(where, ".batch_size"),
               absl::StrCat("is ", batch_size, ", wanted a divisor of ", where,
                            ".sample_count, which is ", sample_count));
}

// Settings that the method would not use are refused: silence would look like an effect.
absl::Status CheckUsed(const Task& task) {
  const auto refuse = [&](absl::string_view field) {
    return Wrong(field, absl::StrCat("is set, but method ", MethodName(task.method),
                                     " does not use it; remove it or change the method"));
  };
  const BlockApSettings& block = task.block_ap;
  const bool has_samples = block.sample_count || block.sequence_length_tokens;
  const bool has_training = block.epoch_count || block.batch_size || block.weight_learning_rate ||
                            block.quant_learning_rate || block.zero_point_learning_rate ||
                            block.validation_sample_count || block.start || block.target ||
                            block.loss || block.round_scales;
  const E2eQpSettings& e2e = task.e2e_qp;
  const bool has_e2e = e2e.sample_count || e2e.sequence_length_tokens || e2e.epoch_count ||
                       e2e.batch_size || e2e.learning_rate || e2e.loss || e2e.trainable ||
                       e2e.weight_learning_rate || e2e.first_sample || e2e.absolute_rate ||
                       e2e.cross_entropy_share;
  if (task.method == QuantMethod::kRtn) {
    if (has_samples || has_training) return refuse("block_ap");
    if (!task.calibration_path.empty()) return refuse("calibration");
    if (task.compute_dtype) return refuse("compute_dtype");
    if (task.activation_dtype) return refuse("activation_dtype");
    if (task.target_bits != 0) return refuse("target_bits");
  }
  if (IsUntrained(task.method) && has_training) {
    return refuse("block_ap (beside sample_count and sequence_length_tokens)");
  }
  if (task.method != QuantMethod::kBlockApE2eQp && has_e2e) return refuse("e2e_qp");
  return absl::OkStatus();
}

absl::Status CheckEvaluation(const EvaluationData& evaluation, const ModelConfig& config) {
  if (!evaluation.path.empty() && evaluation.chunk_tokens > config.max_position_embeddings) {
    return Wrong("evaluation.chunk_tokens",
                 absl::StrCat("is ", evaluation.chunk_tokens, ", the model's context is ",
                              config.max_position_embeddings, " tokens"));
  }
  return absl::OkStatus();
}

absl::Status CheckResolved(const Task& task, const ModelConfig& config) {
  RETURN_IF_ERROR(CheckEvaluation(task.evaluation, config));
  if (task.method == QuantMethod::kRtn) return absl::OkStatus();
  const BlockApSettings& block = task.block_ap;
  RETURN_IF_ERROR(
      CheckLength("block_ap.sequence_length_tokens", block.sequence_length_tokens, config));
  if (task.target_bits != 0 && task.target_bits <= task.format.bits) {
    return Wrong("target_bits",
                 absl::StrCat("is ", task.target_bits,
                              ", wanted 0 or more than format.bits, which is ", task.format.bits));
  }
  const CalibrationShape shape = CalibrationShapeOf(task);
  if (!task.calibration_path.empty() &&
      shape.num_sampled > shape.num_sequences - shape.num_block_sequences) {
    return Wrong("calibration.sampled_count",
                 absl::StrCat("is ", shape.num_sampled, ", but of ", shape.num_sequences,
                              " sequences Block-AP takes ", shape.num_block_sequences,
                              " of the text; wanted at most ",
                              shape.num_sequences - shape.num_block_sequences,
                              ", or no text: then all are sampled"));
  }
  if (IsUntrained(task.method)) return absl::OkStatus();
  RETURN_IF_ERROR(CheckBatch("block_ap", *block.batch_size, *block.sample_count));
  if (task.format.symmetric && *block.zero_point_learning_rate > 0) {
    return Wrong("block_ap.zero_point_learning_rate",
                 absl::StrCat("is ", *block.zero_point_learning_rate,
                              ", but a symmetric format has no zero points; wanted 0"));
  }
  if (task.method == QuantMethod::kBlockAp) return absl::OkStatus();
  RETURN_IF_ERROR(
      CheckLength("e2e_qp.sequence_length_tokens", task.e2e_qp.sequence_length_tokens, config));
  if (*task.e2e_qp.weight_learning_rate > 0 && task.e2e_qp.trainable != E2eTrainable::kAll) {
    return Wrong("e2e_qp.weight_learning_rate",
                 absl::StrCat("is ", *task.e2e_qp.weight_learning_rate,
                              ", but weights are not trained; wanted trainable ALL"));
  }
  if (*task.e2e_qp.absolute_rate && task.e2e_qp.trainable != E2eTrainable::kScales) {
    return Wrong("e2e_qp.absolute_rate", "is true, wanted trainable SCALES with it");
  }
  if (*task.e2e_qp.cross_entropy_share > 0 && task.e2e_qp.loss != E2eLoss::kDistillation) {
    return Wrong("e2e_qp.cross_entropy_share", absl::StrCat("is ", *task.e2e_qp.cross_entropy_share,
                                                            ", wanted loss DISTILLATION with it"));
  }
  return CheckBatch("e2e_qp", *task.e2e_qp.batch_size, *task.e2e_qp.sample_count);
}

// What a stage needs more of than there is.
struct Excess {
  Stage stage;
  absl::string_view memory;
  int64_t needed_bytes;
  int64_t available_bytes;
};

// The largest one, if the stages do not fit.
std::optional<Excess> FindExcess(const std::vector<StageCost>& stages, const Machine& machine) {
  std::optional<Excess> largest;
  const auto check = [&](const StageCost& cost, absl::string_view memory, int64_t needed,
                         int64_t available) {
    if (available <= 0 || needed <= available) return;
    if (!largest.has_value() || needed > largest->needed_bytes) {
      largest = {cost.stage, memory, needed, available};
    }
  };
  for (const StageCost& cost : stages) {
    check(cost, "memory, the machine", cost.host_memory_bytes, machine.memory_bytes);
    check(cost, "GPU memory, the GPU", cost.device_memory_bytes, machine.device_memory_bytes);
  }
  return largest;
}

// `what_fits` says what would, when nothing is wrong but the size.
absl::Status CheckMemory(const std::vector<StageCost>& stages, const Machine& machine,
                         const std::function<std::string()>& what_fits) {
  const std::optional<Excess> excess = FindExcess(stages, machine);
  if (!excess.has_value()) return absl::OkStatus();
  constexpr double kGib = 1 << 30;
  return absl::ResourceExhaustedError(
      absl::StrFormat("stage %s needs %.1f GiB of %s has %.1f GiB; %s", StageName(excess->stage),
                      static_cast<double>(excess->needed_bytes) / kGib, excess->memory,
                      static_cast<double>(excess->available_bytes) / kGib, what_fits()));
}

constexpr absl::string_view kLargerMachine = "no setting makes it fit, use a larger machine";

// Halves the setting that the largest stage's memory grows with until the run fits.
std::string WhatFits(Task task, const ModelConfig& config, const Machine& machine) {
  constexpr int kLeastTokens = 16;
  const Task asked = task;
  const bool trains = task.method == QuantMethod::kBlockApE2eQp;
  while (true) {
    const std::optional<Excess> excess =
        FindExcess(CostModel(task, config, machine).Stages(), machine);
    if (!excess.has_value()) break;
    std::optional<int>* setting = nullptr;
    int least = 1;
    const CalibrationShape shape = CalibrationShapeOf(task);
    const int64_t stream_bytes =
        int64_t{4} * shape.num_sequences * shape.length_tokens * config.hidden_size;
    if (excess->stage == Stage::kE2eQp && E2eGraphBytes(config, *task.e2e_qp.sequence_length_tokens,
                                                        *task.compute_dtype) > stream_bytes) {
      setting = &task.e2e_qp.sequence_length_tokens;
      least = kLeastTokens;
    } else if (excess->stage == Stage::kE2eQp || excess->stage == Stage::kBlockAp ||
               excess->stage == Stage::kCalibrating) {
      // The source's stream holds the sequences of both.
      const bool of_e2e =
          trains && *task.e2e_qp.sample_count > task.block_ap.sample_count.value_or(0);
      setting = of_e2e ? &task.e2e_qp.sample_count : &task.block_ap.sample_count;
    }
    if (setting == nullptr || !setting->has_value() || **setting / 2 < least) {
      return std::string(kLargerMachine);
    }
    *setting = **setting / 2;
  }
  std::vector<std::string> changes;
  const auto add = [&](absl::string_view name, const std::optional<int>& was,
                       const std::optional<int>& fits) {
    if (was != fits) changes.push_back(absl::StrCat(name, " ", *fits, " instead of ", *was));
  };
  add("block_ap.sample_count", asked.block_ap.sample_count, task.block_ap.sample_count);
  add("e2e_qp.sample_count", asked.e2e_qp.sample_count, task.e2e_qp.sample_count);
  add("e2e_qp.sequence_length_tokens", asked.e2e_qp.sequence_length_tokens,
      task.e2e_qp.sequence_length_tokens);
  return absl::StrCat("it fits with ", absl::StrJoin(changes, ", "), "; or use a larger machine");
}

}  // namespace

ComputeDtype FasterDtype(const Machine& machine) {
  return machine.bfloat16_gflops > machine.gflops ? ComputeDtype::kBfloat16
                                                  : ComputeDtype::kFloat32;
}

absl::string_view StageName(Stage stage) {
  switch (stage) {
    case Stage::kLoading:
      return "LOADING";
    case Stage::kCalibrating:
      return "CALIBRATING";
    case Stage::kBlockAp:
      return "BLOCK_AP";
    case Stage::kE2eQp:
      return "E2E_QP";
    case Stage::kPacking:
      return "PACKING";
    case Stage::kEvaluating:
      return "EVALUATING";
    case Stage::kPublishing:
      return "PUBLISHING";
  }
  return "";
}

CalibrationShape CalibrationShapeOf(const Task& resolved) {
  if (resolved.method == QuantMethod::kRtn) return {};
  const BlockApSettings& block = resolved.block_ap;
  CalibrationShape shape{
      .num_sequences = *block.sample_count + block.validation_sample_count.value_or(0),
      .length_tokens = *block.sequence_length_tokens};
  shape.num_block_sequences = shape.num_sequences;
  if (resolved.method == QuantMethod::kBlockApE2eQp) {
    shape.num_sequences = std::max(shape.num_sequences,
                                   *resolved.e2e_qp.first_sample + *resolved.e2e_qp.sample_count);
    shape.length_tokens = std::max(shape.length_tokens, *resolved.e2e_qp.sequence_length_tokens);
  }
  shape.num_sampled =
      resolved.calibration_path.empty() ? shape.num_sequences : resolved.calibration_sampled_count;
  return shape;
}

int SourceBytesPerWeight(const ModelConfig& config, int64_t weight_bytes) {
  int64_t num_weights = 0;
  for (const TensorSpec& spec : ModelTensors(config)) {
    if (spec.kind != TensorSpec::Kind::kVector) num_weights += spec.shape[0] * spec.shape[1];
  }
  const double bytes_per_weight =
      static_cast<double>(weight_bytes) / static_cast<double>(num_weights);
  return bytes_per_weight > 1.9 && bytes_per_weight < 2.5 ? 2 : 4;
}

absl::StatusOr<PlanResult> MakePlan(const Task& task, const ModelConfig& config,
                                    const Machine& machine) {
  RETURN_IF_ERROR(config.Validate());
  RETURN_IF_ERROR(task.format.Validate());
  RETURN_IF_ERROR(CheckUsed(task));
  PlanResult plan{.resolved = task};
  if (task.method != QuantMethod::kRtn && !task.compute_dtype) {
    plan.resolved.compute_dtype =
        task.preset == Preset::kReference ? ComputeDtype::kFloat32 : FasterDtype(machine);
  }
  if (task.method != QuantMethod::kRtn && !task.activation_dtype) {
    plan.resolved.activation_dtype = ComputeDtype::kFloat32;
  }
  ApplyPreset(config, plan.resolved);
  RETURN_IF_ERROR(CheckResolved(plan.resolved, config));
  const CostModel costs(plan.resolved, config, machine);
  plan.stages = costs.Stages();
  plan.artifact_size_bytes = costs.artifact_bytes();
  RETURN_IF_ERROR(
      CheckMemory(plan.stages, machine, [&] { return WhatFits(plan.resolved, config, machine); }));
  return plan;
}

absl::Status CheckDisk(const std::vector<StageCost>& stages, int64_t free_bytes) {
  for (const StageCost& stage : stages) {
    if (stage.disk_bytes <= free_bytes) continue;
    constexpr double kGib = 1 << 30;
    return absl::ResourceExhaustedError(
        absl::StrFormat("stage %s needs %.1f GiB of disk, the work directory's has %.1f GiB; make "
                        "room there, or let states take more memory or fewer samples",
                        StageName(stage.stage), static_cast<double>(stage.disk_bytes) / kGib,
                        static_cast<double>(free_bytes) / kGib));
  }
  return absl::OkStatus();
}

absl::StatusOr<TunePlan> PlanTune(const TuneTask& task, const ModelConfig& config,
                                  const QuantFormat& format, const Machine& machine,
                                  int64_t num_tokens) {
  RETURN_IF_ERROR(config.Validate());
  RETURN_IF_ERROR(format.Validate());
  TunePlan plan{.resolved = ResolvedTuneTask(task, config, machine)};
  const TuneSettings& settings = plan.resolved.settings;
  RETURN_IF_ERROR(
      CheckLength("settings.sequence_length_tokens", settings.sequence_length_tokens, config));
  RETURN_IF_ERROR(CheckEvaluation(plan.resolved.evaluation, config));
  const Task training{.format = format,
                      .evaluation = plan.resolved.evaluation,
                      .e2e_qp = E2eSettingsOf(settings),
                      .compute_dtype = settings.compute_dtype};
  // The base is packed: there is no source.
  Machine without_source = machine;
  without_source.source_bytes_per_weight = 0;
  const CostModel costs(training, config, without_source);
  const double full =
      static_cast<double>(*settings.sample_count) * *settings.sequence_length_tokens;
  plan.stages = costs.TuneStages(std::min(1.0, static_cast<double>(num_tokens) / full));
  plan.artifact_size_bytes = costs.scale_bytes() + kManifestBytes;
  RETURN_IF_ERROR(CheckMemory(plan.stages, machine, [] {
    return std::string("ask for fewer settings.sequence_length_tokens, or use a larger machine");
  }));
  return plan;
}

absl::StatusOr<EvaluatePlan> PlanEvaluate(const EvaluateTask& task, const ModelConfig& config,
                                          const QuantFormat& format, const Machine& machine) {
  RETURN_IF_ERROR(config.Validate());
  RETURN_IF_ERROR(format.Validate());
  EvaluatePlan plan{.resolved = task};
  double tokens = 0;
  for (EvaluationData& data : plan.resolved.texts) {
    ResolveChunkTokens(config, data);
    RETURN_IF_ERROR(CheckEvaluation(data, config));
    tokens += static_cast<double>(data.chunk_tokens) * data.max_chunk_count;
  }
  constexpr int kGuessedItems = 2000;
  constexpr double kGuessedItemTokens = 150;
  for (const ZeroShotData& data : plan.resolved.zero_shot) {
    tokens += kGuessedItemTokens * (data.max_item_count == 0 ? kGuessedItems : data.max_item_count);
  }
  Machine with_source = machine;
  if (task.reference_path.empty()) with_source.source_bytes_per_weight = 0;
  const Task evaluated{.format = format};
  plan.stages = CostModel(evaluated, config, with_source).EvaluateStages(tokens);
  RETURN_IF_ERROR(CheckMemory(plan.stages, machine, [] { return std::string(kLargerMachine); }));
  return plan;
}

}  // namespace quern
