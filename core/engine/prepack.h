#ifndef QUERN_CORE_ENGINE_PREPACK_H_
#define QUERN_CORE_ENGINE_PREPACK_H_

// A model's weights in the order the kernels of this CPU read.

#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "core/engine/aligned_buffer.h"
#include "core/engine/matrix_pool.h"
#include "core/engine/model_source.h"
#include "kernels/kernels.h"

namespace quern {

// How a matrix takes its input: rounded to integers in groups, or with group_size 0 as floats.
struct InputForm {
  int group_size = 0;
  kernels::ActivationPrecision precision = kernels::ActivationPrecision::kInt8;

  bool is_float() const { return group_size == 0; }
  bool operator==(const InputForm&) const = default;
};

// y = x * matrix^T + bias.
struct CpuLinear {
  kernels::PrepackedMatrix matrix;  // into `storage`
  std::shared_ptr<const AlignedBuffer> storage;
  std::vector<float> bias;  // [rows] or empty
  InputForm input;
};

struct CpuBlock {
  std::vector<float> attention_norm;  // [hidden_size]
  std::vector<float> mlp_norm;        // [hidden_size]
  std::vector<float> q_norm;          // [head_dim] or empty
  std::vector<float> k_norm;          // [head_dim] or empty
  CpuLinear q, k, v, o, gate, up, down;
};

struct CpuWeights {
  ModelConfig config;
  CpuLinear embedding;
  CpuLinear untied_head;          // empty when the head is the embedding
  std::vector<float> final_norm;  // [hidden_size]
  std::vector<CpuBlock> blocks;
  std::vector<float> rope_frequencies;  // [head_dim / 2]
  int64_t size_bytes = 0;
  int64_t shared_bytes = 0;  // of these, what another model held already

  const CpuBlock& block(int layer) const { return blocks[layer]; }
  const CpuLinear& head() const { return config.tie_word_embeddings ? embedding : untied_head; }
};

// Reads and prepacks all of `source`, on the calling thread; a matrix that `pool` has is taken from
// there. Checks every shape against the config (INVALID_ARGUMENT) and that dense values and scales
// are finite (DATA_LOSS).
absl::StatusOr<CpuWeights> PrepackWeights(const ModelSource& source, Precision precision,
                                          const kernels::KernelTable& kernels, MatrixPool& pool);

// What PrepackWeights would give, without any data: only shapes of `source` are read.
absl::StatusOr<CpuWeights> PlanWeights(const ModelSource& source, Precision precision,
                                       const kernels::KernelTable& kernels);

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_PREPACK_H_
