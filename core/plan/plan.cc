#include "core/plan/plan.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <algorithm>

#include "core/base/status_macros.h"
#include "core/model/tensor_names.h"
#include "core/plan/evaluate_task.h"
#include "core/plan/presets.h"
#include "core/plan/tune_task.h"

namespace quern {
namespace {

// Held-out sequences sampled for the evaluation; services/quantizer does the same.
constexpr int64_t kEvaluationSequences = 8;
constexpr int64_t kEvaluationTokens = 512;
// LibTorch's libraries, allocator and threads, and our own.
constexpr int64_t kProgramBytes = int64_t{400} << 20;
// Sampling and scoring are bound by memory, not by products: the share of the training rate that
// they reach (measured on a 135M model: 614 tokens/s scored, 455 sampled, where training does 176
// GFLOP/s).
constexpr double kInferenceShare = 0.8;
// Bytes of a tokenizer.json for each entry of the vocabulary, merges included: 28 translated from a
// GGUF file, 43 in most Hugging Face directories.
constexpr int64_t kTokenizerBytesPerEntry = 35;
constexpr int64_t kManifestBytes = 2048;
// Products of a matrix with its inputs' second moments in GPTQ: half a one to find the codes, one
// for the errors, then at most six passes over scales and codes.
constexpr double kGptqPasses = 14.5;
// Rows of logits that the head's loss takes at once.
constexpr int64_t kHeadSliceTokens = 128;
// What a step costs for each weight that is trained, beside products: fake quantization both ways
// and Adam, bound by memory; in floating-point operations of the same time.
constexpr double kWeightStepFlop = 500;

absl::Status Wrong(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, " ", what));
}

// The sizes that the formulas of costs need.
struct ModelSizes {
  int64_t block_weights = 0;  // of the matrices of one block
  int64_t head_weights = 0;   // vocabulary x hidden
  int64_t total_weights = 0;
  int64_t packed_bytes = 0;
  int64_t vector_bytes = 0;  // of norms and biases, which packed_bytes counts too
  int64_t header_bytes = 0;  // of model.safetensors
};

