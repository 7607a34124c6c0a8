#include "core/plan/cost_model.h"

#include <algorithm>

#include "core/model/tensor_names.h"

namespace quern {
namespace {

// Held-out sequences sampled for the evaluation; services/quantizer does the same.
constexpr int64_t kEvaluationSequences = 8;
constexpr int64_t kEvaluationTokens = 512;
// LibTorch's libraries, allocator and threads, and our own.
constexpr int64_t kProgramBytes = int64_t{200} << 20;
// What CUDA and its libraries take of a GPU before anything is computed.
constexpr int64_t kDeviceProgramBytes = int64_t{500} << 20;
// Sampling and scoring: products at this share of the rate, and for each token and block what
// attention and the operations beside products take, in floating-point operations of the same time
// for each element of the hidden state. (Measured on 30 blocks of 576 and 4 blocks of 2,048: 16,384
// tokens in 34 and 43 s where products do 200 GFLOP/s.)
constexpr double kInferenceShare = 0.95;
constexpr double kInferenceElementFlop = 7600;
// A copy in 8 bits is sampled from, on kernels of integers (measured: 810 tokens/s of the same
// model where products do 205 GFLOP/s).
constexpr double kSamplingSpeedUp = 1.8;
// At which such a copy is made.
constexpr double kCopyBytesPerSecond = 200e6;
// Of the calibration, and widths tried, to choose bits for each matrix; core/quant does the same.
constexpr double kSensitivityTokens = 8 * 512;
constexpr double kSensitivityWidths = 4;
// Of a file that streams lie in, read ahead: a common SSD's.
constexpr double kScratchBytesPerSecond = 500e6;
// What training takes beside its products, which is in floats whatever those are in: as long as
// this share of them would take in floats (measured with block_ap_speed: products are 88 % of a
// step in floats and 68 % in bfloat16, at 200 and 420 GFLOP/s).
constexpr double kBesideProducts = 0.18;
// What a step takes of each block however small it is: a thousand operations of LibTorch.
constexpr absl::Duration kStepTime = absl::Microseconds(1500);
// Bytes of a tokenizer.json for each entry of the vocabulary, merges included: 28 translated from a
// GGUF file, 43 in most Hugging Face directories.
constexpr int64_t kTokenizerBytesPerEntry = 35;
// Of GPTQ, measured on blocks of 3.5 and 44 million weights: products of a matrix with its inputs'
// second moments, half a one to find the codes, one for the errors, then at most six passes over
// scales and codes; and the loops over each row's codes, in floating-point operations of the same
// time.
constexpr double kGptqPasses = 6.8;
constexpr double kGptqWeightFlop = 41'500;
// Rows of logits that the head's loss takes at once.
constexpr int64_t kHeadSliceTokens = 128;
// What a step costs for each weight that is trained, beside products: fake quantization both ways
// and Adam, bound by memory; in floating-point operations of the same time.
constexpr double kWeightStepFlop = 500;

// target_bits: as in Task.
ModelSizes SizesOf(const ModelConfig& config, const QuantFormat& format, double target_bits) {
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
    const auto matrix = FormatOf(format, spec);
    if (!matrix.has_value()) {
      sizes.packed_bytes += weights * static_cast<int64_t>(sizeof(uint16_t));
      sizes.header_bytes += name_bytes;
      continue;
    }
    const PackedTensor tensor{.rows = static_cast<int>(spec.shape[0]),
                              .cols = static_cast<int>(spec.shape[1]),
                              .bits = matrix->bits,
                              .group_size = matrix->group_size,
                              .symmetric = matrix->symmetric};
    sizes.packed_bytes += tensor.size_bytes();
    sizes.header_bytes += (name_bytes + 10) * (matrix->symmetric ? 2 : 3);
  }
  sizes.packed_bytes += sizes.vector_bytes;
  if (target_bits != 0) {
    sizes.packed_bytes +=
        static_cast<int64_t>((target_bits - format.bits) / 8 * static_cast<double>(block_weights));
  }
  sizes.block_weights = block_weights / config.num_hidden_layers;
  return sizes;
}

absl::Duration FlopTime(double flop, double gflops) { return absl::Seconds(flop / (gflops * 1e9)); }

}  // namespace

// Of a block: states, norms and what products are given, queries and attention's output, keys and
// values, gate, up and their product; the last three lie in the type of the products.
int64_t E2eGraphBytes(const ModelConfig& config, int64_t num_tokens, ComputeDtype compute_dtype) {
  const int64_t of_mlp = compute_dtype == ComputeDtype::kBfloat16 ? 2 : 4;
  const int64_t of_token = 14 * int64_t{config.hidden_size} + 4 * int64_t{config.kv_size()} +
                           of_mlp * int64_t{config.intermediate_size};
  return num_tokens * config.num_hidden_layers * of_token * static_cast<int64_t>(sizeof(float));
}

