#include "core/quant/e2e_qp.h"

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/artifact/pack.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/model/tensor_names.h"
#include "core/quant/adam.h"
#include "core/quant/block_ap.h"

namespace quern {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr double kMaxGradNorm = 0.3;
constexpr double kWarmUpShare = 0.03;

// The gradient of a mean loss over rows is known as soon as the loss is, so forward computes both
// and backward only scales.
class HeadLoss : public Function<HeadLoss> {
 public:
  // What is compared with: a teacher, where it is defined, and the text.
  struct Reference {
    at::Tensor teacher_hidden;
    at::Tensor teacher_head;
    HardTargets targets;
  };

  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden,
                            const at::Tensor& head, const Reference& reference) {
    RECORD_USER_SCOPE("quern::head_loss");
    constexpr int64_t kSliceRows = 128;
    const int64_t num_rows = hidden.size(0);
    at::Tensor grad = at::empty_like(hidden);
    double sum = 0;
    for (int64_t begin = 0; begin < num_rows; begin += kSliceRows) {
      const int64_t count = std::min(kSliceRows, num_rows - begin);
      at::Tensor logits = Logits(hidden.narrow(0, begin, count), head);
      HardTargets targets = {.share = reference.targets.share};
      if (targets.share > 0) targets.tokens = reference.targets.tokens.narrow(0, begin, count);
      if (!reference.teacher_hidden.defined()) {
        sum += CrossEntropyToGradients(logits, targets.tokens);
      } else {
        sum += DivergenceToGradients(
            logits,
            Logits(reference.teacher_hidden.narrow(0, begin, count), reference.teacher_head),
            targets);
      }
      grad.narrow(0, begin, count).copy_(at::mm(logits, head));
    }
    context->save_for_backward({grad.mul_(1.0 / static_cast<double>(num_rows))});
    return at::full({}, sum / static_cast<double>(num_rows), hidden.options());
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    return {context->get_saved_variables()[0] * grad_outputs[0], at::Tensor(), at::Tensor()};
  }

 private:
  static at::Tensor Logits(const at::Tensor& hidden, const at::Tensor& head) {
    return at::linear(hidden.to(head.scalar_type()), head);
  }
};

// A matrix in steps of its scales: whole numbers, since it was packed under them.
at::Tensor ToLevels(const at::Tensor& weight, const QuantParameters& quant) {
  const at::Tensor scale = quant.scale.repeat_interleave(quant.shape.group_size, 1);
  return (weight / scale.narrow(1, 0, quant.shape.cols)).round();
}

std::vector<float> ToFloats(const at::Tensor& tensor) {
  const at::Tensor host = tensor.detach().cpu().contiguous();
  const float* data = host.const_data_ptr<float>();
  return {data, data + host.numel()};
}

bool FromFloats(const std::vector<float>& values, at::Tensor& tensor) {
  if (static_cast<int64_t>(values.size()) != tensor.numel()) return false;
  const at::NoGradGuard no_grad;
  tensor.copy_(at::tensor(values).view(tensor.sizes()));
  return true;
}

class ScaleTrainer {
 public:
  ScaleTrainer(const E2eQpContext& context, const E2eData& data, const OuterTensors& student,
               std::vector<TrainedBlock>& blocks)
      : context_(context), data_(data), trained_(blocks) {
    model_.embedding = student.embedding;
    model_.final_norm = student.final_norm;
    model_.head = student.head;
    trainable_ = *context.settings.trainable;
    num_sequences_ = data.num_sequences();
    batch_size_ = *context.settings.batch_size;
    steps_per_epoch_ = (num_sequences_ + batch_size_ - 1) / batch_size_;
    num_steps_ = steps_per_epoch_ * *context.settings.epoch_count;
  }

  absl::Status Train();

 private:
  // The blocks as they came, and fresh moments.
  void Start();
  // With the settings' rate, relative to the parameter's mean magnitude unless it is absolute.
  void AddGroup(at::Tensor parameter);
  // A block as it would be served, differentiable in what is trained.
  TorchBlock ServedBlock(size_t layer) const;
  bool GoOn(E2eState& state);
  absl::Status Save();
  // Steps from num_steps_done_ on. ABORTED when it diverges.
  absl::Status RunSteps();
  // How many sequences of `end - begin` are taken at once, from `begin` on.
  int64_t NumTogether(int64_t begin, int64_t end) const;
  // Adds the gradients of the loss of `count` sequences from `begin` over `share`; returns that
  // loss. Adds none where it is not finite.
  double AddGradients(int64_t begin, int64_t count, double share);
  double StepGradients(int64_t step);
  void ClipGradients();
  absl::Status StoreResult();

