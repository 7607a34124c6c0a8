#ifndef QUERN_CORE_PLAN_TASK_H_
#define QUERN_CORE_PLAN_TASK_H_

// A quantization task as plain data, parsed from the proto3 JSON form of
// quern.quantization.v1.QuantizeTask. This is the one other place that knows those fields; a test
// walks the proto's descriptor and fails when a field is not parsed here.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <optional>
#include <string>

#include "core/artifact/packed_model.h"
#include "core/base/json.h"
#include "core/model/model_config.h"

namespace quern {

enum class QuantMethod { kRtn, kGptq, kAwq, kBlockAp, kBlockApE2eQp };
// Whether the method calibrates, but trains nothing.
inline bool IsUntrained(QuantMethod method) {
  return method == QuantMethod::kGptq || method == QuantMethod::kAwq;
}
// kReference: the recipe that EfficientQAT published, without what was found better since.
enum class Preset { kQuick, kStandard, kBest, kReference };
enum class E2eLoss { kDistillation, kCrossEntropy };
// What is trained end to end; kScales is E2E-QP as published.
enum class E2eTrainable { kScales, kScalesAndNorms, kAll };
// The numbers that products are computed in; sums, what is trained, and all else are in floats.
enum class ComputeDtype { kFloat32, kBfloat16 };
// Where Block-AP starts from.
enum class QuantStart {
  kMinMax,  // the whole range of each group
  kSearch,  // the clipped range with the least error of the outputs
  kGptq,    // that, and codes which make up for each other's errors
};
// What a block's output is compared with: the source block's output for ...
enum class BlockTarget {
  kSourceStream,     // the source model's own states before it
  kQuantizedStream,  // the states that the quantized block gets
  kBoth,             // the mean of both losses
};
enum class BlockLoss {
  kMeanSquares,
  kRelativePerToken,  // each token's squared error over its squared target
};

// Block-wise training. Every field is set once the task is resolved.
struct BlockApSettings {
  std::optional<int> sample_count;                 // sequences, 1..65536
  std::optional<int> sequence_length_tokens;       // 8..32768
  std::optional<int> epoch_count;                  // 0..64
  std::optional<int> batch_size;                   // sequences in a step, 1..1024
  std::optional<double> weight_learning_rate;      // of weights and norms, 0..1; 0 freezes them
  std::optional<double> quant_learning_rate;       // of scales; 0 freezes them
  std::optional<double> zero_point_learning_rate;  // 0 freezes them
  std::optional<int> validation_sample_count;      // held back to find the best epoch, 0..1024
  std::optional<QuantStart> start;
  std::optional<BlockTarget> target;
  std::optional<BlockLoss> loss;
  // Scales as they will be stored, half floats, in every forward pass; false: only at the end.
  std::optional<bool> round_scales;
};

struct E2eQpSettings {
  std::optional<int> sample_count;
  std::optional<int> sequence_length_tokens;
  std::optional<int> epoch_count;
  std::optional<int> batch_size;
  // Of scales and norms, relative to the mean magnitude of each tensor.
  std::optional<double> learning_rate;
  std::optional<E2eLoss> loss;
  std::optional<E2eTrainable> trainable;
  // Of weights, in steps of their scales; 0 unless they are trained.
  std::optional<double> weight_learning_rate;
  std::optional<int> first_sample;  // of the calibration's sequences; 0..65536
  // Rates as they are, falling to nothing: not relative, and not to a twentieth.
  std::optional<bool> absolute_rate;
  // What part of the loss DISTILLATION is cross-entropy; 0..1.
  std::optional<double> cross_entropy_share;
};

// Optional text to evaluate on.
struct EvaluationData {
  std::string path;      // below a data root; empty: none
  int chunk_tokens = 0;  // 0: 512, or the model's context where that is less
  int max_chunk_count = 40;
};

struct Task {
  std::string checkpoint_path;    // below a model root, '/'-separated
  std::string checkpoint_digest;  // optional, hex
  QuantFormat format;
  QuantMethod method = QuantMethod::kBlockApE2eQp;
  Preset preset = Preset::kStandard;
  std::string calibration_path;       // below a data root; empty: sampled from the model
  int calibration_sampled_count = 0;  // of the sequences, 0..65536; with a path
  EvaluationData evaluation;
  BlockApSettings block_ap;
  E2eQpSettings e2e_qp;
  std::optional<ComputeDtype> compute_dtype;
  // What the states of calibration sequences are kept in between blocks; none: FLOAT32.
  std::optional<ComputeDtype> activation_dtype;
  double target_bits = 0;  // mean over the blocks' matrices, above format.bits; 0: all alike
  uint64_t seed = 0;
};

// Accepts what proto3 JSON accepts: camelCase and snake_case names, integers and numbers also as
// strings, enums by name or number, null for a field that is not set. INVALID_ARGUMENT naming the
// field: unknown keys, wrong types, values out of range, `resolved` (output only), a path that is
// absolute, has a '..' segment or the wrong ending. Checks against the model are MakePlan's.
absl::StatusOr<Task> ParseTask(absl::string_view json);

// Every field; those without a value are null.
Json TaskToJson(const Task& task);

// SHA-256, hex, over what decides the weights of a resolved task's result beside the checkpoint and
// the calibration ids (which have digests of their own): format, method, settings, and the seed
// where the method uses one. Where files lie, and what the result is measured on, do not change it.
std::string TaskDigest(const Task& task);

// "RTN", "GPTQ", "AWQ", "BLOCK_AP" or "BLOCK_AP_E2E_QP", as in the proto.
absl::string_view MethodName(QuantMethod method);

}  // namespace quern

#endif  // QUERN_CORE_PLAN_TASK_H_
