#ifndef QUERN_SERVICES_INFERENCE_ENGINE_WATCH_H_
#define QUERN_SERVICES_INFERENCE_ENGINE_WATCH_H_

#include <absl/base/thread_annotations.h>
#include <absl/time/time.h>

#include <functional>
#include <thread>

#include "core/base/mutex.h"
#include "core/engine/engine.h"

namespace quern {

// An engine that has got nowhere for so long is stalled. Looks come often enough that it is known
// within 5 seconds.
inline constexpr absl::Duration kStallLimit = absl::Seconds(4);
inline constexpr absl::Duration kLookPeriod = absl::Milliseconds(500);

// Looks, on a thread of its own, whether the engine gets on. Thread-safe.
class EngineWatch {
 public:
  // `on_change` is called with false when the engine has stalled and with true when it goes on, by
  // one thread at a time; it and `engine` outlive the watch.
  EngineWatch(const Engine& engine, std::function<void(bool getting_on)> on_change);
  // No call of `on_change` is under way or comes any more.
  ~EngineWatch();
  EngineWatch(const EngineWatch&) = delete;
  EngineWatch& operator=(const EngineWatch&) = delete;

  // A look between those of the thread.
  void Look() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  void LookLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Engine& engine_;
  const std::function<void(bool)> on_change_;
  Mutex mutex_;
  CondVar stopping_changed_;
  bool getting_on_ ABSL_GUARDED_BY(mutex_) = true;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_ENGINE_WATCH_H_