  const E2eQpContext& context_;
  const E2eData& data_;
  std::vector<TrainedBlock>& trained_;
  E2eTrainable trainable_;
  TorchModel model_;
  // Of the matrices in the order of blocks, when weights are trained; the blocks' weights are then
  // in steps of their scales.
  std::vector<QuantParameters> quant_;
  std::vector<AdamGroup> groups_;  // one for each tensor, in the order in which Start meets it
  int64_t num_sequences_ = 0;
  int64_t batch_size_ = 0;
  int64_t steps_per_epoch_ = 0;
  int64_t num_steps_ = 0;
  int64_t num_steps_done_ = 0;
  double rate_factor_ = 1;
  double first_loss_ = 0;
};

void ScaleTrainer::AddGroup(at::Tensor parameter) {
  double rate = *context_.settings.learning_rate;
  if (!*context_.settings.absolute_rate) rate *= parameter.abs().mean().item<double>();
  groups_.emplace_back(std::vector<at::Tensor>{std::move(parameter)}, rate);
}

void ScaleTrainer::Start() {
  model_.blocks.clear();
  quant_.clear();
  groups_.clear();
  num_steps_done_ = 0;
  const bool all = trainable_ == E2eTrainable::kAll;
  const double weight_rate = *context_.settings.weight_learning_rate;
  for (size_t layer = 0; layer < trained_.size(); ++layer) {
    // Weights in training are held in float, and rounded for each step.
    model_.blocks.push_back(ToTorchBlock(
        static_cast<int>(layer), trained_[layer], all ? WeightForm::kDense : WeightForm::kCoded,
        all ? at::kFloat : context_.compute_dtype, model_.embedding.device()));
    TorchBlock& block = model_.blocks.back();
    for (int matrix = 0; matrix < kNumBlockMatrices; ++matrix) {
      TorchLinear& linear = block.linears[matrix];
      if (all) {
        quant_.push_back(ToQuantParameters(trained_[layer].matrices.at(MatrixTensorName(
                                               static_cast<int>(layer), BlockMatrix(matrix))),
                                           model_.embedding.device()));
        const at::Tensor scale = quant_.back().scale;
        linear.weight = ToLevels(linear.weight, quant_.back());
        if (weight_rate > 0) {
          groups_.emplace_back(std::vector<at::Tensor>{linear.weight}, weight_rate);
        }
        AddGroup(scale);
      } else {
        AddGroup(linear.scale);
      }
    }
    if (trainable_ == E2eTrainable::kScales) continue;
    for (const auto& [name, norm] : kBlockNorms) {
      if ((block.*norm).defined()) AddGroup(block.*norm);
    }
  }
}

bool ScaleTrainer::GoOn(E2eState& state) {
  if (state.tensors.size() != 3 * groups_.size()) return false;
  for (size_t i = 0; i < groups_.size(); ++i) {
    at::Tensor scale = groups_[i].parameters()[0];
    if (!FromFloats(state.tensors[3 * i], scale) ||
        !FromFloats(state.tensors[3 * i + 1], groups_[i].first_moments()[0]) ||
        !FromFloats(state.tensors[3 * i + 2], groups_[i].second_moments()[0])) {
      return false;
    }
    groups_[i].set_num_steps(state.num_steps_done);
  }
  num_steps_done_ = state.num_steps_done;
  rate_factor_ = state.rate_factor;
  first_loss_ = state.first_loss;
  return true;
}

absl::Status ScaleTrainer::Save() {
  RECORD_USER_SCOPE("quern::save");
  E2eState state{
      .num_steps_done = num_steps_done_, .rate_factor = rate_factor_, .first_loss = first_loss_};
  for (AdamGroup& group : groups_) {
    state.tensors.push_back(ToFloats(group.parameters()[0]));
    state.tensors.push_back(ToFloats(group.first_moments()[0]));
    state.tensors.push_back(ToFloats(group.second_moments()[0]));
  }
  return context_.directory.SaveE2e(state);
}