ModelSizes SizesOf(const ModelConfig& config, const QuantFormat& format) {
  ModelSizes sizes;
  sizes.head_weights = int64_t{config.vocab_size} * config.hidden_size;
  int64_t block_weights = 0;
  // Dtype, shape, offsets and punctuation of one entry of the header, beside the name.
  constexpr int64_t kEntryBytes = 70;
  for (const TensorSpec& spec : ModelTensors(config)) {
    const int64_t name_bytes = static_cast<int64_t>(spec.name.size()) + kEntryBytes;
    if (spec.kind == TensorSpec::Kind::kVector) {
      sizes.vector_bytes += spec.shape[0] * static_cast<int64_t>(sizeof(float));
      sizes.header_bytes += name_bytes;
      continue;
    }
    const int64_t weights = spec.shape[0] * spec.shape[1];
    sizes.total_weights += weights;
    if (spec.kind == TensorSpec::Kind::kBlockMatrix) block_weights += weights;
    const int cols = static_cast<int>(spec.shape[1]);
    const auto matrix = FormatOf(format, spec.kind, cols);
    if (!matrix.has_value()) {
      sizes.packed_bytes += weights * static_cast<int64_t>(sizeof(uint16_t));
      sizes.header_bytes += name_bytes;
      continue;
    }
    const PackedTensor tensor{.rows = static_cast<int>(spec.shape[0]),
                              .cols = cols,
                              .bits = matrix->bits,
                              .group_size = matrix->group_size,
                              .symmetric = matrix->symmetric};
    sizes.packed_bytes += tensor.size_bytes();
    sizes.header_bytes += (name_bytes + 10) * (matrix->symmetric ? 2 : 3);
  }
  sizes.packed_bytes += sizes.vector_bytes;
  sizes.block_weights = block_weights / config.num_hidden_layers;
  return sizes;
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
                       e2e.weight_learning_rate || e2e.first_sample;
  if (task.method == QuantMethod::kRtn) {
    if (has_samples || has_training) return refuse("block_ap");
    if (!task.calibration_path.empty()) return refuse("calibration");
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
  return CheckBatch("e2e_qp", *task.e2e_qp.batch_size, *task.e2e_qp.sample_count);
}

absl::Duration FlopTime(double flop, double gflops) { return absl::Seconds(flop / (gflops * 1e9)); }

// What the stages of one run cost. Formulas: T tokens, L blocks of p weights, h hidden size, s
// sequence length, V vocabulary; everything in 32-bit floats on a CPU.
class CostModel {
 public:
  CostModel(const Task& task, const ModelConfig& config, const Machine& machine)
      : task_(task), config_(config), machine_(machine), sizes_(SizesOf(config, task.format)) {}

  int64_t artifact_bytes() const {
    return sizes_.packed_bytes + sizes_.header_bytes + kManifestBytes +
           kTokenizerBytesPerEntry * config_.vocab_size;
  }

  // Of tuning the scales of a packed model, whose settings are the task's of end-to-end training.
  // `share`: how much of what the settings allow there is to learn from.
  std::vector<StageCost> TuneStages(double share) const {
    const auto examples = static_cast<int64_t>(share * *task_.e2e_qp.sample_count *
                                               *task_.e2e_qp.sequence_length_tokens);
    StageCost training = E2eQp();
    training.duration *= share;
    return {{.stage = Stage::kLoading,
             .duration = absl::Seconds(1 + static_cast<double>(sizes_.packed_bytes) / 500e6),
             .host_memory_bytes = kProgramBytes + sizes_.packed_bytes},
            {.stage = Stage::kCalibrating,
             .duration = absl::Seconds(1),
             .host_memory_bytes = kProgramBytes + sizes_.packed_bytes +
                                  examples * static_cast<int64_t>(sizeof(int32_t))},
            training,
            {.stage = Stage::kPacking,
             .duration = absl::Seconds(1),
             .host_memory_bytes = kProgramBytes + 2 * sizes_.packed_bytes,
             .disk_bytes = scale_bytes()},
            Evaluating(),
            Publishing(scale_bytes())};
  }

  // Of measuring a packed model and, perhaps, its source on so many tokens.
  std::vector<StageCost> EvaluateStages(double tokens) const {
    const int64_t models = source_bytes() + sizes_.packed_bytes;
    return {{.stage = Stage::kLoading,
             .duration = absl::Seconds(1 + static_cast<double>(models) / 500e6),
             .host_memory_bytes = kProgramBytes + models},
            {.stage = Stage::kEvaluating,
             .duration = InferenceTime(2 * tokens),
             .host_memory_bytes = kProgramBytes + 2 * models +
                                  KvBytes(kEvaluationSequences * config_.max_position_embeddings)}};
  }

  // Of the scales and, where they are trained, norms of all block matrices.
  int64_t scale_bytes() const {
    return NumScales() * static_cast<int64_t>(sizeof(uint16_t)) + sizes_.header_bytes +
           (*task_.e2e_qp.trainable == E2eTrainable::kScales ? 0 : sizes_.vector_bytes);
  }

  std::vector<StageCost> Stages() const {
    std::vector<StageCost> stages = {Loading()};
    if (task_.method != QuantMethod::kRtn) {
      stages.push_back(Calibrating());
      stages.push_back(IsUntrained(task_.method) ? Untrained() : BlockAp());
    }
    if (task_.method == QuantMethod::kBlockApE2eQp) stages.push_back(E2eQp());
    stages.push_back(Packing());
    stages.push_back(Evaluating());
    stages.push_back(Publishing(artifact_bytes()));
    return stages;
  }

 private:
  int64_t source_bytes() const { return sizes_.total_weights * machine_.source_bytes_per_weight; }
  absl::Duration InferenceTime(double tokens) const {
    return FlopTime(2.0 * tokens * static_cast<double>(inference_weights()),
                    machine_.gflops * kInferenceShare);
  }
  // Weights that one token is multiplied with: the blocks and the head, tied or not.
  int64_t inference_weights() const {
    return sizes_.block_weights * config_.num_hidden_layers + sizes_.head_weights;
  }
  // Keys and values of `tokens` tokens, in floats.
  int64_t KvBytes(int64_t tokens) const {
    return tokens * config_.num_hidden_layers * 2 * config_.kv_size() * 4;
  }

  int64_t NumScales() const {
    const int64_t group =
        task_.format.group_size == 0 ? config_.hidden_size : task_.format.group_size;
    return sizes_.block_weights * config_.num_hidden_layers / group;
  }

  static StageCost Publishing(int64_t bytes) {
    return {.stage = Stage::kPublishing,
            .duration = absl::Seconds(1 + static_cast<double>(bytes) / 200e6),
            .host_memory_bytes = kProgramBytes,
            .disk_bytes = bytes};
  }

  StageCost Loading() const {
    return {.stage = Stage::kLoading,
            .duration = absl::Seconds(1 + static_cast<double>(source_bytes()) / 500e6),
            .host_memory_bytes = kProgramBytes + source_bytes()};
  }

  StageCost Calibrating() const {
    const CalibrationShape shape = CalibrationShapeOf(task_);
    const int64_t tokens = int64_t{shape.num_sequences} * shape.length_tokens;
    const int64_t running = std::min(shape.num_sequences, 64);
    const bool sampled = task_.calibration_path.empty();
    return {.stage = Stage::kCalibrating,
            .duration = sampled ? InferenceTime(static_cast<double>(tokens)) : absl::Seconds(5),
            .host_memory_bytes =
                kProgramBytes + source_bytes() +
                (sampled ? source_bytes() + KvBytes(running * shape.length_tokens) : 0),
            .disk_bytes = tokens * static_cast<int64_t>(sizeof(int32_t))};
  }

  // Numbers in the second moments of a block's inputs: of q, k, v, o and gate, and of down.
  double MomentWeights() const {
    const double h = config_.hidden_size;
    const double widest = std::max<double>(h, config_.intermediate_size);
    return 5 * h * h + widest * widest;
  }
  // Of one block: the moments of `tokens` inputs, and the search for codes.
  double GptqFlop(double tokens) const {
    const double widest = std::max<double>(config_.hidden_size, config_.intermediate_size);
    return tokens * 2 * MomentWeights() +
           kGptqPasses * 2 * static_cast<double>(sizes_.block_weights) * widest;
  }

  // The moments, and the errors of each exponent that is tried.
  double AwqFlop(double tokens) const {
    constexpr double kExponents = 21;
    const double widest = std::max<double>(config_.hidden_size, config_.intermediate_size);
    return tokens * 2 * MomentWeights() +
           kExponents * static_cast<double>(sizes_.block_weights) * (2 * widest + kWeightStepFlop);
  }

  // Products of the inputs with themselves, the search for codes or channels' scales, and the pass
  // of the block before and after. Memory: the states, the largest matrix's second moments twice
  // and the block.
  StageCost Untrained() const {
    const BlockApSettings& block = task_.block_ap;
    const double p = static_cast<double>(sizes_.block_weights);
    const double h = config_.hidden_size;
    const double widest = std::max<double>(h, config_.intermediate_size);
    const double tokens = static_cast<double>(*block.sample_count) * *block.sequence_length_tokens;
    const double moments = MomentWeights();
    const double flop =
        tokens * 4 * p + (task_.method == QuantMethod::kGptq ? GptqFlop(tokens) : AwqFlop(tokens));
    return {.stage = Stage::kBlockAp,
            .duration = FlopTime(flop * config_.num_hidden_layers, machine_.gflops),
            .host_memory_bytes =
                kProgramBytes + source_bytes() +
                static_cast<int64_t>(tokens * h * 8 + 4 * (moments + 2 * widest * widest) + 16 * p),
            .disk_bytes = 2 * sizes_.packed_bytes};
  }

  // Training 6p + attention for each token and epoch; a pass of the source's stream 2p, of the
  // quantized one and of the validation the same, and what the start takes. Memory: the caches of
  // both streams and the targets, one block in training (value, gradient, two moments,
  // fake-quantized copy), its activations.
  StageCost BlockAp() const {
    const BlockApSettings& block = task_.block_ap;
    const CalibrationShape shape = CalibrationShapeOf(task_);
    const double p = static_cast<double>(sizes_.block_weights);
    const double s = *block.sequence_length_tokens;
    const double h = config_.hidden_size;
    const double train = static_cast<double>(*block.sample_count) * s;
    const double validation = static_cast<double>(*block.validation_sample_count) * s;
    const double source = static_cast<double>(shape.num_sequences) * shape.length_tokens;
    // Of the quantized stream, and of the source's block on it where that is a target.
    int passes = 0;
    if (*block.epoch_count > 0 || validation > 0) {
      passes = *block.target == BlockTarget::kSourceStream ? 1 : 2;
    }
    double flop =
        train * *block.epoch_count * (6 * p + 12 * s * h) +
        (source + passes * (train + validation)) * (2 * p + 4 * s * h) +
        validation * *block.epoch_count * (2 * p + 4 * s * h) +
        Steps(block.sample_count, block.epoch_count, block.batch_size) * kWeightStepFlop * p;
    if (*block.start == QuantStart::kGptq) flop += GptqFlop(train + validation);
    const double caches = (source + (1 + passes) * (train + validation)) * h * 4;
    const double tokens = *block.batch_size * s;
    const double activations =
        tokens * 4 * (24 * h + 4.0 * config_.kv_size() + 10.0 * config_.intermediate_size);
    return {.stage = Stage::kBlockAp,
            .duration = FlopTime(flop * config_.num_hidden_layers, machine_.gflops),
            .host_memory_bytes = kProgramBytes + source_bytes() +
                                 static_cast<int64_t>(caches + activations + 24 * p),
            .disk_bytes = 2 * sizes_.packed_bytes};
  }

  static double Steps(const std::optional<int>& samples, const std::optional<int>& epochs,
                      const std::optional<int>& batch_size) {
    return static_cast<double>(*samples) * *epochs / *batch_size;
  }

  // Of the blocks, forward and backward 6 for each weight and token; of the head, which is not
  // trained, 4, and 2 for the teacher, whose states are known. Memory: packed weights, scales with
  // gradient and moments, what the way back needs, logits of student and teacher with their
  // gradients; of weights that are trained value, gradient, two moments and the
  // fake-quantized copy.
  StageCost E2eQp() const {
    const E2eQpSettings& e2e = task_.e2e_qp;
    const double s = *e2e.sequence_length_tokens;
    const double h = config_.hidden_size;
    const double layers = config_.num_hidden_layers;
    const double weights = layers * static_cast<double>(sizes_.block_weights);
    const double teacher = e2e.loss == E2eLoss::kDistillation ? 2 : 0;
    const double tokens = static_cast<double>(*e2e.sample_count) * s * *e2e.epoch_count;
    double flop = tokens * (6 * weights + (4 + teacher) * static_cast<double>(sizes_.head_weights) +
                            8 * s * h * layers);
    // Sequences of one step that are taken at once.
    const int64_t together = std::max<int64_t>(
        *e2e.sequence_length_tokens,
        std::min<int64_t>(static_cast<int64_t>(s) * *e2e.batch_size, kE2eTokensTogether));
    int64_t graph = E2eGraphBytes(config_, together);
    if (graph > kMaxE2eGraphBytes) {
      graph = graph / config_.num_hidden_layers +
              together * config_.hidden_size * config_.num_hidden_layers * 4;
      flop += tokens * (2 * weights + 4 * s * h * layers);
    }
    double memory = static_cast<double>(sizes_.packed_bytes + 16 * NumScales() + graph) +
                    16.0 * kHeadSliceTokens * config_.vocab_size +
                    4.0 * static_cast<double>(sizes_.head_weights) +
                    12.0 * static_cast<double>(sizes_.block_weights);
    double disk = static_cast<double>(sizes_.packed_bytes);
    if (e2e.trainable == E2eTrainable::kAll) {
      flop += Steps(e2e.sample_count, e2e.epoch_count, e2e.batch_size) * kWeightStepFlop * weights;
      memory += 20 * weights;
      disk += 2 * 12 * weights;  // two generations of value and moments
    }
    return {.stage = Stage::kE2eQp,
            .duration = FlopTime(flop, machine_.gflops),
            .host_memory_bytes = kProgramBytes + source_bytes() + static_cast<int64_t>(memory),
            .disk_bytes = static_cast<int64_t>(disk)};
  }

  StageCost Packing() const {
    return {.stage = Stage::kPacking,
            .duration = absl::Seconds(static_cast<double>(sizes_.total_weights) / 50e6),
            .host_memory_bytes = kProgramBytes + source_bytes() + 2 * sizes_.packed_bytes,
            .disk_bytes = artifact_bytes()};
  }

  StageCost Evaluating() const {
    const int64_t length = std::min<int64_t>(kEvaluationTokens, config_.max_position_embeddings);
    const int64_t sampled = kEvaluationSequences * length;
    const int64_t text = task_.evaluation.path.empty() ? 0
                                                       : int64_t{task_.evaluation.chunk_tokens} *
                                                             task_.evaluation.max_chunk_count;
    // Sampled once, then scored by the source, round-to-nearest and the result.
    const double tokens = static_cast<double>(sampled + 3 * (sampled + text));
    return {.stage = Stage::kEvaluating,
            .duration = InferenceTime(tokens),
            .host_memory_bytes = kProgramBytes + 2 * source_bytes() + 4 * sizes_.packed_bytes +
                                 3 * KvBytes(sampled)};
  }

  const Task& task_;
  const ModelConfig& config_;
  const Machine& machine_;
  const ModelSizes sizes_;
};

absl::Status CheckMemory(const std::vector<StageCost>& stages, const Machine& machine) {
  if (machine.memory_bytes <= 0) return absl::OkStatus();
  const auto largest =
      std::max_element(stages.begin(), stages.end(), [](const StageCost& a, const StageCost& b) {
        return a.host_memory_bytes < b.host_memory_bytes;
      });
  if (largest->host_memory_bytes <= machine.memory_bytes) return absl::OkStatus();
  constexpr double kGib = 1 << 30;
  return absl::ResourceExhaustedError(absl::StrFormat(
      "stage %s needs %.1f GiB of memory, the machine has %.1f GiB; ask for fewer or shorter "
      "samples, or use a larger machine",
      StageName(largest->stage), static_cast<double>(largest->host_memory_bytes) / kGib,
      static_cast<double>(machine.memory_bytes) / kGib));
}

}  // namespace

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
  if (resolved.method == QuantMethod::kBlockApE2eQp) {
    shape.num_sequences = std::max(shape.num_sequences,
                                   *resolved.e2e_qp.first_sample + *resolved.e2e_qp.sample_count);
    shape.length_tokens = std::max(shape.length_tokens, *resolved.e2e_qp.sequence_length_tokens);
  }
  return shape;
}

