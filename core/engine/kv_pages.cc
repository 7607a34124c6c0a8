#include "core/engine/kv_pages.h"

#include <absl/hash/hash.h>
#include <absl/strings/numbers.h>

#include <algorithm>

#include "core/base/log.h"
#include "core/base/sha256.h"

namespace quern {

KvPagePool::KvPagePool(int num_pages, int page_tokens, int num_slots)
    : num_pages_(num_pages),
      page_tokens_(page_tokens),
      pages_(num_pages),
      tokens_(int64_t{num_pages} * page_tokens),
      published_(/*bucket_count=*/0, Hash{this}, Equal{this}) {
  // Here, so that no step has to make room.
  published_.reserve(num_pages);
  free_.reserve(num_pages);
  for (int page = num_pages - 1; page >= 0; --page) free_.push_back(page);
  free_slots_.reserve(num_slots);
  for (int slot = num_slots - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

size_t KvPagePool::Hash::operator()(const Key& key) const {
  return absl::HashOf(key.previous_chain, absl::MakeConstSpan(key.tokens, pool->page_tokens_));
}

bool KvPagePool::Equal::operator()(const Key& a, const Key& b) const {
  return a.previous_chain == b.previous_chain &&
         std::equal(a.tokens, a.tokens + pool->page_tokens_, b.tokens);
}

int32_t KvPagePool::Find(const Key& key) const {
  const auto it = published_.find(key);
  return it == published_.end() ? -1 : *it;
}

int32_t KvPagePool::Take() {
  int32_t page = oldest_idle_;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else {
    UnlinkIdle(page);
    published_.erase(page);
    pages_[page] = {};
  }
  pages_[page].num_holders = 1;
  return page;
}

void KvPagePool::Hold(int32_t page) {
  if (pages_[page].num_holders++ == 0) UnlinkIdle(page);
}

void KvPagePool::Drop(int32_t page) {
  Page& p = pages_[page];
  if (--p.num_holders > 0) return;
  if (p.chain == 0) {
    free_.push_back(page);
    return;
  }
  p.older = newest_idle_;
  (newest_idle_ < 0 ? oldest_idle_ : pages_[newest_idle_].newer) = page;
  newest_idle_ = page;
  ++num_idle_;
}

void KvPagePool::UnlinkIdle(int32_t page) {
  Page& p = pages_[page];
  (p.older < 0 ? oldest_idle_ : pages_[p.older].newer) = p.newer;
  (p.newer < 0 ? newest_idle_ : pages_[p.newer].older) = p.older;
  p.older = p.newer = -1;
  --num_idle_;
}

uint64_t KvPagePool::Publish(int32_t page, const Key& key) {
  if (const int32_t equal = Find(key); equal >= 0) return pages_[equal].chain;
  Page& p = pages_[page];
  p.chain = next_chain_++;
  p.previous_chain = key.previous_chain;
  std::copy_n(key.tokens, page_tokens_, tokens_.begin() + int64_t{page} * page_tokens_);
  published_.insert(page);
  return p.chain;
}

uint64_t PrefixRoot(absl::string_view key) {
  uint64_t root = 0;
  CHECK(absl::SimpleHexAtoi(Sha256Hex(key).substr(0, 16), &root));
  // Pages count from 1 and never get there.
  return root | uint64_t{1} << 63;
}

int PageLease::TakeCached(absl::Span<const int32_t> tokens) {
  if (prefix_root_ == 0) return 0;
  const int page_tokens = pool_->page_tokens();
  while ((size() + 1) * page_tokens < static_cast<int>(tokens.size())) {
    const int32_t page = pool_->Find({chain_, tokens.data() + size() * page_tokens});
    if (page < 0) break;
    pool_->Hold(page);
    pages_.push_back(page);
    chain_ = pool_->pages_[page].chain;
  }
  num_published_ = size();
  return size() * page_tokens;
}

bool PageLease::GrowTo(int num_pages) {
  const int missing = num_pages - size();
  if (missing <= 0 && slot_ >= 0) return true;
  if (missing > pool_->num_free()) return false;
  if (slot_ < 0) {
    if (pool_->free_slots_.empty()) return false;
    slot_ = pool_->free_slots_.back();
    pool_->free_slots_.pop_back();
  }
  for (int i = 0; i < missing; ++i) pages_.push_back(pool_->Take());
  return true;
}

void PageLease::Publish(absl::Span<const int32_t> tokens) {
  if (prefix_root_ == 0) return;
  const int page_tokens = pool_->page_tokens();
  const int whole = static_cast<int>(tokens.size()) / page_tokens;
  for (; num_published_ < whole; ++num_published_) {
    chain_ = pool_->Publish(pages_[num_published_],
                            {chain_, tokens.data() + num_published_ * page_tokens});
  }
}

void PageLease::Release() {
  // A request that was refused ends on its caller's thread, which must not touch the pool.
  if (pages_.empty()) return;
  // The last first, so that it is forgotten before those without which it cannot be found.
  for (auto page = pages_.rbegin(); page != pages_.rend(); ++page) pool_->Drop(*page);
  pages_.clear();
  if (slot_ >= 0) pool_->free_slots_.push_back(slot_);
  slot_ = -1;
  num_published_ = 0;
  chain_ = prefix_root_;
}

}  // namespace quern