TorchBlock ScaleTrainer::ServedBlock(size_t layer) const {
  TorchBlock block = model_.blocks[layer];
  for (size_t matrix = 0; matrix < kNumBlockMatrices; ++matrix) {
    TorchLinear& linear = block.linears[matrix];
    if (quant_.empty()) {
      linear.scale = RoundScale(linear.scale);
    } else {
      const QuantParameters& quant = quant_[layer * kNumBlockMatrices + matrix];
      linear.weight = FakeQuantizeLevels(linear.weight, quant).to(context_.compute_dtype);
    }
  }
  return block;
}

int64_t ScaleTrainer::NumTogether(int64_t begin, int64_t end) const {
  int64_t longest = 0;
  for (int64_t i = begin; i < end; ++i) {
    longest = std::max(longest, data_.Length(i));
    if (i > begin && (i + 1 - begin) * longest > kE2eTokensTogether) return i - begin;
  }
  return end - begin;
}

double ScaleTrainer::AddGradients(int64_t begin, int64_t count, double share) {
  const at::Tensor ids = data_.TokenIds(begin, count);
  const RotaryTables rotary = {context_.rotary.cosines.narrow(0, 0, ids.size(1)),
                               context_.rotary.sines.narrow(0, 0, ids.size(1))};
  TorchOps ops(context_.config, rotary, ids);
  const auto loss_of = [&](const at::Tensor& x) {
    return data_.Loss(begin, count, ops.Norm(x, model_.final_norm), model_.head) / share;
  };
  const auto run = [&](size_t layer, at::Tensor x) {
    return RunBlock(ops, static_cast<int>(layer), ServedBlock(layer), std::move(x));
  };
  at::Tensor x = ops.Embed(model_);
  const ComputeDtype compute_dtype =
      context_.compute_dtype == at::kBFloat16 ? ComputeDtype::kBfloat16 : ComputeDtype::kFloat32;
  if (E2eGraphBytes(context_.config, ids.numel(), compute_dtype) <= context_.max_graph_bytes) {
    for (size_t layer = 0; layer < model_.blocks.size(); ++layer) x = run(layer, std::move(x));
    const at::Tensor loss = loss_of(x);
    const double value = loss.item<double>();
    if (std::isfinite(value)) loss.backward();
    return value;
  }
  std::vector<at::Tensor> inputs;
  {
    const at::NoGradGuard no_grad;
    for (size_t layer = 0; layer < model_.blocks.size(); ++layer) {
      inputs.push_back(x);
      x = run(layer, std::move(x));
    }
  }
  x.requires_grad_();
  const at::Tensor loss = loss_of(x);
  const double value = loss.item<double>();
  if (!std::isfinite(value)) return value;
  loss.backward();
  at::Tensor grad = x.grad();
  for (size_t layer = model_.blocks.size(); layer-- > 0;) {
    at::Tensor input = std::move(inputs[layer]);
    inputs.pop_back();
    input.requires_grad_();
    run(layer, input).backward(grad);
    grad = input.grad();
  }
  return value;
}

double ScaleTrainer::StepGradients(int64_t step) {
  const int64_t begin = step % steps_per_epoch_ * batch_size_;
  const int64_t end = std::min(begin + batch_size_, num_sequences_);
  const double weight = data_.Weight(begin, end - begin);
  double sum = 0;
  for (int64_t i = begin; i < end;) {
    const int64_t count = NumTogether(i, end);
    sum += AddGradients(i, count, weight / data_.Weight(i, count));
    if (!std::isfinite(sum)) return sum;
    i += count;
  }
  return sum;
}

void ScaleTrainer::ClipGradients() {
  double squares = 0;
  for (const AdamGroup& group : groups_) {
    squares += group.parameters()[0].grad().square().sum().item<double>();
  }
  const double norm = std::sqrt(squares);
  if (norm <= kMaxGradNorm) return;
  for (AdamGroup& group : groups_) {
    group.parameters()[0].mutable_grad().mul_(kMaxGradNorm / norm);
  }
}

