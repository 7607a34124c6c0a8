#ifndef QUERN_CORE_ENGINE_KERNEL_OPS_H_
#define QUERN_CORE_ENGINE_KERNEL_OPS_H_

// The decoder's operations (core/model/decoder.h) with the serving kernels.

#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "core/base/thread_pool.h"
#include "core/engine/aligned_buffer.h"
#include "core/engine/backend.h"
#include "core/engine/kv_memory.h"
#include "core/engine/prepack.h"
#include "kernels/kernels.h"

namespace quern {

// A row-major matrix of floats inside a Workspace.
struct FloatRows {
  float* data = nullptr;
  int64_t stride = 0;  // floats from row to row
  float* row(int64_t i) const { return data + i * stride; }
};

// The buffers of a step, allocated once for the largest.
class Workspace {
 public:
  // What Allocate takes; data of `weights` is not read.
  static int64_t SizeBytes(const CpuWeights& weights, const kernels::KernelTable& kernels,
                           const BackendLimits& limits, bool quantized_kv, int num_threads);
  // RESOURCE_EXHAUSTED when there is no memory.
  static absl::StatusOr<std::unique_ptr<Workspace>> Allocate(const CpuWeights& weights,
                                                             const kernels::KernelTable& kernels,
                                                             const BackendLimits& limits,
                                                             bool quantized_kv, int num_threads);

  FloatRows hidden;                // [max_step_tokens, hidden_size], the residual stream
  FloatRows normed;                // [max_step_tokens, hidden_size]
  FloatRows q;                     // [max_step_tokens, q_size]
  FloatRows k, v;                  // [max_step_tokens, kv_size]
  FloatRows attention;             // [max_step_tokens, q_size]
  FloatRows gate, up;              // [max_step_tokens, intermediate_size]
  FloatRows cos_sin;               // [max_step_tokens, head_dim]
  FloatRows attention_scratch;     // [num_threads, attention_scratch_floats]
  FloatRows logits;                // [max_logits, vocab_size], stride vocab_size
  uint8_t* activations = nullptr;  // quantized, of any input

  // Of each token in the step.
  struct Token {
    int32_t id = 0;
    int32_t position = 0;
    const int32_t* pages = nullptr;
    int32_t slot = 0;
    int32_t first = 0;  // of its sequence in the step
  };
  std::vector<Token> tokens;
  std::vector<int32_t> logit_rows;  // tokens whose logits are wanted

  // Consecutive tokens of one sequence (and page, when the KV cache is quantized) and heads that
  // share a key/value head: what one call of the attention kernel takes.
  struct AttentionUnit {
    int32_t first_token = 0;
    int32_t num_tokens = 0;
    int32_t head_begin = 0;
    int32_t head_end = 0;
  };
  std::vector<AttentionUnit> attention_units;
  // Thread i takes the units from the end of thread i - 1 up to this.
  std::vector<int32_t> attention_ends;

  // With a quantized KV cache. Keys and values of one layer, [num_key_value_heads][max_step_tokens]
  // [head_dim]: of the pages that begin in the step, apart from a sequence's first.
  uint16_t* step_keys = nullptr;
  uint16_t* step_values = nullptr;
  int max_step_tokens = 0;
  std::vector<int32_t> closing;  // tokens that are the last of a page
  std::vector<int32_t> carried;  // last tokens of sequences whose open page is in step_keys

 private:
  AlignedBuffer memory_;
};

// One step. Satisfies DecoderOps.
class KernelOps {
 public:
  using Tensor = FloatRows;
  using Block = CpuBlock;
  using Model = CpuWeights;
  struct Qkv {
    FloatRows q, k, v;
  };

  // All outlive this. Takes over the batch's tokens, positions and pages.
  KernelOps(const CpuWeights& weights, const kernels::KernelTable& kernels, const KvMemory& kv,
            Workspace& workspace, ThreadPool& pool, const Batch& batch);

  FloatRows Embed(const CpuWeights& model);
  Qkv ProjectQkv(int layer, const CpuBlock& block, FloatRows x);
  FloatRows Attend(int layer, Qkv qkv);
  FloatRows AddAttentionOutput(const CpuBlock& block, FloatRows residual, FloatRows attention);
  FloatRows GatedMlp(const CpuBlock& block, FloatRows x);
  FloatRows AddMlpOutput(const CpuBlock& block, FloatRows residual, FloatRows mlp);
  FloatRows Head(const CpuWeights& model, FloatRows x);

 private:
  struct Product {
    const CpuLinear* linear;
    FloatRows y;
  };

  // Finds what becomes of open pages in the step.
  void PlanPages();
  // Cuts the step's attention into units and shares them out.
  void PlanAttention();
  void AttendHalf(int layer, const Qkv& qkv);
  void AttendQuantized(int layer, const Qkv& qkv);
  // Calls attend(first token, query, scratch) for every unit, shared out.
  template <typename AttendUnit>
  void ForEachAttentionUnit(const Qkv& qkv, const AttendUnit& attend);
  kernels::PagedKv LayerPages(int layer, const int32_t* pages) const;
  kernels::QuantizedKv QuantizedPages(int layer, int64_t token) const;
  // Where the open page of a token is: in its sequence's slot, or in the step's rows.
  kernels::PagedKv OpenPage(int layer, int64_t token) const;
  // Whether the token's page is another than that of its sequence's first token of the step.
  bool IsBehindFirstPage(int64_t token) const;
  // Copies the token's open page, up to it, from the step's rows to the slot.
  void CarryOpenPage(int layer, int64_t token);
  // Rounds rows [begin, end) of x, [num_rows, cols], into workspace.activations.
  void QuantizeRows(FloatRows x, int64_t begin, int64_t end, int cols, const InputForm& form);
  // normed[i] = RMSNorm of x's row rows(i), in `form` too.
  template <typename RowOf>
  void NormAndQuantize(FloatRows x, const std::vector<float>& weight, int64_t num_rows,
                       const InputForm& form, RowOf row_of);
  // y (+)= x * w^T + bias of every product; all take the same x, [num_rows, cols].
  // `quantized`: the form in which workspace.activations hold x already.
  void Multiply(FloatRows x, int64_t num_rows, const InputForm& quantized, bool accumulate,
                std::initializer_list<Product> products);
  void MultiplyRows(const Product& product, FloatRows x, int64_t num_rows, int row_begin,
                    int row_end, bool accumulate);

  const CpuWeights& weights_;
  const kernels::KernelTable& kernels_;
  const KvMemory& kv_;
  Workspace& workspace_;
  ThreadPool& pool_;
  const kernels::AttentionShape shape_;
  const int64_t num_tokens_;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_KERNEL_OPS_H_
