#ifndef QUERN_SERVICES_QUANTIZER_EVALUATION_H_
#define QUERN_SERVICES_QUANTIZER_EVALUATION_H_

#include <absl/status/statusor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/artifact/packed_model.h"
#include "core/base/json.h"
#include "core/checkpoint/checkpoint.h"
#include "core/eval/evaluate.h"
#include "core/eval/zero_shot.h"
#include "services/quantizer/cancellation.h"

namespace quern {

struct EvaluationInput {
  // What the others are compared with, and the name of its rows.
  std::unique_ptr<ModelSource> source;
  ModelConfig config;
  std::string source_name = "source";
  // By the name of their row, in order.
  std::vector<std::pair<std::string, std::shared_ptr<const PackedModel>>> models;
  // Sequences sampled from the source, kept here between runs under `key`; empty: none are.
  std::string held_out_path;
  std::string key;
  uint64_t seed = 0;  // of the task; the held-out sequences use another one derived from it
  // What to measure on, beside those sequences.
  std::vector<EvaluationText> texts;
  std::vector<ZeroShotTask> zero_shot;
  int num_threads = 1;
  std::function<void(int64_t done_tokens, int64_t total_tokens)> on_progress;
};

struct EvaluationResults {
  std::vector<EvaluationRow> rows;
  std::vector<ZeroShotRow> zero_shot_rows;
};

// Samples held-out sequences from the source (8 of min(512, context) tokens), or takes those kept,
// and scores all models on them and on the texts, through the serving kernels. Nothing to measure
// on gives no rows. CANCELLED.
absl::StatusOr<EvaluationResults> EvaluateModels(EvaluationInput input, Cancellation& cancellation);

// quern.quantization.v1.EvaluationReport in proto3 JSON.
Json ReportToJson(const EvaluationResults& results, int64_t source_size_bytes,
                  int64_t artifact_size_bytes);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_EVALUATION_H_