absl::Status ScaleTrainer::RunSteps() {
  const auto num_warm_up = static_cast<int64_t>(std::ceil(kWarmUpShare * num_steps_));
  const double final_share = *context_.settings.absolute_rate ? 0 : kFinalRateShare;
  // Saving takes a twentieth of the time at most.
  absl::Time next_save = absl::Now() + context_.save_interval;
  if (context_.on_step) context_.on_step(num_steps_done_, num_steps_, std::nullopt);
  while (num_steps_done_ < num_steps_) {
    if (context_.cancelled && context_.cancelled()) {
      return absl::CancelledError(absl::StrCat("stopped in step ", num_steps_done_, " of E2E-QP"));
    }
    const int64_t step = num_steps_done_;
    const double loss = StepGradients(step);
    if (step == 0) first_loss_ = loss;
    if (!(loss <= 4 + 4 * first_loss_)) {
      return absl::AbortedError(absl::StrCat("DIVERGED: E2E-QP, step ", step, " of ", num_steps_,
                                             ": loss is ", loss, ", began at ", first_loss_));
    }
    ClipGradients();
    for (AdamGroup& group : groups_) {
      group.Step(rate_factor_ *
                 CosineRate(group.rate(), step, num_steps_, num_warm_up, final_share));
    }
    ++num_steps_done_;
    const absl::Time now = absl::Now();
    if (num_steps_done_ == num_steps_ || now >= next_save) {
      RETURN_IF_ERROR(Save());
      next_save = absl::Now() + std::max(context_.save_interval, 20 * (absl::Now() - now));
    }
    if (context_.on_step) context_.on_step(num_steps_done_, num_steps_, loss);
  }
  return absl::OkStatus();
}

absl::Status ScaleTrainer::StoreResult() {
  size_t i = 0;
  for (size_t layer = 0; layer < trained_.size(); ++layer) {
    const TorchBlock& block = model_.blocks[layer];
    for (int matrix = 0; matrix < kNumBlockMatrices; ++matrix, ++i) {
      PackedTensor& packed = trained_[layer].matrices.at(
          MatrixTensorName(static_cast<int>(layer), BlockMatrix(matrix)));
      const TorchLinear& linear = block.linears[matrix];
      if (trainable_ == E2eTrainable::kAll) {
        ASSIGN_OR_RETURN(
            packed, PackTrained(FakeQuantizeLevels(linear.weight, quant_[i]).detach(), quant_[i]));
      } else {
        ASSIGN_OR_RETURN(packed, WithScales(packed, ToFloats(RoundScale(linear.scale.detach()))));
      }
    }
    if (trainable_ == E2eTrainable::kScales) continue;
    for (const auto& [suffix, norm] : kBlockNorms) {
      if (!(block.*norm).defined()) continue;
      const std::string name = BlockTensorName(static_cast<int>(layer), suffix);
      trained_[layer].vectors[name] = ToFloats(block.*norm);
      if (!at::isfinite(block.*norm).all().item<bool>()) {
        return absl::AbortedError(
            absl::StrCat("DIVERGED: E2E-QP, ", name, ": training left values that are not finite"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ScaleTrainer::Train() {
  Start();
  std::optional<E2eState> state = context_.directory.LoadE2e();
  if (state.has_value() && !GoOn(*state)) {
    LOG(WARNING) << "saved state of E2E-QP not used reason=\"its shapes are not the model's\"";
    Start();
  }
  absl::Status status = RunSteps();
  if (absl::IsAborted(status) && rate_factor_ == 1) {
    LOG(WARNING) << "training rewound stage=E2E_QP reason=\"" << status.message() << "\"";
    rate_factor_ = kRewindRateFactor;
    Start();
    status = RunSteps();
  }
  RETURN_IF_ERROR(status);
  return StoreResult();
}

}  // namespace

at::Tensor DistillationLoss(const at::Tensor& hidden, const at::Tensor& head,
                            const at::Tensor& teacher_hidden, const at::Tensor& teacher_head,
                            const HardTargets& targets) {
  return HeadLoss::apply(hidden, head, HeadLoss::Reference{teacher_hidden, teacher_head, targets});
}

at::Tensor CrossEntropyLoss(const at::Tensor& hidden, const at::Tensor& head,
                            const at::Tensor& targets) {
  return HeadLoss::apply(hidden, head,
                         HeadLoss::Reference{.targets = {.tokens = targets, .share = 1}});
}

absl::Status TrainScales(const E2eQpContext& context, const E2eData& data,
                         const OuterTensors& student, std::vector<TrainedBlock>& blocks) {
  return ScaleTrainer(context, data, student, blocks).Train();
}

}  // namespace quern
