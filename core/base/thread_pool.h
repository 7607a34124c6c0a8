#ifndef QUERN_CORE_BASE_THREAD_POOL_H_
#define QUERN_CORE_BASE_THREAD_POOL_H_

#include <absl/functional/function_ref.h>

#include <cstdint>
#include <memory>

namespace quern {

// A fixed team for short parallel regions: workers spin briefly between regions, then sleep. Who is
// done helps the others.
// One region at a time; call from one thread.
class ThreadPool {
 public:
  // `num_threads` >= 1 counts the calling thread, which works too.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Calls body(begin, end) for disjoint ranges that together are [0, count), every range but the
  // last a multiple of `grain`; returns when all are done. Several ranges may go to one thread.
  void ParallelFor(int64_t count, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace quern

#endif  // QUERN_CORE_BASE_THREAD_POOL_H_
