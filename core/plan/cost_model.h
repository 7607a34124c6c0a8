#ifndef QUERN_CORE_PLAN_COST_MODEL_H_
#define QUERN_CORE_PLAN_COST_MODEL_H_

// The formulas behind plans; for core/plan alone.

#include <absl/time/time.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

#include "core/artifact/packed_model.h"
#include "core/model/model_config.h"
#include "core/plan/plan.h"
#include "core/plan/task.h"

namespace quern {

// Of an artifact's manifest, about.
inline constexpr int64_t kManifestBytes = 2048;

// The sizes that the formulas of costs need.
struct ModelSizes {
  int64_t block_weights = 0;  // of the matrices of one block
  int64_t head_weights = 0;   // vocabulary x hidden
  int64_t total_weights = 0;
  int64_t packed_bytes = 0;
  int64_t vector_bytes = 0;  // of norms and biases, which packed_bytes counts too
  int64_t header_bytes = 0;  // of model.safetensors
};

// What the stages of one run cost. Formulas: T tokens, L blocks of p weights, h hidden size, s
// sequence length, V vocabulary; everything in 32-bit floats on a CPU.
class CostModel {
 public:
  // All must outlive this.
  CostModel(const Task& task, const ModelConfig& config, const Machine& machine);

  int64_t artifact_bytes() const;

  // Of tuning the scales of a packed model, whose settings are the task's of end-to-end training.
  // `share`: how much of what the settings allow there is to learn from.
  std::vector<StageCost> TuneStages(double share) const;

  // Of measuring a packed model and, perhaps, its source on so many tokens.
  std::vector<StageCost> EvaluateStages(double tokens) const;

  // Of the scales and, where they are trained, norms of all block matrices.
  int64_t scale_bytes() const;

  std::vector<StageCost> Stages() const;

 private:
  int64_t source_bytes() const;
  // Of products.
  ComputeDtype dtype() const { return task_.compute_dtype.value_or(ComputeDtype::kFloat32); }
  absl::Duration InferenceTime(double tokens) const;
  // Of products in the task's numbers, and of products of floats, with what goes on between them.
  absl::Duration TrainingTime(double flop) const;
  absl::Duration FloatTime(double flop) const;
  // Weights that one token is multiplied with: the blocks and the head, tied or not.
  int64_t inference_weights() const;
  // Keys and values of `tokens` tokens, in floats.
  int64_t KvBytes(int64_t tokens) const;

  int64_t NumScales() const;

  static StageCost Publishing(int64_t bytes);

  StageCost Loading() const;

  StageCost Calibrating() const;

  // Numbers in the second moments of a block's inputs: of q, k, v, o and gate, and of down.
  double MomentWeights() const;
  // Of one block: the moments of `tokens` inputs, and the search for codes.
  double GptqFlop(double tokens) const;
  // Its memory: the moments of each matrix's inputs, and the widest's twice more.
  double GptqBytes() const;

  // Of one block, for bits of its own: states and gradients, and the errors of each width.
  double SensitivityFlop() const;
  // For all blocks: the states between them, one block with its errors, and the head.
  double SensitivityBytes() const;

  // The moments, and the errors of each exponent that is tried.
  double AwqFlop(double tokens) const;

  // A stage that trains: what training takes is the GPU's where there is one.
  StageCost TrainingStage(Stage stage, absl::Duration duration, double memory_bytes,
                          double disk_bytes) const;

  // Embedding and head in floats, the source's and as they will be served.
  double OuterBytes() const;

  // Where streams of so many values lie.
  struct Streams {
    double memory_bytes = 0;
    double disk_bytes = 0;
    absl::Duration DiskTime(double passes) const;
  };
  Streams PlaceStreams(std::initializer_list<double> values) const;

  // Products of the inputs with themselves, the search for codes or channels' scales, and the pass
  // of the block before and after. Memory: the states, the largest matrix's second moments twice
  // and the block.
  StageCost Untrained() const;

  // Training 6p + attention for each token and epoch; a pass of the source's stream 2p, of the
  // quantized one and of the validation the same, and what the start takes. Memory: the caches of
  // both streams and the targets, one block in training (value, gradient, two moments,
  // fake-quantized copy), its activations, and what GPTQ took to find the start.
  StageCost BlockAp() const;

  static double Steps(const std::optional<int>& samples, const std::optional<int>& epochs,
                      const std::optional<int>& batch_size);

  // Of the blocks, forward and backward 6 for each weight and token; of the head, which is not
  // trained, 4, and 2 for the teacher, whose states are known. Memory: packed weights, scales with
  // gradient and moments, what the way back needs, logits of student and teacher with their
  // gradients; of weights that are trained value, gradient, two moments and the
  // fake-quantized copy.
  StageCost E2eQp() const;

  StageCost Packing() const;

  StageCost Evaluating() const;

  const Task& task_;
  const ModelConfig& config_;
  const Machine& machine_;
  const ModelSizes sizes_;
};

}  // namespace quern

#endif  // QUERN_CORE_PLAN_COST_MODEL_H_
