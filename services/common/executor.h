#ifndef QUERN_SERVICES_COMMON_EXECUTOR_H_
#define QUERN_SERVICES_COMMON_EXECUTOR_H_

#include <absl/base/thread_annotations.h>

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "core/base/mutex.h"

namespace quern {

// A few threads for work that blocks (disk, database): gRPC's own callback threads are two for the
// whole process and must never wait. Thread-safe.
class Executor {
 public:
  // At most `capacity` tasks wait.
  explicit Executor(int num_threads, int capacity = 1024);
  // Runs what waits, then stops.
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // False when the queue is full: answer RESOURCE_EXHAUSTED.
  [[nodiscard]] bool TryPost(std::function<void()> task) ABSL_LOCKS_EXCLUDED(mutex_);

  // Always queues: for steps of work that was admitted before.
  void Post(std::function<void()> task) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);

  const size_t capacity_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_EXECUTOR_H_
