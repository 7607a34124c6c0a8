#include "core/base/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

#include "core/base/log.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quern {
namespace {

// About 20 microseconds: longer than the gaps between the regions of one step, shorter than
// anything that waits for a client.
constexpr int kSpins = 2000;

// Of a slice. Enough that a thread that is held up costs little, few enough that each reads a long
// run of memory.
constexpr int kChunks = 8;

void Relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

// A region is cut into a slice for each thread, a slice into chunks. A thread takes the chunks of
// its own slice one after the other, then helps with those of others; the region is over when all
// are done, so nobody waits for a thread that the system has not let run.
struct ThreadPool::State {
  using Body = absl::FunctionRef<void(int64_t, int64_t)>;

  // What is left of it, in grains: the end in the upper half, the beginning in the lower. One word,
  // so that a thread that comes late takes either a part of the region that is there or nothing;
  // once a part is taken, its region cannot end, and what is said of it stays.
  struct alignas(64) Slice {
    std::atomic<uint64_t> range{0};
  };

  explicit State(int threads) : num_threads(threads), slices(threads) {}

  void Run(int thread) {
    // Told at the end: threads would wait for each other's writes after every chunk.
    int64_t done = 0;
    for (int i = 0; i < num_threads; ++i) done += RunSlice(slices[(thread + i) % num_threads]);
    if (done > 0) grains_left.fetch_sub(done, std::memory_order_release);
  }

  // Returns the grains done.
  int64_t RunSlice(Slice& slice) {
    int64_t done = 0;
    uint64_t range = slice.range.load(std::memory_order_acquire);
    while (true) {
      const auto begin = static_cast<uint32_t>(range);
      const auto end = static_cast<uint32_t>(range >> 32);
      if (begin >= end) return done;
      const uint32_t size = std::min(chunk.load(std::memory_order_relaxed), end - begin);
      if (!slice.range.compare_exchange_weak(range, range + size, std::memory_order_acq_rel,
                                             std::memory_order_acquire)) {
        continue;
      }
      (*body)(begin * grain, std::min(count, (int64_t{begin} + size) * grain));
      done += size;
      range += size;
    }
  }

  void Work(int thread) {
    uint32_t seen = 0;
    while (true) {
      for (int spin = 0; spin < kSpins && region.load(std::memory_order_acquire) == seen; ++spin) {
        Relax();
      }
      if (region.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex);
        ++num_asleep;
        wake.wait(lock, [&] { return region.load() != seen; });
        --num_asleep;
      }
      seen = region.load(std::memory_order_acquire);
      if (stopping.load(std::memory_order_acquire)) return;
      Run(thread);
    }
  }

  // Makes workers see a new region, also those asleep: they say that they are before they look at
  // its number for the last time.
  void Announce() {
    ++region;
    if (num_asleep.load() == 0) return;
    { const std::lock_guard<std::mutex> lock(mutex); }
    wake.notify_all();
  }

  const int num_threads;
  std::vector<Slice> slices;
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::condition_variable wake;
  // Idle threads look at these all the time, so nothing else that is written lies in their line.
  alignas(64) std::atomic<uint32_t> region{0};
  std::atomic<int> num_asleep{0};
  std::atomic<bool> stopping{false};
  // Of the region: written before its slices are.
  alignas(64) int64_t count = 0;
  int64_t grain = 1;
  const Body* body = nullptr;
  std::atomic<uint32_t> chunk{1};
  alignas(64) std::atomic<int64_t> grains_left{0};
};

ThreadPool::ThreadPool(int num_threads) : state_(std::make_unique<State>(num_threads)) {
  CHECK(num_threads >= 1) << "num_threads=" << num_threads;
  for (int thread = 1; thread < num_threads; ++thread) {
    state_->threads.emplace_back([state = state_.get(), thread] { state->Work(thread); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stopping = true;
  state_->Announce();
  for (std::thread& thread : state_->threads) thread.join();
}

int ThreadPool::num_threads() const { return state_->num_threads; }

void ThreadPool::ParallelFor(int64_t count, int64_t grain,
                             absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  if (count <= 0) return;
  if (state_->num_threads == 1 || count <= grain) {
    body(0, count);
    return;
  }
  State& state = *state_;
  const int64_t grains = (count + grain - 1) / grain;
  CHECK(grains <= std::numeric_limits<int32_t>::max()) << "grains=" << grains;
  state.count = count;
  state.grain = grain;
  state.body = &body;
  state.grains_left.store(grains, std::memory_order_relaxed);
  const int64_t chunk = std::max<int64_t>(1, grains / state.num_threads / kChunks);
  state.chunk.store(static_cast<uint32_t>(chunk), std::memory_order_relaxed);
  for (int thread = 0; thread < state.num_threads; ++thread) {
    const int64_t begin = grains * thread / state.num_threads;
    const int64_t end = grains * (thread + 1) / state.num_threads;
    state.slices[thread].range.store(static_cast<uint64_t>(end << 32 | begin),
                                     std::memory_order_release);
  }
  state.Announce();
  state.Run(0);
  for (int spin = 0; state.grains_left.load(std::memory_order_acquire) != 0; ++spin) {
    // With fewer cores than threads, spinning would keep the worker from running.
    if (spin < kSpins) {
      Relax();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace quern
