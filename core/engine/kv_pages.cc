#include "core/engine/kv_pages.h"

namespace quern {

KvPagePool::KvPagePool(int num_pages) : num_pages_(num_pages) {
  free_.reserve(num_pages);
  for (int page = num_pages - 1; page >= 0; --page) free_.push_back(page);
}

bool PageLease::GrowTo(int num_pages) {
  const int missing = num_pages - size();
  if (missing <= 0) return true;
  if (missing > pool_->num_free()) return false;
  for (int i = 0; i < missing; ++i) {
    pages_.push_back(pool_->free_.back());
    pool_->free_.pop_back();
  }
  return true;
}

void PageLease::Release() {
  // A request that was refused ends on its caller's thread, which must not touch the pool.
  if (pages_.empty()) return;
  pool_->free_.insert(pool_->free_.end(), pages_.rbegin(), pages_.rend());
  pages_.clear();
}

}  // namespace quern
