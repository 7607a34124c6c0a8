#include "core/quant/block_ap.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/artifact/pack.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/model/tensor_names.h"
#include "core/quant/adam.h"
#include "core/quant/elementwise.h"
#include "core/quant/gptq.h"

namespace quern {
namespace {

// A token whose error is ten times its target's size has a loss of 100: no start is that bad.
constexpr double kDivergedLoss = 100;

at::Tensor CompareStates(BlockLoss loss, const at::Tensor& output, const at::Tensor& target) {
  return loss == BlockLoss::kMeanSquares ? MeanSquareError(output, target)
                                         : MeanRelativeError(output, target);
}

// The norm weights of a block that exist.
std::vector<at::Tensor*> Norms(TorchBlock& block) {
  std::vector<at::Tensor*> norms;
  for (const auto& [suffix, norm] : kBlockNorms) {
    if ((block.*norm).defined()) norms.push_back(&(block.*norm));
  }
  return norms;
}

// The grid that training of a matrix starts from, and its weights there.
absl::StatusOr<QuantParameters> StartMatrix(QuantStart start, int layer, BlockMatrix matrix,
                                            const InputMoments& moments, const QuantFormat& format,
                                            at::Tensor& weight) {
  const QuantFormat own = format.For(MatrixTensorName(layer, matrix));
  switch (start) {
    case QuantStart::kMinMax:
      return MinMaxQuantParameters(weight, own);
    case QuantStart::kSearch:
      return SearchQuantParameters(weight, moments.of(matrix), own);
    case QuantStart::kGptq:
      break;
  }
  absl::StatusOr<QuantParameters> quant = GptqQuantParameters(weight, moments.of(matrix), own);
  if (!quant.ok()) {
    return absl::AbortedError(absl::StrCat("DIVERGED: block ", layer, ", ", BlockMatrixName(matrix),
                                           ": ", quant.status().message()));
  }
  return quant;
}

// What a step of training needs, and nothing else of the run.
class BlockTrainer {
 public:
  BlockTrainer(const BlockApContext& context, int layer, const TorchBlock& source,
               const ActivationStore& inputs, const std::vector<const ActivationStore*>& targets)
      : context_(context), layer_(layer), block_(source), inputs_(inputs), targets_(targets) {
    num_validation_ = *context.settings.validation_sample_count;
    num_train_ = *context.settings.sample_count;
    batch_size_ = *context.settings.batch_size;
    steps_per_epoch_ = (num_train_ + batch_size_ - 1) / batch_size_;
  }

  absl::StatusOr<TrainedBlock> Train(const InputMoments& moments);

 private:
  absl::Status Start(const InputMoments& moments);
  // The block with its weights fake-quantized as they are now.
  TorchBlock Student() const;
  at::Tensor Loss(const TorchBlock& student, int64_t begin, int64_t count) const;
  double ValidationLoss() const;
  // ABORTED when it diverges.
  absl::Status RunEpoch(int epoch, double rate_factor);

  std::vector<AdamGroup::Snapshot> Save() const {
    std::vector<AdamGroup::Snapshot> snapshots;
    for (const AdamGroup& group : groups_) snapshots.push_back(group.Save());
    return snapshots;
  }
  void Restore(const std::vector<AdamGroup::Snapshot>& snapshots) {
    for (size_t i = 0; i < groups_.size(); ++i) groups_[i].Restore(snapshots[i]);
  }

