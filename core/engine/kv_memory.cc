#include "core/engine/kv_memory.h"

#include <absl/strings/str_cat.h>

#include <algorithm>

#include "core/base/status_macros.h"

namespace quern {
namespace {

int BitsOf(KvCacheType type) {
  switch (type) {
    case KvCacheType::kFloat16:
      return 0;
    case KvCacheType::kInt8:
      return 8;
    case KvCacheType::kInt4:
      return 4;
  }
  return 0;
}

}  // namespace

absl::StatusOr<KvMemory> KvMemory::Plan(const ModelConfig& config, KvCacheType type,
                                        const BackendLimits& limits,
                                        const kernels::KernelTable& kernels) {
  KvMemory kv;
  kv.bits = BitsOf(type);
  kv.page_tokens = kv.quantized() ? kernels::kQuantizedPageTokens : limits.page_tokens;
  kv.num_layers = config.num_hidden_layers;
  kv.run_elements = int64_t{kv.page_tokens} * config.kv_size();
  const int64_t half_page_bytes = kv.num_layers * 2 * kv.run_elements * int64_t{sizeof(uint16_t)};
  kv.page_bytes = half_page_bytes;
  int64_t slot_bytes = 0;
  if (kv.quantized()) {
    kv.layer_bytes = static_cast<int64_t>(kernels.quantized_head_bytes(kv.bits, config.head_dim)) *
                     config.num_key_value_heads;
    kv.page_bytes = kv.num_layers * kv.layer_bytes;
    slot_bytes = half_page_bytes;
    kv.num_slots = static_cast<int>(
        std::clamp<int64_t>(limits.kv_cache_bytes / 4 / slot_bytes, 1, limits.max_sequences));
  } else {
    kv.num_slots = limits.max_sequences;
  }
  const int64_t slots_bytes = kv.num_slots * slot_bytes;
  const int64_t context_pages =
      (int64_t{config.max_position_embeddings} + kv.page_tokens - 1) / kv.page_tokens;
  kv.num_pages =
      std::min((limits.kv_cache_bytes - slots_bytes) / kv.page_bytes, context_pages * kv.num_slots);
  if (kv.num_pages < 1) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "kv_cache_bytes is ", limits.kv_cache_bytes, ", one page of ", kv.page_tokens,
        " tokens of this model takes ", kv.page_bytes,
        kv.quantized() ? absl::StrCat(" and the page that a sequence is filling ", slot_bytes) : "",
        "; give the KV cache more memory"));
  }
  return kv;
}

absl::StatusOr<KvMemory> KvMemory::Allocate(const ModelConfig& config, KvCacheType type,
                                            const BackendLimits& limits,
                                            const kernels::KernelTable& kernels) {
  ASSIGN_OR_RETURN(KvMemory kv, Plan(config, type, limits, kernels));
  ASSIGN_OR_RETURN(kv.storage, AlignedBuffer::Allocate(kv.size_bytes(), "the KV cache"));
  return kv;
}

}  // namespace quern
