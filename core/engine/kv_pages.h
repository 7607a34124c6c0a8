#ifndef QUERN_CORE_ENGINE_KV_PAGES_H_
#define QUERN_CORE_ENGINE_KV_PAGES_H_

#include <absl/types/span.h>

#include <cstdint>
#include <vector>

namespace quern {

// Which KV pages of a model are free. The memory behind them is the backend's.
// Thread-compatible: the engine thread's alone.
class KvPagePool {
 public:
  explicit KvPagePool(int num_pages);
  KvPagePool(const KvPagePool&) = delete;
  KvPagePool& operator=(const KvPagePool&) = delete;

  int num_pages() const { return num_pages_; }
  int num_free() const { return static_cast<int>(free_.size()); }

 private:
  friend class PageLease;
  const int num_pages_;
  // A stack: the page freed last, likely still in a cache, is taken first; at the start the lowest,
  // so that an engine with little to do touches little memory.
  std::vector<int32_t> free_;
};

// Pages held by one sequence, in the order of its positions; returned to the pool when destroyed.
// Without pages it leaves the pool alone, so it may be made and destroyed on any thread.
class PageLease {
 public:
  explicit PageLease(KvPagePool* pool) : pool_(pool) {}
  PageLease(const PageLease&) = delete;
  PageLease& operator=(const PageLease&) = delete;
  ~PageLease() { Release(); }

  // Grows to `num_pages`; false, with nothing taken, when the pool has too few.
  bool GrowTo(int num_pages);
  // Returns all pages.
  void Release();
  absl::Span<const int32_t> pages() const { return pages_; }
  int size() const { return static_cast<int>(pages_.size()); }

 private:
  KvPagePool* const pool_;
  std::vector<int32_t> pages_;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_KV_PAGES_H_