  const BlockApContext& context_;
  const int layer_;
  TorchBlock block_;  // weights and norms are leaves once training has started
  const ActivationStore& inputs_;
  const std::vector<const ActivationStore*>& targets_;
  int64_t num_train_ = 0;
  int64_t num_validation_ = 0;
  int64_t batch_size_ = 0;
  int64_t steps_per_epoch_ = 0;
  std::array<QuantParameters, kNumBlockMatrices> quant_;
  std::vector<AdamGroup> groups_;
  double last_loss_ = 0;
};

absl::Status BlockTrainer::Start(const InputMoments& moments) {
  std::vector<at::Tensor> weights;
  std::vector<at::Tensor> scales;
  std::vector<at::Tensor> zero_points;
  for (int i = 0; i < kNumBlockMatrices; ++i) {
    const auto matrix = static_cast<BlockMatrix>(i);
    at::Tensor& weight = block_.linears[i].weight;
    weight = weight.clone();
    ASSIGN_OR_RETURN(quant_[i], StartMatrix(*context_.settings.start, layer_, matrix, moments,
                                            context_.format, weight));
    quant_[i].round_scale = *context_.settings.round_scales;
    weights.push_back(weight);
    scales.push_back(quant_[i].scale);
    if (!quant_[i].symmetric) zero_points.push_back(quant_[i].zero_point);
  }
  for (at::Tensor* norm : Norms(block_)) {
    *norm = norm->clone();
    weights.push_back(*norm);
  }
  const BlockApSettings& settings = context_.settings;
  const auto add = [&](std::vector<at::Tensor> parameters, double rate) {
    if (rate > 0) groups_.emplace_back(std::move(parameters), rate);
  };
  add(std::move(weights), *settings.weight_learning_rate);
  add(std::move(scales), *settings.quant_learning_rate);
  add(std::move(zero_points), *settings.zero_point_learning_rate);
  return absl::OkStatus();
}

TorchBlock BlockTrainer::Student() const {
  TorchBlock student = block_;
  for (int i = 0; i < kNumBlockMatrices; ++i) {
    student.linears[i].weight =
        FakeQuantize(block_.linears[i].weight, quant_[i]).to(context_.compute_dtype);
  }
  return student;
}

at::Tensor BlockTrainer::Loss(const TorchBlock& student, int64_t begin, int64_t count) const {
  TorchOps ops(context_.config, context_.rotary);
  const at::Tensor output = RunBlock(ops, layer_, student, inputs_.Rows(begin, count));
  at::Tensor loss;
  for (const ActivationStore* target : targets_) {
    const at::Tensor one =
        CompareStates(*context_.settings.loss, output, target->Rows(begin, count));
    loss = loss.defined() ? loss + one : one;
  }
  return targets_.size() > 1 ? loss / static_cast<double>(targets_.size()) : loss;
}

double BlockTrainer::ValidationLoss() const {
  const at::NoGradGuard no_grad;
  const TorchBlock student = Student();
  double sum = 0;
  for (int64_t i = 0; i < num_validation_; ++i) {
    sum += Loss(student, num_train_ + i, 1).item<double>();
  }
  return sum / static_cast<double>(num_validation_);
}

absl::Status BlockTrainer::RunEpoch(int epoch, double rate_factor) {
  const int64_t num_steps = steps_per_epoch_ * *context_.settings.epoch_count;
  double sum = 0;
  for (int64_t i = 0; i < steps_per_epoch_; ++i) {
    if (context_.cancelled && context_.cancelled()) {
      return absl::CancelledError(absl::StrCat("stopped in block ", layer_));
    }
    const int64_t step = epoch * steps_per_epoch_ + i;
    const int64_t begin = i * batch_size_;
    const at::Tensor loss = Loss(Student(), begin, std::min(batch_size_, num_train_ - begin));
    const double value = loss.item<double>();
    if (!(value < kDivergedLoss)) {
      return absl::AbortedError(absl::StrCat("DIVERGED: block ", layer_, ", step ", step, " of ",
                                             num_steps, ": loss is ", value));
    }
    sum += value;
    if (context_.on_step) context_.on_step(step, value);
    loss.backward();
    for (AdamGroup& group : groups_) {
      group.Step(rate_factor * CosineRate(group.rate(), step, num_steps));
    }
  }
  last_loss_ = sum / static_cast<double>(steps_per_epoch_);
  return absl::OkStatus();
}

absl::StatusOr<TrainedBlock> BlockTrainer::Train(const InputMoments& moments) {
  RETURN_IF_ERROR(Start(moments));
  const bool validates = num_validation_ > 0;
  double best_loss = validates ? ValidationLoss() : 0;
  std::vector<AdamGroup::Snapshot> good = Save();
  std::vector<AdamGroup::Snapshot> best;
  if (validates) best = good;
  double rate_factor = 1;
  for (int epoch = 0; epoch < *context_.settings.epoch_count && !groups_.empty(); ++epoch) {
    absl::Status status = RunEpoch(epoch, rate_factor);
    if (absl::IsAborted(status) && rate_factor == 1) {
      LOG(WARNING) << "training rewound block=" << layer_ << " epoch=" << epoch << " reason=\""
                   << status.message() << "\"";
      Restore(good);
      rate_factor = kRewindRateFactor;
      status = RunEpoch(epoch, rate_factor);
    }
    RETURN_IF_ERROR(status);
    if (validates) {
      const double loss = ValidationLoss();
      if (loss < best_loss) {
        best_loss = loss;
        best = Save();
      }
    }
    if (epoch + 1 < *context_.settings.epoch_count) good = Save();
  }
  if (validates) {
    Restore(best);
    last_loss_ = best_loss;
  }
  return PackBlock(layer_, block_, quant_, last_loss_);
}

}  // namespace

absl::StatusOr<TrainedBlock> PackBlock(int layer, const TorchBlock& block,
                                       const std::array<QuantParameters, kNumBlockMatrices>& quant,
                                       double loss) {
  TrainedBlock trained{.loss = loss};
  for (int i = 0; i < kNumBlockMatrices; ++i) {
    const std::string name = MatrixTensorName(layer, BlockMatrix(i));
    absl::StatusOr<PackedTensor> packed = PackTrained(block.linears[i].weight, quant[i]);
    if (!packed.ok()) {
      return absl::AbortedError(
          absl::StrCat("DIVERGED: block ", layer, ", ", name, ": ", packed.status().message()));
    }
    trained.matrices[name] = *std::move(packed);
  }
  const auto add = [&](const std::string& suffix, const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    const at::Tensor values = tensor.detach().cpu().contiguous();
    const float* data = values.const_data_ptr<float>();
    trained.vectors[BlockTensorName(layer, suffix)] = {data, data + values.numel()};
  };
  for (const auto& [suffix, norm] : kBlockNorms) add(suffix, block.*norm);
  for (int i = 0; i < kNumBlockMatrices; ++i) {
    add(absl::StrCat(BlockMatrixName(BlockMatrix(i)), ".bias"), block.linears[i].bias);
  }
  for (const auto& [name, values] : trained.vectors) {
    if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
      return absl::AbortedError(absl::StrCat("DIVERGED: block ", layer, ", ", name,
                                             ": training left values that are not finite"));
    }
  }
  return trained;
}

