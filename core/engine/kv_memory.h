#ifndef QUERN_CORE_ENGINE_KV_MEMORY_H_
#define QUERN_CORE_ENGINE_KV_MEMORY_H_

#include <absl/status/statusor.h>

#include <cstdint>

#include "core/engine/aligned_buffer.h"
#include "core/engine/backend.h"
#include "core/engine/model_source.h"
#include "kernels/kernels.h"

namespace quern {

// The memory of a model's KV cache on the CPU.
//
// Half floats: pages [page][layer][keys, values][kv_head][page_tokens][head_dim].
// Quantized: pages [page][layer][kv_head] of KernelTable::quantized_head_bytes, then the open page
// of each slot in half floats, [slot][layer][keys, values][kv_head][page_tokens][head_dim].
struct KvMemory {
  // As many pages as limits.kv_cache_bytes pays for, and no more than all sequences can fill.
  // Slots, which a quantized cache needs memory for, get a quarter of it at most: a sequence cannot
  // do without, but with too many of them there would be no pages left. RESOURCE_EXHAUSTED when it
  // is less than one page (and slot) or the system has none.
  static absl::StatusOr<KvMemory> Allocate(const ModelConfig& config, KvCacheType type,
                                           const BackendLimits& limits,
                                           const kernels::KernelTable& kernels);

  // The same without `storage`.
  static absl::StatusOr<KvMemory> Plan(const ModelConfig& config, KvCacheType type,
                                       const BackendLimits& limits,
                                       const kernels::KernelTable& kernels);

  int64_t size_bytes() const {
    const int64_t slot_bytes = num_layers * 2 * run_elements * int64_t{sizeof(uint16_t)};
    return num_pages * page_bytes + (quantized() ? num_slots * slot_bytes : 0);
  }
  bool quantized() const { return bits != 0; }
  int64_t token_bytes() const { return page_bytes / page_tokens; }
  // Half floats of one slot's or page's layer; the values follow `run_elements` behind the keys.
  uint16_t* keys(int layer) const { return storage.as<uint16_t>() + layer * 2 * run_elements; }
  uint16_t* slot_keys(int slot, int layer) const {
    return reinterpret_cast<uint16_t*>(storage.data() + num_pages * page_bytes) +
           (slot * num_layers + layer) * 2 * run_elements;
  }

  AlignedBuffer storage;
  int bits = 0;  // 4 or 8; 0: half floats
  int page_tokens = 0;
  int64_t num_layers = 0;
  int64_t num_pages = 0;
  int64_t page_bytes = 0;
  int64_t layer_bytes = 0;   // of a quantized page
  int64_t run_elements = 0;  // page_tokens * kv_size
  int num_slots = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_KV_MEMORY_H_