CostModel::CostModel(const Task& task, const ModelConfig& config, const Machine& machine)
    : task_(task),
      config_(config),
      machine_(machine),
      sizes_(SizesOf(config, task.format, task.target_bits)) {}

int64_t CostModel::artifact_bytes() const {
  return sizes_.packed_bytes + sizes_.header_bytes + kManifestBytes +
         kTokenizerBytesPerEntry * config_.vocab_size;
}

std::vector<StageCost> CostModel::TuneStages(double share) const {
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

std::vector<StageCost> CostModel::EvaluateStages(double tokens) const {
  const int64_t models = source_bytes() + sizes_.packed_bytes;
  return {{.stage = Stage::kLoading,
           .duration = absl::Seconds(1 + static_cast<double>(models) / 500e6),
           .host_memory_bytes = kProgramBytes + models},
          {.stage = Stage::kEvaluating,
           .duration = InferenceTime(2 * tokens),
           .host_memory_bytes = kProgramBytes + 2 * models +
                                KvBytes(kEvaluationSequences * config_.max_position_embeddings)}};
}

int64_t CostModel::scale_bytes() const {
  return NumScales() * static_cast<int64_t>(sizeof(uint16_t)) + sizes_.header_bytes +
         (*task_.e2e_qp.trainable == E2eTrainable::kScales ? 0 : sizes_.vector_bytes);
}

std::vector<StageCost> CostModel::Stages() const {
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

int64_t CostModel::source_bytes() const {
  return sizes_.total_weights * machine_.source_bytes_per_weight;
}

absl::Duration CostModel::InferenceTime(double tokens) const {
  const double elements = tokens * config_.hidden_size * config_.num_hidden_layers;
  return FlopTime(2.0 * tokens * static_cast<double>(inference_weights()),
                  machine_.gflops * kInferenceShare) +
         FlopTime(elements * kInferenceElementFlop, machine_.gflops);
}

absl::Duration CostModel::FloatTime(double flop) const {
  return FlopTime(flop * (1 + kBesideProducts), machine_.gflops);
}

absl::Duration CostModel::TrainingTime(double flop) const {
  const bool bfloat16 =
      task_.compute_dtype == ComputeDtype::kBfloat16 && machine_.bfloat16_gflops > 0;
  return FlopTime(flop, bfloat16 ? machine_.bfloat16_gflops : machine_.gflops) +
         FlopTime(flop * kBesideProducts, machine_.gflops);
}

int64_t CostModel::inference_weights() const {
  return sizes_.block_weights * config_.num_hidden_layers + sizes_.head_weights;
}

int64_t CostModel::KvBytes(int64_t tokens) const {
  return tokens * config_.num_hidden_layers * 2 * config_.kv_size() * 4;
}

int64_t CostModel::NumScales() const {
  const int64_t group =
      task_.format.group_size == 0 ? config_.hidden_size : task_.format.group_size;
  return sizes_.block_weights * config_.num_hidden_layers / group;
}

StageCost CostModel::Publishing(int64_t bytes) {
  return {.stage = Stage::kPublishing,
          .duration = absl::Seconds(1 + static_cast<double>(bytes) / 200e6),
          .host_memory_bytes = kProgramBytes,
          .disk_bytes = bytes};
}

StageCost CostModel::Loading() const {
  return {.stage = Stage::kLoading,
          .duration = absl::Seconds(1 + static_cast<double>(source_bytes()) / 500e6),
          .host_memory_bytes = kProgramBytes + source_bytes()};
}

StageCost CostModel::Calibrating() const {
  const CalibrationShape shape = CalibrationShapeOf(task_);
  const int64_t tokens = int64_t{shape.num_sequences} * shape.length_tokens;
  const int64_t running = std::min(shape.num_sampled, 64);
  // Of the copy in 8 bits that sequences are sampled from.
  const int64_t copy_bytes = running == 0 ? 0 : 2 * sizes_.total_weights;
  return {.stage = Stage::kCalibrating,
          .duration = absl::Seconds(1 + static_cast<double>(copy_bytes) / kCopyBytesPerSecond) +
                      InferenceTime(static_cast<double>(shape.num_sampled) * shape.length_tokens) /
                          kSamplingSpeedUp,
          .host_memory_bytes =
              kProgramBytes + source_bytes() + copy_bytes + KvBytes(running * shape.length_tokens),
          .disk_bytes = tokens * static_cast<int64_t>(sizeof(int32_t))};
}

double CostModel::MomentWeights() const {
  const double h = config_.hidden_size;
  const double widest = std::max<double>(h, config_.intermediate_size);
  return 5 * h * h + widest * widest;
}

double CostModel::GptqFlop(double tokens) const {
  double products = 0;  // of all matrices with their inputs' moments, multiplications
  for (const TensorSpec& spec : BlockTensors(config_, 0)) {
    if (spec.kind != TensorSpec::Kind::kBlockMatrix) continue;
    products += static_cast<double>(spec.shape[0]) * static_cast<double>(spec.shape[1]) *
                static_cast<double>(spec.shape[1]);
  }
  return tokens * 2 * MomentWeights() + kGptqPasses * 2 * products +
         kGptqWeightFlop * static_cast<double>(sizes_.block_weights);
}

double CostModel::GptqBytes() const {
  const double widest = std::max<double>(config_.hidden_size, config_.intermediate_size);
  return 4 * (MomentWeights() + 2 * widest * widest);
}

double CostModel::SensitivityFlop() const {
  if (task_.target_bits == 0) return 0;
  return kSensitivityTokens * static_cast<double>(sizes_.block_weights) *
         (2 + 6 + 2 * kSensitivityWidths);
}

double CostModel::SensitivityBytes() const {
  if (task_.target_bits == 0) return 0;
  return 4 * (kSensitivityTokens * config_.hidden_size * (config_.num_hidden_layers + 2.0) +
              static_cast<double>(sizes_.block_weights) * (2 + kSensitivityWidths) +
              2 * static_cast<double>(sizes_.head_weights));
}

double CostModel::AwqFlop(double tokens) const {
  constexpr double kExponents = 21;
  const double widest = std::max<double>(config_.hidden_size, config_.intermediate_size);
  return tokens * 2 * MomentWeights() +
         kExponents * static_cast<double>(sizes_.block_weights) * (2 * widest + kWeightStepFlop);
}

StageCost CostModel::TrainingStage(Stage stage, absl::Duration duration, double memory_bytes,
                                   double disk_bytes) const {
  StageCost cost{.stage = stage,
                 .duration = duration,
                 .host_memory_bytes = kProgramBytes + source_bytes(),
                 .disk_bytes = static_cast<int64_t>(disk_bytes)};
  if (machine_.device_memory_bytes > 0) {
    cost.device_memory_bytes = kDeviceProgramBytes + static_cast<int64_t>(memory_bytes);
  } else {
    cost.host_memory_bytes += static_cast<int64_t>(memory_bytes);
  }
  return cost;
}

double CostModel::OuterBytes() const {
  return (config_.tie_word_embeddings ? 2.0 : 4.0) * 4 * static_cast<double>(sizes_.head_weights);
}

CostModel::Streams CostModel::PlaceStreams(std::initializer_list<double> values) const {
  const double value_bytes = task_.activation_dtype == ComputeDtype::kBfloat16 ? 2 : 4;
  Streams streams;
  for (const double count : values) {
    const double bytes = count * value_bytes;
    const bool fits =
        machine_.activation_memory_bytes == 0 ||
        streams.memory_bytes + bytes <= static_cast<double>(machine_.activation_memory_bytes);
    (fits ? streams.memory_bytes : streams.disk_bytes) += bytes;
  }
  return streams;
}

absl::Duration CostModel::Streams::DiskTime(double passes) const {
  return absl::Seconds(passes * disk_bytes / kScratchBytesPerSecond);
}

StageCost CostModel::Untrained() const {
  const BlockApSettings& block = task_.block_ap;
  const double p = static_cast<double>(sizes_.block_weights);
  const double h = config_.hidden_size;
  const double tokens = static_cast<double>(*block.sample_count) * *block.sequence_length_tokens;
  const double search = task_.method == QuantMethod::kGptq ? GptqFlop(tokens) : AwqFlop(tokens);
  const Streams streams = PlaceStreams({tokens * h});
  return TrainingStage(
      Stage::kBlockAp,
      (TrainingTime(tokens * 4 * p + SensitivityFlop()) + FloatTime(search) + streams.DiskTime(3)) *
          config_.num_hidden_layers,
      OuterBytes() + std::max(SensitivityBytes(), streams.memory_bytes + GptqBytes() + 16 * p),
      2 * static_cast<double>(sizes_.packed_bytes) + streams.disk_bytes);
}

StageCost CostModel::BlockAp() const {
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
  const double flop =
      train * *block.epoch_count * (6 * p + 12 * s * h) +
      (source + passes * (train + validation)) * (2 * p + 4 * s * h) +
      validation * *block.epoch_count * (2 * p + 4 * s * h) +
      Steps(block.sample_count, block.epoch_count, block.batch_size) * kWeightStepFlop * p;
  const bool by_gptq = *block.start == QuantStart::kGptq;
  const double search = by_gptq ? GptqFlop(train + validation) : 0;
  // The allocator keeps what GPTQ freed, in pieces of other sizes than training wants.
  const double search_bytes = by_gptq ? GptqBytes() : 0;
  // Bytes of a block's values: the source's, five of the one in training, and both as products take
  // them where that is not float.
  const double copies = 24 + (dtype() == ComputeDtype::kBfloat16 ? 4 : 0);
  const double own = (train + validation) * h;
  const Streams streams = passes == 0   ? PlaceStreams({source * h})
                          : passes == 1 ? PlaceStreams({source * h, own})
                                        : PlaceStreams({source * h, own, own});
  const double activations = static_cast<double>(E2eGraphBytes(
                                 config_, static_cast<int64_t>(*block.batch_size * s), dtype())) /
                             config_.num_hidden_layers;
  // A pass reads and writes a stream; each epoch reads it.
  return TrainingStage(
      Stage::kBlockAp,
      (TrainingTime(flop + SensitivityFlop()) + FloatTime(search) +
       streams.DiskTime(2.0 + *block.epoch_count) +
       kStepTime * Steps(block.sample_count, block.epoch_count, block.batch_size)) *
          config_.num_hidden_layers,
      OuterBytes() + std::max(SensitivityBytes(),
                              streams.memory_bytes + activations + search_bytes + copies * p),
      2 * static_cast<double>(sizes_.packed_bytes) + streams.disk_bytes);
}

double CostModel::Steps(const std::optional<int>& samples, const std::optional<int>& epochs,
                        const std::optional<int>& batch_size) {
  return static_cast<double>(*samples) * *epochs / *batch_size;
}

StageCost CostModel::E2eQp() const {
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
  int64_t graph = E2eGraphBytes(config_, together, dtype());
  if (graph > kMaxE2eGraphBytes) {
    graph = graph / config_.num_hidden_layers +
            together * config_.hidden_size * config_.num_hidden_layers * 4;
    flop += tokens * (2 * weights + 4 * s * h * layers);
  }
  double memory = static_cast<double>(sizes_.packed_bytes + 16 * NumScales() + graph) +
                  16.0 * kHeadSliceTokens * config_.vocab_size + OuterBytes() +
                  12.0 * static_cast<double>(sizes_.block_weights);
  double disk = static_cast<double>(sizes_.packed_bytes);
  // Heads in the products' type.
  if (dtype() == ComputeDtype::kBfloat16) memory += 4.0 * static_cast<double>(sizes_.head_weights);
  // The source's stream, of a model that is not packed yet.
  if (task_.block_ap.sample_count.has_value()) {
    const CalibrationShape shape = CalibrationShapeOf(task_);
    const Streams streams =
        PlaceStreams({static_cast<double>(shape.num_sequences) * shape.length_tokens * h});
    memory += streams.memory_bytes;
    disk += streams.disk_bytes;
  }
  if (e2e.trainable == E2eTrainable::kAll) {
    flop += Steps(e2e.sample_count, e2e.epoch_count, e2e.batch_size) * kWeightStepFlop * weights;
    memory += 20 * weights;
    disk += 2 * 12 * weights;  // two generations of value and moments
  }
  return TrainingStage(Stage::kE2eQp, TrainingTime(flop) + kStepTime * layers * (tokens / together),
                       memory, disk);
}

StageCost CostModel::Packing() const {
  return {.stage = Stage::kPacking,
          .duration = absl::Seconds(static_cast<double>(sizes_.total_weights) / 300e6),
          .host_memory_bytes = kProgramBytes + source_bytes() + 2 * sizes_.packed_bytes,
          .disk_bytes = artifact_bytes()};
}

StageCost CostModel::Evaluating() const {
  const int64_t length = std::min<int64_t>(kEvaluationTokens, config_.max_position_embeddings);
  const int64_t sampled = kEvaluationSequences * length;
  const int64_t text = task_.evaluation.path.empty() ? 0
                                                     : int64_t{task_.evaluation.chunk_tokens} *
                                                           task_.evaluation.max_chunk_count;
  // Sampled once, then scored by the source, round-to-nearest and the result.
  const double tokens = static_cast<double>(sampled + 3 * (sampled + text));
  return {.stage = Stage::kEvaluating,
          .duration = InferenceTime(tokens),
          .host_memory_bytes =
              kProgramBytes + 2 * source_bytes() + 4 * sizes_.packed_bytes + 3 * KvBytes(sampled)};
}

}  // namespace quern
