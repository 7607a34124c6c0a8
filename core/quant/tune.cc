#include "core/quant/tune.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <string>
#include <utility>

#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/model/tensor_names.h"
#include "core/quant/checkpointing.h"
#include "core/quant/device.h"
#include "core/quant/e2e_qp.h"
#include "core/quant/exceptions.h"
#include "core/quant/fake_quantizer.h"

namespace quern {
namespace {

class ExampleData final : public E2eData {
 public:
  ExampleData(const std::vector<TuningExample>& examples, at::Device device)
      : examples_(examples), device_(device) {}

  int64_t num_sequences() const override { return static_cast<int64_t>(examples_.size()); }

  int64_t Length(int64_t sequence) const override {
    return static_cast<int64_t>(Example(sequence).ids.size());
  }

  at::Tensor TokenIds(int64_t begin, int64_t count) const override {
    int64_t longest = 0;
    for (int64_t i = begin; i < begin + count; ++i) longest = std::max(longest, Length(i));
    at::Tensor tensor = at::zeros({count, longest}, at::kLong);
    int64_t* row = tensor.data_ptr<int64_t>();
    for (int64_t i = begin; i < begin + count; ++i, row += longest) {
      std::copy(Example(i).ids.begin(), Example(i).ids.end(), row);
    }
    return tensor.to(device_);
  }

  double Weight(int64_t begin, int64_t count) const override {
    int64_t num_targets = 0;
    for (int64_t i = begin; i < begin + count; ++i) {
      num_targets += Length(i) - Example(i).num_context_tokens;
    }
    return static_cast<double>(num_targets);
  }

  at::Tensor Loss(int64_t begin, int64_t count, const at::Tensor& hidden,
                  const at::Tensor& head) const override {
    std::vector<int64_t> positions;  // of the rows before each target, in all rows
    std::vector<int64_t> targets;
    for (int64_t i = begin; i < begin + count; ++i) {
      for (int64_t at = Example(i).num_context_tokens; at < Length(i); ++at) {
        positions.push_back((i - begin) * hidden.size(1) + at - 1);
        targets.push_back(Example(i).ids[static_cast<size_t>(at)]);
      }
    }
    return CrossEntropyLoss(
        hidden.flatten(0, 1).index_select(0, at::tensor(positions, at::kLong).to(device_)), head,
        at::tensor(targets, at::kLong).to(device_));
  }

 private:
  const TuningExample& Example(int64_t sequence) const {
    return examples_[static_cast<size_t>(sequence)];
  }

  const std::vector<TuningExample>& examples_;
  const at::Device device_;
};

absl::Status CheckExamples(const std::vector<TuningExample>& examples, const ModelConfig& config) {
  if (examples.empty()) return absl::InvalidArgumentError("there is no example to learn from");
  for (size_t i = 0; i < examples.size(); ++i) {
    const std::vector<int32_t>& ids = examples[i].ids;
    const auto wrong = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat("example ", i, " ", what));
    };
    if (static_cast<int>(ids.size()) > config.max_position_embeddings) {
      return wrong(absl::StrCat("has ", ids.size(), " tokens, the model's context is ",
                                config.max_position_embeddings));
    }
    if (examples[i].num_context_tokens < 1 ||
        examples[i].num_context_tokens >= static_cast<int>(ids.size())) {
      return wrong(absl::StrCat("has ", ids.size(), " tokens with a context of ",
                                examples[i].num_context_tokens,
                                ", wanted a context and something to predict"));
    }
    for (const int32_t id : ids) {
      if (id < 0 || id >= config.vocab_size) {
        return wrong(absl::StrCat("has token ", id, ", wanted 0 to ", config.vocab_size - 1));
      }
    }
  }
  return absl::OkStatus();
}

