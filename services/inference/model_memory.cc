// Which of ModelRegistry's models are in memory.

#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "services/inference/model_registry.h"

namespace quern {
namespace {

using inference::v1::Model;

// How often the sweeper looks: often enough beside the timeout, and at most a hundred times a
// second.
absl::Duration SweepPeriod(absl::Duration idle_timeout) {
  return std::clamp(idle_timeout / 4, absl::Milliseconds(10), absl::Seconds(1));
}

// Rounded up.
std::string Mib(int64_t bytes) {
  return absl::StrCat(bytes / (1 << 20) + (bytes % (1 << 20) > 0 ? 1 : 0), " MiB");
}

}  // namespace

int64_t ModelRegistry::FreeBytes() const {
  int64_t free_bytes = options_.memory_bytes - evicting_bytes_;
  for (const auto& [id, entry] : entries_) free_bytes -= entry.reserved_bytes;
  return free_bytes;
}

int64_t ModelRegistry::EvictableBytes() const {
  int64_t bytes = 0;
  if (!options_.evict_for_memory) return bytes;
  for (const auto& [id, entry] : entries_) {
    if (entry.resident != nullptr && entry.resident->UnusedSince().has_value()) {
      bytes += entry.reserved_bytes;
    }
  }
  return bytes;
}

void ModelRegistry::TellMemory() {
  metrics_.SetModelMemory(options_.memory_bytes - FreeBytes(), options_.memory_bytes);
}

absl::Status ModelRegistry::CheckMemory(const std::string& id, const ModelMemory& need) const {
  const int64_t free_bytes = std::max<int64_t>(0, FreeBytes());
  // What is being evicted will be free soon.
  if (need.total_bytes() <= FreeBytes() + EvictableBytes() + evicting_bytes_) {
    return absl::OkStatus();
  }
  std::vector<std::string> others;
  for (const auto& [other, entry] : entries_) {
    if (other == id || entry.reserved_bytes == 0) continue;
    const bool unused = entry.resident != nullptr && entry.resident->UnusedSince().has_value();
    others.push_back(absl::StrCat("models/", other, " (", Mib(entry.reserved_bytes),
                                  unused ? ", unused)" : ", in use)"));
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "models/", id, " needs ", Mib(need.total_bytes()), " of memory (weights ",
      Mib(need.weight_bytes), ", KV pages ", Mib(need.kv_bytes), ", buffers ",
      Mib(need.workspace_bytes), "), ", Mib(free_bytes), " of ", Mib(options_.memory_bytes),
      " are free; ",
      others.empty() ? "take a smaller --kv-cache-mib or a larger --model-memory-mib"
                     : absl::StrCat("unload one of ", absl::StrJoin(others, ", "),
                                    ", or start the server with a smaller --kv-cache-mib or a "
                                    "larger --model-memory-mib")));
}

absl::Status ModelRegistry::Reserve(const std::string& id, const ModelMemory& need) {
  while (true) {
    Eviction eviction;
    {
      MutexLock lock(&mutex_);
      Entry& entry = entries_.at(id);
      // It may be on its way out of memory still, under the same name.
      while (entry.evicting) evicted_.Wait(&mutex_);
      entry.reserved_bytes = 0;
      if (need.total_bytes() <= FreeBytes()) {
        entry.reserved_bytes = need.total_bytes();
        TellMemory();
        return absl::OkStatus();
      }
      if (const absl::Status status = CheckMemory(id, need); !status.ok()) return status;
      const auto unused =
          options_.evict_for_memory ? FindUnused(absl::InfiniteFuture()) : entries_.end();
      if (unused == entries_.end()) {
        // Others are evicting what will be enough, or has just become enough.
        if (evicting_bytes_ > 0) evicted_.Wait(&mutex_);
        continue;
      }
      eviction = BeginEviction(unused->first, unused->second, EvictionReason::kMemory);
    }
    FinishEviction(eviction);
  }
}

std::map<std::string, ModelRegistry::Entry>::iterator ModelRegistry::FindUnused(absl::Time before) {
  auto found = entries_.end();
  absl::Time oldest = before;
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    if (it->second.resident == nullptr) continue;
    const std::optional<absl::Time> since = it->second.resident->UnusedSince();
    if (since.has_value() && *since <= oldest) {
      oldest = *since;
      found = it;
    }
  }
  return found;
}

ModelRegistry::Eviction ModelRegistry::BeginEviction(const std::string& id, Entry& entry,
                                                     EvictionReason reason) {
  Eviction eviction{.id = id,
                    .handle = entry.resident->model().handle,
                    .bytes = std::exchange(entry.reserved_bytes, 0),
                    .reason = reason};
  evicting_bytes_ += eviction.bytes;
  entry.evicting = true;
  // Nobody uses it, and nobody can begin to without the lock.
  entry.resident = nullptr;
  entry.model.set_state(Model::IDLE);
  entry.model.set_memory_bytes(0);
  entry.model.set_shared_memory_bytes(0);
  return eviction;
}

void ModelRegistry::FinishEviction(const Eviction& eviction) {
  const absl::Status status = engine_.Unload(eviction.handle);
  metrics_.ModelUnloaded(eviction.id);
  metrics_.ModelEvicted(eviction.reason);
  LOG(INFO) << "model evicted model=" << eviction.id << " bytes=" << eviction.bytes
            << " reason=" << EvictionReasonName(eviction.reason) << " status=" << status;
  {
    MutexLock lock(&mutex_);
    evicting_bytes_ -= eviction.bytes;
    // Gone when it was deleted meanwhile.
    if (const auto it = entries_.find(eviction.id); it != entries_.end()) {
      it->second.evicting = false;
    }
    TellMemory();
  }
  evicted_.SignalAll();
}

void ModelRegistry::RunIdleSweeper() {
  const absl::Duration period = SweepPeriod(options_.idle_timeout);
  while (true) {
    Eviction eviction;
    {
      MutexLock lock(&mutex_);
      auto idle = entries_.end();
      while (!stopping_ && idle == entries_.end()) {
        stop_sweeper_.WaitWithTimeout(&mutex_, period);
        idle = FindUnused(clock_.Now() - options_.idle_timeout);
      }
      if (stopping_) return;
      eviction = BeginEviction(idle->first, idle->second, EvictionReason::kIdle);
    }
    FinishEviction(eviction);
  }
}

}  // namespace quern