// Of a block: norms, projections, rotated and repeated heads, attention, gate, up and their
// product.
int64_t E2eGraphBytes(const ModelConfig& config, int64_t num_tokens) {
  const int64_t of_token = 24 * int64_t{config.hidden_size} + 4 * int64_t{config.kv_size()} +
                           10 * int64_t{config.intermediate_size};
  return num_tokens * config.num_hidden_layers * of_token * static_cast<int64_t>(sizeof(float));
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
  ApplyPreset(config, plan.resolved);
  RETURN_IF_ERROR(CheckResolved(plan.resolved, config));
  const CostModel costs(plan.resolved, config, machine);
  plan.stages = costs.Stages();
  plan.artifact_size_bytes = costs.artifact_bytes();
  RETURN_IF_ERROR(CheckMemory(plan.stages, machine));
  return plan;
}

absl::StatusOr<TunePlan> PlanTune(const TuneTask& task, const ModelConfig& config,
                                  const QuantFormat& format, const Machine& machine,
                                  int64_t num_tokens) {
  RETURN_IF_ERROR(config.Validate());
  RETURN_IF_ERROR(format.Validate());
  TunePlan plan{.resolved = ResolvedTuneTask(task, config)};
  const TuneSettings& settings = plan.resolved.settings;
  RETURN_IF_ERROR(
      CheckLength("settings.sequence_length_tokens", settings.sequence_length_tokens, config));
  RETURN_IF_ERROR(CheckEvaluation(plan.resolved.evaluation, config));
  const Task training{
      .format = format, .evaluation = plan.resolved.evaluation, .e2e_qp = E2eSettingsOf(settings)};
  // The base is packed: there is no source.
  Machine without_source = machine;
  without_source.source_bytes_per_weight = 0;
  const CostModel costs(training, config, without_source);
  const double full =
      static_cast<double>(*settings.sample_count) * *settings.sequence_length_tokens;
  plan.stages = costs.TuneStages(std::min(1.0, static_cast<double>(num_tokens) / full));
  plan.artifact_size_bytes = costs.scale_bytes() + kManifestBytes;
  RETURN_IF_ERROR(CheckMemory(plan.stages, machine));
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
  RETURN_IF_ERROR(CheckMemory(plan.stages, machine));
  return plan;
}

}  // namespace quern