// SHA-256 over all that the bytes of a run depend on.
std::string Fingerprint(absl::string_view base_id, const E2eQpSettings& settings,
                        ComputeDtype compute_dtype, const std::vector<TuningExample>& examples,
                        const QuantizeOptions& options, at::Device device) {
  Task task{.compute_dtype = compute_dtype};
  task.e2e_qp = settings;
  Sha256 sha;
  sha.Update(absl::StrCat("quern tuning state 1\n", QUERN_VERSION, "\n", base_id, "\n",
                          DumpCanonicalJson(TaskToJson(task)), "\n", options.num_threads, "\n",
                          device.str(), "\n", examples.size(), "\n"));
  for (const TuningExample& example : examples) {
    sha.Update(absl::StrCat(example.ids.size(), " ", example.num_context_tokens, "\n"));
    sha.Update(absl::string_view(reinterpret_cast<const char*>(example.ids.data()),
                                 example.ids.size() * sizeof(int32_t)));
  }
  return sha.FinishHex();
}

std::vector<TrainedBlock> BlocksOf(const PackedModel& model) {
  std::vector<TrainedBlock> blocks(static_cast<size_t>(model.config.num_hidden_layers));
  for (int layer = 0; layer < model.config.num_hidden_layers; ++layer) {
    for (const TensorSpec& spec : BlockTensors(model.config, layer)) {
      TrainedBlock& block = blocks[static_cast<size_t>(layer)];
      if (spec.kind == TensorSpec::Kind::kVector) {
        block.vectors[spec.name] = model.vectors.at(spec.name);
      } else {
        block.matrices[spec.name] = model.matrices.at(spec.name);
      }
    }
  }
  return blocks;
}

absl::StatusOr<PackedModel> TuneOrThrow(const PackedModel& base, absl::string_view base_id,
                                        const E2eQpSettings& settings, ComputeDtype compute_dtype,
                                        const std::vector<TuningExample>& examples,
                                        const QuantizeOptions& options) {
  RETURN_IF_ERROR(CheckExamples(examples, base.config));
  ASSIGN_OR_RETURN(const at::Device device, PrepareDevice(options.device, options.num_threads));
  ASSIGN_OR_RETURN(
      TrainingDirectory directory,
      TrainingDirectory::Open(options.work_directory, Fingerprint(base_id, settings, compute_dtype,
                                                                  examples, options, device)));
  OuterTensors outer{.embedding = ServedMatrix(base, std::string(kEmbeddingName), device)};
  const std::vector<float>& norm = base.vectors.at(std::string(kFinalNormName));
  outer.final_norm = at::tensor(norm).to(device);
  outer.head = base.config.tie_word_embeddings ? outer.embedding
                                               : ServedMatrix(base, std::string(kHeadName), device);
  outer.head = outer.head.to(ToScalarType(compute_dtype));
  size_t longest = 0;
  for (const TuningExample& example : examples) longest = std::max(longest, example.ids.size());
  const RotaryTables rotary = MakeRotaryTables(base.config, static_cast<int>(longest), device);
  const E2eQpContext context{
      .config = base.config,
      .rotary = rotary,
      .settings = settings,
      .compute_dtype = ToScalarType(compute_dtype),
      .directory = directory,
      .cancelled = options.cancelled,
      .on_step = [&](int64_t num_done, int64_t num_steps, std::optional<double> loss) {
        if (options.on_progress) options.on_progress({Stage::kE2eQp, num_done, num_steps, loss});
      }};
  std::vector<TrainedBlock> blocks = BlocksOf(base);
  RETURN_IF_ERROR(TrainScales(context, ExampleData(examples, device), outer, blocks));
  PackedModel tuned = base;
  for (TrainedBlock& block : blocks) {
    for (auto& [name, matrix] : block.matrices) tuned.matrices[name] = std::move(matrix);
    for (auto& [name, vector] : block.vectors) tuned.vectors[name] = std::move(vector);
  }
  return tuned;
}

}  // namespace

absl::StatusOr<PackedModel> Tune(const PackedModel& base, absl::string_view base_id,
                                 const E2eQpSettings& settings, ComputeDtype compute_dtype,
                                 const std::vector<TuningExample>& examples,
                                 const QuantizeOptions& options) {
  return WithoutExceptions(
      [&] { return TuneOrThrow(base, base_id, settings, compute_dtype, examples, options); });
}

}  // namespace quern
