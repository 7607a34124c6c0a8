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

enum class QuantMethod { kRtn, kBlockAp, kBlockApE2eQp };
enum class Preset { kQuick, kStandard, kBest };
enum class E2eLoss { kDistillation, kCrossEntropy };

// Block-wise training. Every field is set once the task is resolved.
struct BlockApSettings {
  std::optional<int> sample_count;            // sequences, 1..65536
  std::optional<int> sequence_length_tokens;  // 8..32768
  std::optional<int> epoch_count;             // 0..64
  std::optional<int> batch_size;              // sequences in a step, 1..1024
  std::optional<double> weight_learning_rate;  // of weights and norms; 0 freezes them
  std::optional<double> quant_learning_rate;   // of scales; 0 freezes them
  std::optional<double> zero_point_learning_rate;  // 0 freezes them
  std::optional<int> validation_sample_count;  // held back to find the best epoch, 0..1024
};

struct E2eQpSettings {
  std::optional<int> sample_count;
  std::optional<int> sequence_length_tokens;
  std::optional<int> epoch_count;
  std::optional<int> batch_size;
  // Relative to the mean scale of each matrix.
  std::optional<double> learning_rate;
  std::optional<E2eLoss> loss;
};

struct Task {
  std::string checkpoint_path;    // below a model root, '/'-separated
  std::string checkpoint_digest;  // optional, hex
  QuantFormat format;
  QuantMethod method = QuantMethod::kBlockApE2eQp;
  Preset preset = Preset::kStandard;
  std::string calibration_path;   // below a data root; empty: sampled from the model
  std::string evaluation_path;    // optional text to evaluate on, below a data root
  int evaluation_chunk_tokens = 512;
  int evaluation_max_chunk_count = 40;
  BlockApSettings block_ap;
  E2eQpSettings e2e_qp;
  uint64_t seed = 0;
};

// INVALID_ARGUMENT naming the field: unknown keys, wrong types, values out of range.
absl::StatusOr<Task> ParseTask(absl::string_view json);

// The canonical JSON of a resolved task; its SHA-256 is the task digest.
Json TaskToJson(const Task& task);

}  // namespace quern

#endif  // QUERN_CORE_PLAN_TASK_H_