absl::StatusOr<TrainedBlock> TrainBlock(const BlockApContext& context, int layer,
                                        const TorchBlock& source, const ActivationStore& inputs,
                                        const std::vector<const ActivationStore*>& targets,
                                        const InputMoments& moments) {
  return BlockTrainer(context, layer, source, inputs, targets).Train(moments);
}

absl::StatusOr<TrainedBlock> StartBlock(QuantStart start, const QuantFormat& format, int layer,
                                        const TorchBlock& source, const InputMoments& moments) {
  TorchBlock block = source;
  std::array<QuantParameters, kNumBlockMatrices> quant;
  for (int i = 0; i < kNumBlockMatrices; ++i) {
    ASSIGN_OR_RETURN(quant[i], StartMatrix(start, layer, static_cast<BlockMatrix>(i), moments,
                                           format, block.linears[i].weight));
  }
  return PackBlock(layer, block, quant, /*loss=*/0);
}

double MeasureBlock(const ModelConfig& config, const RotaryTables& rotary, int layer,
                    const TorchBlock& block, const at::Tensor& inputs, const at::Tensor& targets) {
  const at::NoGradGuard no_grad;
  TorchOps ops(config, rotary);
  return MeanRelativeError(RunBlock(ops, layer, block, inputs), targets).item<double>();
}

TorchBlock ToTorchBlock(int layer, const TrainedBlock& trained, WeightForm form,
                        at::ScalarType type, at::Device device) {
  TorchBlock block;
  const auto vector = [&](absl::string_view suffix) {
    const auto found = trained.vectors.find(BlockTensorName(layer, suffix));
    if (found == trained.vectors.end()) return at::Tensor();
    return at::tensor(found->second).to(device);
  };
  for (const auto& [suffix, norm] : kBlockNorms) block.*norm = vector(suffix);
  for (int i = 0; i < kNumBlockMatrices; ++i) {
    const std::string name = BlockMatrixName(BlockMatrix(i));
    const PackedTensor& packed = trained.matrices.at(BlockTensorName(layer, name + ".weight"));
    TorchLinear& linear = block.linears[i];
    linear.bias = vector(name + ".bias");
    if (form == WeightForm::kDense) {
      linear.weight = ToDense(packed, device).to(type);
    } else {
      linear.coded = ToCodedMatrix(packed, type, device);
      linear.scale =
          at::tensor(UnpackScales(packed)).view({packed.rows, packed.num_groups()}).to(device);
    }
  }
  return block;
}

}  // namespace quern
