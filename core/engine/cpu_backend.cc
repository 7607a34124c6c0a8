#include "core/engine/cpu_backend.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "core/base/status_macros.h"
#include "core/engine/divergence.h"
#include "core/engine/kernel_ops.h"
#include "core/engine/kv_memory.h"
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

class CpuModel final : public BackendModel {
 public:
  static absl::StatusOr<std::unique_ptr<BackendModel>> Load(const ModelSource& source,
                                                            const LoadOptions& options,
                                                            const BackendLimits& limits,
                                                            const kernels::KernelTable& kernels,
                                                            MatrixPool& matrices, ThreadPool* pool,
                                                            std::function<void()> on_block) {
    auto model = std::make_unique<CpuModel>(kernels, pool, std::move(on_block));
    RETURN_IF_ERROR(source.config().Validate());
    // Before the weights: it is quick to fail.
    ASSIGN_OR_RETURN(model->kv_,
                     KvMemory::Allocate(source.config(), options.kv_cache_type, limits, kernels));
    ASSIGN_OR_RETURN(model->weights_, PrepackWeights(source, options.precision, kernels, matrices));
    ASSIGN_OR_RETURN(model->workspace_,
                     Workspace::Allocate(model->weights_, kernels, limits, model->kv_.quantized(),
                                         pool->num_threads()));
    model->limits_ = limits;
    return model;
  }

  CpuModel(const kernels::KernelTable& kernels, ThreadPool* pool, std::function<void()> on_block)
      : kernels_(kernels), pool_(pool), on_block_(std::move(on_block)) {}

  absl::StatusOr<absl::Span<const float>> Step(const Batch& batch) override {
    return Run(kv_, *pool_, on_block_, batch);
  }

  absl::StatusOr<double> MeasureKvDivergence(absl::Span<const int32_t> tokens,
                                             absl::Duration limit) override;

  int num_pages() const override { return static_cast<int>(kv_.num_pages); }
  int page_tokens() const override { return kv_.page_tokens; }
  int max_sequences() const override { return kv_.num_slots; }
  int64_t weight_bytes() const override { return weights_.size_bytes; }
  int64_t step_weight_bytes() const override {
    const auto embedding = static_cast<int64_t>(weights_.embedding.storage->size_bytes());
    return weights_.size_bytes - (weights_.config.tie_word_embeddings ? 0 : embedding);
  }
  int64_t shared_weight_bytes() const override { return weights_.shared_bytes; }
  int64_t kv_bytes() const override { return static_cast<int64_t>(kv_.storage.size_bytes()); }
  int64_t kv_token_bytes() const override { return kv_.token_bytes(); }

 private:
  absl::Span<const float> Run(const KvMemory& kv, ThreadPool& pool,
                              const std::function<void()>& on_block, const Batch& batch) {
    ReportingOps ops(on_block, weights_, kernels_, kv, *workspace_, pool, batch);
    const FloatRows logits = RunDecoder(ops, weights_, weights_.config.num_hidden_layers);
    return absl::MakeConstSpan(logits.data,
                               workspace_->logit_rows.size() * weights_.config.vocab_size);
  }

  const kernels::KernelTable& kernels_;
  ThreadPool* const pool_;
  const std::function<void()> on_block_;
  KvMemory kv_;
  CpuWeights weights_;
  BackendLimits limits_;
  std::unique_ptr<Workspace> workspace_;
};

absl::StatusOr<double> CpuModel::MeasureKvDivergence(absl::Span<const int32_t> tokens,
                                                     absl::Duration limit) {
  if (!kv_.quantized()) {
    return absl::FailedPreconditionError("the KV cache is one of half floats already");
  }
  const int page_tokens = kv_.page_tokens;
  ModelConfig config = weights_.config;
  const int num_tokens =
      static_cast<int>(std::min({static_cast<int64_t>(tokens.size()), kv_.num_pages * page_tokens,
                                 int64_t{config.max_position_embeddings}}));
  if (num_tokens <= page_tokens) {
    return absl::FailedPreconditionError(absl::StrCat(
        "there is room for ", num_tokens, " tokens, the first ", page_tokens, " are not affected"));
  }
  config.max_position_embeddings = num_tokens;
  BackendLimits half_limits = limits_;
  half_limits.page_tokens = page_tokens;
  half_limits.max_sequences = 1;
  half_limits.kv_cache_bytes = std::numeric_limits<int64_t>::max();
  ASSIGN_OR_RETURN(const KvMemory half,
                   KvMemory::Allocate(config, KvCacheType::kFloat16, half_limits, kernels_));
  std::vector<int32_t> pages((num_tokens + page_tokens - 1) / page_tokens);
  std::iota(pages.begin(), pages.end(), 0);
  // Not the engine's, which runs regions for other models meanwhile, and is not getting on by this.
  ThreadPool pool(pool_->num_threads());
  const std::function<void()> on_block = [] {};
  const auto start = std::chrono::steady_clock::now();
  const int chunk = std::min({page_tokens, limits_.max_step_tokens, limits_.max_logits});
  const auto vocab_size = static_cast<size_t>(config.vocab_size);
  std::vector<float> wanted;
  double sum = 0;
  int64_t num_scored = 0;
  for (int position = 0; position < num_tokens; position += chunk) {
    if (num_scored > 0 && std::chrono::steady_clock::now() - start > absl::ToChronoSeconds(limit)) {
      break;
    }
    const int count = std::min(chunk, num_tokens - position);
    const Batch batch = {{.tokens = tokens.subspan(position, count),
                          .position = position,
                          .pages = pages,
                          .num_logits = std::clamp(position + count - page_tokens, 0, count)}};
    const absl::Span<const float> half_logits = Run(half, pool, on_block, batch);
    wanted.assign(half_logits.begin(), half_logits.end());
    const absl::Span<const float> logits = Run(kv_, pool, on_block, batch);
    for (size_t row = 0; row < logits.size(); row += vocab_size, ++num_scored) {
      const auto p = absl::MakeConstSpan(wanted).subspan(row, vocab_size);
      const auto q = logits.subspan(row, vocab_size);
      sum += KlDivergence(p, LogSumExp(p), q, LogSumExp(q));
    }
  }
  // Rounding can leave a sum of equal distributions a hair below 0.
  return std::isnan(sum) ? sum : std::max(0.0, sum / static_cast<double>(num_scored));
}

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
    ASSIGN_OR_RETURN(const KvMemory kv,
                     KvMemory::Plan(source.config(), options.kv_cache_type, limits, kernels_));
    memory.kv_bytes = kv.size_bytes();
    ASSIGN_OR_RETURN(const CpuWeights weights, PlanWeights(source, options.precision, kernels_));
    memory.weight_bytes = weights.size_bytes;
    memory.workspace_bytes =
        Workspace::SizeBytes(weights, kernels_, limits, kv.quantized(), pool_->num_threads());
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
