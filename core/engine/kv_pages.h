#ifndef QUERN_CORE_ENGINE_KV_PAGES_H_
#define QUERN_CORE_ENGINE_KV_PAGES_H_

#include <absl/container/flat_hash_set.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace quern {

// Which KV pages of a model are free, and which hold the keys and values of known tokens. The
// memory behind them is the backend's.
//
// A whole page whose tokens are computed can be published. It is then found by its tokens and all
// those before it, compared one by one, so that a page never serves other tokens; it is shared by
// those who find it, and stays findable after the last of them is gone, until its room is needed.
// Pages that are shared are never written: sequences write behind their last whole page.
//
// Thread-compatible: the engine thread's alone.
class KvPagePool {
 public:
  // `num_slots`: how many leases can have pages at once; each has a slot of its own meanwhile.
  KvPagePool(int num_pages, int page_tokens, int num_slots);
  KvPagePool(const KvPagePool&) = delete;
  KvPagePool& operator=(const KvPagePool&) = delete;

  int num_pages() const { return num_pages_; }
  int page_tokens() const { return page_tokens_; }
  // That can be had now: nobody holds them.
  int num_free() const { return static_cast<int>(free_.size()) + num_idle_; }
  // Of these, the ones that can still be found by their tokens.
  int num_cached() const { return num_idle_; }

 private:
  friend class PageLease;

  // What a page is found by. A chain names a page's tokens together with all before them: each
  // published page has its own, the first follows a root.
  struct Key {
    uint64_t previous_chain;
    const int32_t* tokens;  // [page_tokens]
  };
  struct Page {
    int num_holders = 0;
    uint64_t chain = 0;  // 0: not published
    uint64_t previous_chain = 0;
    // Neighbours among the idle ones, or -1.
    int32_t older = -1;
    int32_t newer = -1;
  };
  struct Hash {
    using is_transparent = void;
    const KvPagePool* pool;
    size_t operator()(const Key& key) const;
    size_t operator()(int32_t page) const { return (*this)(pool->KeyOf(page)); }
  };
  struct Equal {
    using is_transparent = void;
    const KvPagePool* pool;
    bool operator()(const Key& a, const Key& b) const;
    bool operator()(int32_t a, int32_t b) const { return a == b; }
    bool operator()(int32_t a, const Key& b) const { return (*this)(pool->KeyOf(a), b); }
    bool operator()(const Key& a, int32_t b) const { return (*this)(a, pool->KeyOf(b)); }
  };

  Key KeyOf(int32_t page) const {
    return {pages_[page].previous_chain, tokens_.data() + int64_t{page} * page_tokens_};
  }
  // The published page of these tokens, or -1.
  int32_t Find(const Key& key) const;
  // A page that nobody holds; there is one. The one idle for longest is forgotten when no other is
  // left.
  int32_t Take();
  void Hold(int32_t page);
  void Drop(int32_t page);
  // Makes `page`, held and not published, findable. Returns its chain; when an equal one is there
  // already, that one's.
  uint64_t Publish(int32_t page, const Key& key);
  void UnlinkIdle(int32_t page);

  const int num_pages_;
  const int page_tokens_;
  std::vector<Page> pages_;
  std::vector<int32_t> tokens_;  // [num_pages, page_tokens], of published pages
  // A stack: the page freed last, likely still in a cache, is taken first; at the start the lowest,
  // so that an engine with little to do touches little memory.
  std::vector<int32_t> free_;
  std::vector<int> free_slots_;  // a stack too
  absl::flat_hash_set<int32_t, Hash, Equal> published_;
  // Published pages that nobody holds, from the one idle for longest.
  int32_t oldest_idle_ = -1;
  int32_t newest_idle_ = -1;
  int num_idle_ = 0;
  uint64_t next_chain_ = 1;
};

// Where the chains of those begin that may share pages: a function of `key` (a principal), never 0
// or that of a page. SHA-256, so that nobody can make a key that meets another's.
uint64_t PrefixRoot(absl::string_view key);

// Pages held by one sequence, in the order of its positions; returned to the pool when destroyed.
// Without pages it leaves the pool alone, so it may be made and destroyed on any thread.
class PageLease {
 public:
  // `prefix_root` 0: finds no pages and publishes none.
  PageLease(KvPagePool* pool, uint64_t prefix_root)
      : pool_(pool), prefix_root_(prefix_root), chain_(prefix_root) {}
  PageLease(const PageLease&) = delete;
  PageLease& operator=(const PageLease&) = delete;
  ~PageLease() { Release(); }

  // While it has no pages: takes those that hold the beginning of `tokens` already, though never
  // all of them, since the last token's logits are to be computed. Returns how many tokens that is.
  int TakeCached(absl::Span<const int32_t> tokens);
  // Grows to `num_pages`; false, with nothing taken, when the pool has too few, or no slot for one
  // that has none yet.
  bool GrowTo(int num_pages);
  // Publishes the whole pages of `tokens`, of which the keys and values are there.
  void Publish(absl::Span<const int32_t> tokens);
  // Returns all pages.
  void Release();
  absl::Span<const int32_t> pages() const { return pages_; }
  // The backend's BatchRun::slot; -1 before GrowTo.
  int slot() const { return slot_; }
  int size() const { return static_cast<int>(pages_.size()); }

 private:
  KvPagePool* const pool_;
  const uint64_t prefix_root_;
  std::vector<int32_t> pages_;
  int slot_ = -1;
  int num_published_ = 0;  // leading pages that are published, or equal to one that is
  uint64_t chain_;         // of the last of them
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_KV_PAGES_H_
