#include "core/base/thread_pool.h"

#include <atomic>
#include <condition_variable>
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

void Relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

struct ThreadPool::State {
  using Body = absl::FunctionRef<void(int64_t, int64_t)>;

  explicit State(int threads) : num_threads(threads) {}

  // Range of `thread` when [0, count) is split in runs of whole grains.
  void Run(int thread) {
    const int64_t grains = (count + grain - 1) / grain;
    const int64_t begin = grains * thread / num_threads * grain;
    const int64_t end = std::min(count, grains * (thread + 1) / num_threads * grain);
    if (begin < end) (*body)(begin, end);
  }

  void Work(int thread) {
    uint64_t seen = 0;
    while (true) {
      for (int spin = 0; spin < kSpins && generation.load(std::memory_order_acquire) == seen;
           ++spin) {
        Relax();
      }
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
      }
      seen = generation.load(std::memory_order_acquire);
      if (stopping) return;
      Run(thread);
      pending.fetch_sub(1, std::memory_order_release);
    }
  }

  // Makes workers see a new generation, also those asleep.
  void Advance() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
  }

  const int num_threads;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<int> pending{0};
  // Written by the caller before a generation begins, read by workers after they saw it.
  bool stopping = false;
  int64_t count = 0;
  int64_t grain = 1;
  const Body* body = nullptr;
  std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int num_threads) : state_(std::make_unique<State>(num_threads)) {
  CHECK(num_threads >= 1) << "num_threads=" << num_threads;
  for (int thread = 1; thread < num_threads; ++thread) {
    state_->threads.emplace_back([state = state_.get(), thread] { state->Work(thread); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stopping = true;
  state_->Advance();
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
  state_->count = count;
  state_->grain = grain;
  state_->body = &body;
  state_->pending.store(state_->num_threads - 1, std::memory_order_relaxed);
  state_->Advance();
  state_->Run(0);
  for (int spin = 0; state_->pending.load(std::memory_order_acquire) != 0; ++spin) {
    // With fewer cores than threads, spinning would keep the worker from running.
    if (spin < kSpins) {
      Relax();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace quern
