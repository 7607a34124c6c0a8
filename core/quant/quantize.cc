#include "core/quant/quantize.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "core/artifact/pack.h"
#include "core/base/large_pages.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/model/tensor_names.h"
#include "core/quant/activation_store.h"
#include "core/quant/awq.h"
#include "core/quant/block_ap.h"
#include "core/quant/calibration_data.h"
#include "core/quant/checkpointing.h"
#include "core/quant/device.h"
#include "core/quant/e2e_qp.h"
#include "core/quant/exceptions.h"
#include "core/quant/mixed_precision.h"
#include "core/quant/torch_ops.h"

namespace quern {
namespace {

absl::Span<const float> Values(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

// Adds matrix `name` of the checkpoint to `model` by round-to-nearest, or as half floats where the
// format says so.
absl::Status AddRounded(const Checkpoint& checkpoint, const TensorSpec& spec, PackedModel& model) {
  const std::string& name = spec.name;
  ASSIGN_OR_RETURN(const at::Tensor matrix, LoadTensor(checkpoint, name, at::kCPU));
  const int rows = static_cast<int>(matrix.size(0));
  const int cols = static_cast<int>(matrix.size(1));
  const std::optional<MatrixFormat> format = FormatOf(model.format, spec);
  if (!format.has_value()) {
    ASSIGN_OR_RETURN(model.half_matrices[name], ToHalfTensor(Values(matrix), rows, cols, name));
    return absl::OkStatus();
  }
  absl::StatusOr<PackedTensor> packed = RoundToNearest(Values(matrix), rows, cols, format->bits,
                                                       format->group_size, format->symmetric);
  if (!packed.ok()) {
    return absl::Status(packed.status().code(),
                        absl::StrCat(name, ": ", packed.status().message()));
  }
  model.matrices[name] = *std::move(packed);
  return absl::OkStatus();
}

absl::Status AddVector(const Checkpoint& checkpoint, const std::string& name, PackedModel& model) {
  ASSIGN_OR_RETURN(const at::Tensor vector, LoadTensor(checkpoint, name, at::kCPU));
  model.vectors[name].assign(Values(vector).begin(), Values(vector).end());
  return absl::OkStatus();
}

// What every method does alike: the model without its blocks.
absl::StatusOr<PackedModel> PackOuter(const Checkpoint& checkpoint, const QuantFormat& format) {
  PackedModel model{.config = checkpoint.config(),
                    .format = format,
                    .tokenizer_json = checkpoint.tokenizer_json(),
                    .chat_template = checkpoint.chat_template()};
  for (const TensorSpec& spec : ModelTensors(model.config)) {
    if (spec.kind == TensorSpec::Kind::kEmbedding || spec.kind == TensorSpec::Kind::kHead) {
      RETURN_IF_ERROR(AddRounded(checkpoint, spec, model));
    }
  }
  RETURN_IF_ERROR(AddVector(checkpoint, std::string(kFinalNormName), model));
  return model;
}

// SHA-256 over all that the bytes of a run depend on.
absl::StatusOr<std::string> Fingerprint(const Checkpoint& checkpoint, const Task& task,
                                        const std::vector<std::vector<int32_t>>& calibration,
                                        const QuantizeOptions& options, at::Device device) {
  ASSIGN_OR_RETURN(const std::string digest, checkpoint.DigestHex());
  Sha256 sha;
  sha.Update(absl::StrCat("quern training state 1\n", QUERN_VERSION, "\n", digest, "\n",
                          DumpCanonicalJson(TaskToJson(task)), "\n", options.num_threads, "\n",
                          device.str(), "\n", calibration.size(), "\n"));
  for (const std::vector<int32_t>& row : calibration) {
    sha.Update(
        absl::string_view(reinterpret_cast<const char*>(row.data()), row.size() * sizeof(int32_t)));
  }
  return sha.FinishHex();
}

// Sequences that a block's error is measured on which was not trained: enough for two digits.
constexpr int64_t kMeasuredSequences = 2;

// A run of Block-AP and, where the task says so, E2E-QP.
class TrainingRun {
 public:
  TrainingRun(const Checkpoint& checkpoint, const Task& task,
              const std::vector<std::vector<int32_t>>& calibration, const QuantizeOptions& options,
              at::Device device)
      : checkpoint_(checkpoint),
        task_(task),
        calibration_(calibration),
        options_(options),
        format_(task.format),
        device_(device),
        compute_dtype_(ToScalarType(*task.compute_dtype)),
        space_(ToScalarType(task.activation_dtype.value_or(ComputeDtype::kFloat32)),
               options.activation_memory_bytes, options.work_directory),
        with_e2e_(task.method == QuantMethod::kBlockApE2eQp) {}

  absl::Status Run(PackedModel& model);

 private:
  // How much of the calibration Block-AP and the source's stream take.
  int num_block_sequences() const {
    return *task_.block_ap.sample_count + task_.block_ap.validation_sample_count.value_or(0);
  }
  // How many there must be for end-to-end training.
  int num_e2e_sequences() const { return *task_.e2e_qp.first_sample + *task_.e2e_qp.sample_count; }
  absl::Status CheckCalibration() const;
  // Bits of single matrices, where the task has a budget for them.
  absl::Status ChooseBits();
  absl::StatusOr<OuterTensors> LoadSourceOuter() const;
  absl::Status Train(TrainingDirectory& directory, const OuterTensors& source,
                     const OuterTensors& served, std::vector<TrainedBlock>& blocks);
  // Block by block, in the quantized stream alone. `blocks` are those that an earlier run finished.
  absl::Status QuantizeBlocksUntrained(TrainingDirectory& directory, const OuterTensors& served,
                                       std::vector<TrainedBlock>& blocks);
  absl::Status TrainBlocks(TrainingDirectory& directory, ActivationStore& source_states,
                           const OuterTensors& served, std::vector<TrainedBlock>& blocks);
  absl::StatusOr<TrainedBlock> TrainNextBlock(const BlockApContext& context, int layer,
                                              const TorchBlock& source,
                                              const ActivationStore& source_states,
                                              const ActivationStore& states,
                                              const InputMoments& moments);
  absl::Status TrainEndToEnd(TrainingDirectory& directory, const ActivationStore& source_states,
                             const OuterTensors& source, const OuterTensors& served,
                             std::vector<TrainedBlock>& blocks);
  // To move states on.
  TorchBlock ServedBlock(int layer, const TrainedBlock& block) const {
    return ToTorchBlock(layer, block, WeightForm::kDense, compute_dtype_, device_);
  }
  void Report(Stage stage, int64_t completed, int64_t total, std::optional<double> loss) const {
    if (options_.on_progress) options_.on_progress({stage, completed, total, loss});
  }

  const Checkpoint& checkpoint_;
  const Task& task_;
  const std::vector<std::vector<int32_t>>& calibration_;
  const QuantizeOptions& options_;
  QuantFormat format_;  // with the bits of each matrix
  const at::Device device_;
  const at::ScalarType compute_dtype_;
  ActivationSpace space_;
  const bool with_e2e_;
};

absl::Status TrainingRun::CheckCalibration() const {
  int num_sequences = num_block_sequences();
  int num_tokens = *task_.block_ap.sequence_length_tokens;
  if (with_e2e_) {
    num_sequences = std::max(num_sequences, num_e2e_sequences());
    num_tokens = std::max(num_tokens, *task_.e2e_qp.sequence_length_tokens);
  }
  if (static_cast<int>(calibration_.size()) < num_sequences) {
    return absl::InvalidArgumentError(absl::StrCat("calibration has ", calibration_.size(),
                                                   " sequences, the task wants ", num_sequences));
  }
  for (size_t i = 0; i < calibration_.size(); ++i) {
    if (calibration_[i].size() != calibration_[0].size() ||
        static_cast<int>(calibration_[i].size()) < num_tokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("calibration sequence ", i, " has ", calibration_[i].size(),
                       " tokens, the task wants ", num_tokens, " and all of equal length"));
    }
    for (int32_t token : calibration_[i]) {
      if (token < 0 || token >= checkpoint_.config().vocab_size) {
        return absl::InvalidArgumentError(absl::StrCat("calibration sequence ", i, " has token ",
                                                       token, ", wanted 0 to ",
                                                       checkpoint_.config().vocab_size - 1));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status TrainingRun::ChooseBits() {
  if (task_.target_bits == 0) return absl::OkStatus();
  std::vector<int> widths;
  for (const int bits : {2, 3, 4, 8}) {
    if (bits >= format_.bits) widths.push_back(bits);
  }
  ASSIGN_OR_RETURN(const std::vector<MatrixSensitivity> sensitivities,
                   MeasureSensitivities(checkpoint_, format_, widths, calibration_, compute_dtype_,
                                        device_, options_.cancelled));
  format_.matrix_bits = ChooseMatrixBits(sensitivities, format_.bits, task_.target_bits);
  return absl::OkStatus();
}

absl::StatusOr<OuterTensors> TrainingRun::LoadSourceOuter() const {
  OuterTensors outer;
  ASSIGN_OR_RETURN(outer.embedding, LoadTensor(checkpoint_, kEmbeddingName, device_));
  ASSIGN_OR_RETURN(outer.final_norm, LoadTensor(checkpoint_, kFinalNormName, device_));
  outer.head = outer.embedding;
  if (!checkpoint_.config().tie_word_embeddings) {
    ASSIGN_OR_RETURN(outer.head, LoadTensor(checkpoint_, kHeadName, device_));
  }
  return outer;
}

absl::StatusOr<TrainedBlock> TrainingRun::TrainNextBlock(const BlockApContext& context, int layer,
                                                         const TorchBlock& source,
                                                         const ActivationStore& source_states,
                                                         const ActivationStore& states,
                                                         const InputMoments& moments) {
  std::vector<const ActivationStore*> targets;
  std::optional<ActivationStore> reached;
  if (*task_.block_ap.target != BlockTarget::kQuantizedStream) targets.push_back(&source_states);
  if (*task_.block_ap.target != BlockTarget::kSourceStream) {
    reached.emplace(states.Copy());
    reached->Advance(context.config, context.rotary, layer, WithProductsIn(compute_dtype_, source));
    targets.push_back(&*reached);
  }
  return TrainBlock(context, layer, source, states, targets, moments);
}

absl::Status TrainingRun::TrainBlocks(TrainingDirectory& directory, ActivationStore& source_states,
                                      const OuterTensors& served,
                                      std::vector<TrainedBlock>& blocks) {
  const ModelConfig& config = checkpoint_.config();
  const int num_tokens = *task_.block_ap.sequence_length_tokens;
  const RotaryTables source_rotary =
      MakeRotaryTables(config, static_cast<int>(source_states.num_tokens()), device_);
  const RotaryTables rotary = MakeRotaryTables(config, num_tokens, device_);
  const BlockApContext context{.config = config,
                               .rotary = rotary,
                               .format = format_,
                               .settings = task_.block_ap,
                               .compute_dtype = compute_dtype_,
                               .cancelled = options_.cancelled};
  const int num_loaded = static_cast<int>(blocks.size());
  // Else the start is all there is, and the quantized stream is not needed.
  const bool trains_blocks =
      *task_.block_ap.epoch_count > 0 || *task_.block_ap.validation_sample_count > 0;
  const int64_t num_measured = std::min(kMeasuredSequences, source_states.num_sequences());
  std::optional<ActivationStore> states;
  if (trains_blocks && num_loaded < config.num_hidden_layers) {
    states.emplace(served.embedding,
                   ToTokenTensor(calibration_, 0, num_block_sequences(), num_tokens, device_),
                   &space_);
  }
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (options_.cancelled && options_.cancelled()) {
      return absl::CancelledError(absl::StrCat("stopped before block ", layer));
    }
    const bool trains = layer >= num_loaded;
    ASSIGN_OR_RETURN(const TorchBlock source, LoadBlock(checkpoint_, layer, device_));
    InputMoments moments{.form = *task_.block_ap.start == QuantStart::kGptq
                                     ? InputMoments::Form::kFull
                                     : InputMoments::Form::kDiagonal};
    const at::Tensor inputs =
        trains && !trains_blocks ? source_states.Rows(0, num_measured).clone() : at::Tensor();
    if (trains || with_e2e_ || num_loaded < config.num_hidden_layers) {
      source_states.Advance(config, source_rotary, layer, WithProductsIn(compute_dtype_, source),
                            trains ? &moments : nullptr, num_block_sequences());
    }
    if (trains) {
      absl::StatusOr<TrainedBlock> trained =
          trains_blocks ? TrainNextBlock(context, layer, source, source_states, *states, moments)
                        : StartBlock(*task_.block_ap.start, format_, layer, source, moments);
      RETURN_IF_ERROR(trained.status());
      if (!trains_blocks) {
        trained->loss = MeasureBlock(config, source_rotary, layer, ServedBlock(layer, *trained),
                                     inputs, source_states.Rows(0, num_measured));
      }
      RETURN_IF_ERROR(directory.SaveBlock(layer, *trained));
      blocks.push_back(*std::move(trained));
      // The next block begins with tensors of other sizes than this one ended with.
      GiveBackFreedMemory();
    }
    if (states.has_value() && layer + 1 < config.num_hidden_layers) {
      states->Advance(config, rotary, layer, ServedBlock(layer, blocks[layer]));
    }
    Report(Stage::kBlockAp, layer + 1, config.num_hidden_layers, blocks[layer].loss);
  }
  return absl::OkStatus();
}

absl::Status TrainingRun::QuantizeBlocksUntrained(TrainingDirectory& directory,
                                                  const OuterTensors& served,
                                                  std::vector<TrainedBlock>& blocks) {
  const ModelConfig& config = checkpoint_.config();
  const int num_tokens = *task_.block_ap.sequence_length_tokens;
  const RotaryTables rotary = MakeRotaryTables(config, num_tokens, device_);
  ActivationStore states(served.embedding,
                         ToTokenTensor(calibration_, 0, num_block_sequences(), num_tokens, device_),
                         &space_);
  const int num_loaded = static_cast<int>(blocks.size());
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (options_.cancelled && options_.cancelled()) {
      return absl::CancelledError(absl::StrCat("stopped before block ", layer));
    }
    if (layer >= num_loaded) {
      ASSIGN_OR_RETURN(const TorchBlock source, LoadBlock(checkpoint_, layer, device_));
      const TorchBlock multiplied = WithProductsIn(compute_dtype_, source);
      InputMoments moments{.form = InputMoments::Form::kFull};
      states.Observe(config, rotary, layer, multiplied, moments);
      ASSIGN_OR_RETURN(TrainedBlock block,
                       task_.method == QuantMethod::kAwq
                           ? QuantizeBlockByAwq(format_, layer, source, std::move(moments))
                           : StartBlock(QuantStart::kGptq, format_, layer, source, moments));
      const at::Tensor inputs =
          states.Rows(0, std::min(kMeasuredSequences, states.num_sequences()));
      TorchOps ops(config, rotary);
      block.loss = MeasureBlock(config, rotary, layer, ServedBlock(layer, block), inputs,
                                RunBlock(ops, layer, multiplied, inputs));
      RETURN_IF_ERROR(directory.SaveBlock(layer, block));
      blocks.push_back(std::move(block));
      GiveBackFreedMemory();
    }
    if (layer + 1 < config.num_hidden_layers) {
      states.Advance(config, rotary, layer, ServedBlock(layer, blocks[layer]));
    }
    Report(Stage::kBlockAp, layer + 1, config.num_hidden_layers, blocks[layer].loss);
  }
  return absl::OkStatus();
}

absl::Status TrainingRun::TrainEndToEnd(TrainingDirectory& directory,
                                        const ActivationStore& source_states,
                                        const OuterTensors& source, const OuterTensors& served,
                                        std::vector<TrainedBlock>& blocks) {
  const int num_tokens = *task_.e2e_qp.sequence_length_tokens;
  const RotaryTables rotary = MakeRotaryTables(checkpoint_.config(), num_tokens, device_);
  const E2eQpContext context{
      .config = checkpoint_.config(),
      .rotary = rotary,
      .settings = task_.e2e_qp,
      .compute_dtype = compute_dtype_,
      .directory = directory,
      .cancelled = options_.cancelled,
      .on_step = [this](int64_t num_done, int64_t num_steps, std::optional<double> loss) {
        Report(Stage::kE2eQp, num_done, num_steps, loss);
      }};
  OuterTensors teacher = source;
  teacher.head = teacher.head.to(compute_dtype_);
  OuterTensors student = served;
  student.head = student.head.to(compute_dtype_);
  const CalibrationData data(checkpoint_.config(), task_.e2e_qp,
                             ToTokenTensor(calibration_, *task_.e2e_qp.first_sample,
                                           *task_.e2e_qp.sample_count, num_tokens, device_),
                             source_states, teacher);
  return TrainScales(context, data, student, blocks);
}

absl::Status TrainingRun::Run(PackedModel& model) {
  RETURN_IF_ERROR(CheckCalibration());
  ASSIGN_OR_RETURN(const std::string fingerprint,
                   Fingerprint(checkpoint_, task_, calibration_, options_, device_));
  ASSIGN_OR_RETURN(TrainingDirectory directory,
                   TrainingDirectory::Open(options_.work_directory, fingerprint));
  const int num_layers = checkpoint_.config().num_hidden_layers;
  std::vector<TrainedBlock> blocks = directory.LoadBlocks(num_layers);
  // The stage begins here, not when its first block is done.
  Report(Stage::kBlockAp, static_cast<int64_t>(blocks.size()), num_layers, /*loss=*/std::nullopt);
  ASSIGN_OR_RETURN(const OuterTensors source, LoadSourceOuter());
  OuterTensors served{.embedding = ServedMatrix(model, std::string(kEmbeddingName), device_),
                      .final_norm = source.final_norm};
  served.head = model.config.tie_word_embeddings
                    ? served.embedding
                    : ServedMatrix(model, std::string(kHeadName), device_);
  RETURN_IF_ERROR(ChooseBits());
  model.format = format_;
  if (IsUntrained(task_.method)) {
    RETURN_IF_ERROR(QuantizeBlocksUntrained(directory, served, blocks));
  } else {
    RETURN_IF_ERROR(Train(directory, source, served, blocks));
  }
  for (TrainedBlock& block : blocks) {
    model.matrices.merge(block.matrices);
    model.vectors.merge(block.vectors);
  }
  return absl::OkStatus();
}

absl::Status TrainingRun::Train(TrainingDirectory& directory, const OuterTensors& source,
                                const OuterTensors& served, std::vector<TrainedBlock>& blocks) {
  // Sequences of end-to-end training may be more or longer than Block-AP's; the extra tokens come
  // after, and change no earlier state.
  int num_sequences = num_block_sequences();
  int num_tokens = *task_.block_ap.sequence_length_tokens;
  if (with_e2e_) num_sequences = std::max(num_sequences, num_e2e_sequences());
  if (with_e2e_) num_tokens = std::max(num_tokens, *task_.e2e_qp.sequence_length_tokens);
  ActivationStore source_states(source.embedding,
                                ToTokenTensor(calibration_, 0, num_sequences, num_tokens, device_),
                                &space_);
  RETURN_IF_ERROR(TrainBlocks(directory, source_states, served, blocks));
  if (!with_e2e_) return absl::OkStatus();
  return TrainEndToEnd(directory, source_states, source, served, blocks);
}

absl::StatusOr<PackedModel> RoundAll(const Checkpoint& checkpoint, PackedModel model,
                                     const QuantizeOptions& options) {
  for (int layer = 0; layer < model.config.num_hidden_layers; ++layer) {
    if (options.cancelled && options.cancelled()) {
      return absl::CancelledError(absl::StrCat("stopped before block ", layer));
    }
    for (const TensorSpec& spec : BlockTensors(model.config, layer)) {
      RETURN_IF_ERROR(spec.kind == TensorSpec::Kind::kVector
                          ? AddVector(checkpoint, spec.name, model)
                          : AddRounded(checkpoint, spec, model));
    }
  }
  return model;
}

absl::StatusOr<PackedModel> QuantizeOrThrow(const Checkpoint& checkpoint, const Task& task,
                                            const std::vector<std::vector<int32_t>>& calibration,
                                            const QuantizeOptions& options) {
  RETURN_IF_ERROR(task.format.Validate());
  ASSIGN_OR_RETURN(const at::Device device, PrepareDevice(options.device, options.num_threads));
  ASSIGN_OR_RETURN(PackedModel model, PackOuter(checkpoint, task.format));
  if (task.method == QuantMethod::kRtn) return RoundAll(checkpoint, std::move(model), options);
  RETURN_IF_ERROR(TrainingRun(checkpoint, task, calibration, options, device).Run(model));
  return model;
}

}  // namespace

absl::StatusOr<PackedModel> Quantize(const Checkpoint& checkpoint, const Task& task,
                                     const std::vector<std::vector<int32_t>>& calibration,
                                     const QuantizeOptions& options) {
  return WithoutExceptions([&] { return QuantizeOrThrow(checkpoint, task, calibration, options); });
}

}  // namespace quern
