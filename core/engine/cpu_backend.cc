#include "core/engine/cpu_backend.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "core/base/status_macros.h"
#include "core/engine/kernel_ops.h"
#include "core/model/decoder.h"

namespace quern {
namespace {

// Says when a block is done.
class ReportingOps : public KernelOps {
 public:
  template <typename... Args>
  explicit ReportingOps(const std::function<void()>& on_block, Args&&... args)
      : KernelOps(std::forward<Args>(args)...), on_block_(on_block) {}

  FloatRows AddMlpOutput(const CpuBlock& block, FloatRows residual, FloatRows mlp) {
    const FloatRows y = KernelOps::AddMlpOutput(block, residual, mlp);
    on_block_();
    return y;
  }

 private:
  const std::function<void()>& on_block_;
};

// As many pages as the limit pays for, and no more than all sequences of a step can fill. Without
// `storage`, whose size is `size_bytes`.
absl::StatusOr<KvMemory> PlanKv(const ModelConfig& config, const BackendLimits& limits,
                                int64_t* size_bytes) {
  KvMemory kv;
  kv.page_tokens = limits.page_tokens;
  kv.run_elements = int64_t{limits.page_tokens} * config.kv_size();
  kv.page_elements = 2 * kv.run_elements * config.num_hidden_layers;
  const int64_t page_bytes = kv.page_elements * int64_t{sizeof(uint16_t)};
  const int64_t context_pages =
      (int64_t{config.max_position_embeddings} + limits.page_tokens - 1) / limits.page_tokens;
  const int64_t num_pages =
      std::min(limits.kv_cache_bytes / page_bytes, context_pages * limits.max_sequences);
  if (num_pages < 1) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "kv_cache_bytes is ", limits.kv_cache_bytes, ", one page of ", limits.page_tokens,
        " tokens of this model takes ", page_bytes, "; give the KV cache more memory"));
  }
  *size_bytes = num_pages * page_bytes;
  return kv;
}

absl::StatusOr<KvMemory> AllocateKv(const ModelConfig& config, const BackendLimits& limits) {
  int64_t size_bytes = 0;
  ASSIGN_OR_RETURN(KvMemory kv, PlanKv(config, limits, &size_bytes));
  ASSIGN_OR_RETURN(kv.storage, AlignedBuffer::Allocate(size_bytes, "the KV pages"));
  return kv;
}

class CpuModel final : public BackendModel {
 public:
  static absl::StatusOr<std::unique_ptr<BackendModel>> Load(
      const ModelSource& source, const LoadOptions& options, const BackendLimits& limits,
      const kernels::KernelTable& kernels, MatrixPool& matrices, ThreadPool* pool,
      std::function<void()> on_block) {
    auto model = std::make_unique<CpuModel>(kernels, pool, std::move(on_block));
    RETURN_IF_ERROR(source.config().Validate());
    // Before the weights: it is quick to fail.
    ASSIGN_OR_RETURN(model->kv_, AllocateKv(source.config(), limits));
    ASSIGN_OR_RETURN(model->weights_, PrepackWeights(source, options.precision, kernels, matrices));
    ASSIGN_OR_RETURN(model->workspace_,
                     Workspace::Allocate(model->weights_, kernels, limits, pool->num_threads()));
    return model;
  }

  CpuModel(const kernels::KernelTable& kernels, ThreadPool* pool, std::function<void()> on_block)
      : kernels_(kernels), pool_(pool), on_block_(std::move(on_block)) {}

  absl::StatusOr<absl::Span<const float>> Step(const Batch& batch) override {
    ReportingOps ops(on_block_, weights_, kernels_, kv_, *workspace_, *pool_, batch);
    const FloatRows logits = RunDecoder(ops, weights_, weights_.config.num_hidden_layers);
    return absl::MakeConstSpan(logits.data,
                               workspace_->logit_rows.size() * weights_.config.vocab_size);
  }

  int num_pages() const override {
    return static_cast<int>(kv_bytes() / (kv_.page_elements * int64_t{sizeof(uint16_t)}));
  }
  int64_t weight_bytes() const override { return weights_.size_bytes; }
  int64_t step_weight_bytes() const override {
    const auto embedding = static_cast<int64_t>(weights_.embedding.storage->size_bytes());
    return weights_.size_bytes - (weights_.config.tie_word_embeddings ? 0 : embedding);
  }
  int64_t shared_weight_bytes() const override { return weights_.shared_bytes; }
  int64_t kv_bytes() const override { return static_cast<int64_t>(kv_.storage.size_bytes()); }

 private:
  const kernels::KernelTable& kernels_;
  ThreadPool* const pool_;
  const std::function<void()> on_block_;
  KvMemory kv_;
  CpuWeights weights_;
  std::unique_ptr<Workspace> workspace_;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const kernels::KernelTable& kernels, ThreadPool* pool, std::function<void()> on_block)
      : kernels_(kernels), pool_(pool), on_block_(std::move(on_block)) {}

  absl::StatusOr<std::unique_ptr<BackendModel>> Load(const ModelSource& source,
                                                     const LoadOptions& options,
                                                     const BackendLimits& limits) override {
    return CpuModel::Load(source, options, limits, kernels_, matrices_, pool_, on_block_);
  }
  absl::StatusOr<ModelMemory> PlanMemory(const ModelSource& source, const LoadOptions& options,
                                         const BackendLimits& limits) const override {
    ModelMemory memory;
    RETURN_IF_ERROR(source.config().Validate());
    RETURN_IF_ERROR(PlanKv(source.config(), limits, &memory.kv_bytes).status());
    ASSIGN_OR_RETURN(const CpuWeights weights, PlanWeights(source, options.precision, kernels_));
    memory.weight_bytes = weights.size_bytes;
    memory.workspace_bytes = Workspace::SizeBytes(weights, kernels_, limits, pool_->num_threads());
    return memory;
  }
  absl::string_view name() const override { return kernels_.name; }

 private:
  const kernels::KernelTable& kernels_;
  ThreadPool* const pool_;
  const std::function<void()> on_block_;
  MatrixPool matrices_;
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(const kernels::KernelTable& kernels, ThreadPool* pool,
                                        std::function<void()> on_block) {
  return std::make_unique<CpuBackend>(kernels, pool, std::move(on_block));
}

}  // namespace quern
