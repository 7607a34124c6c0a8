#include "services/inference/engine_watch.h"

#include <utility>

#include "core/base/log.h"

namespace quern {

EngineWatch::EngineWatch(const Engine& engine, std::function<void(bool)> on_change)
    : engine_(engine), on_change_(std::move(on_change)), thread_([this] { Run(); }) {}

EngineWatch::~EngineWatch() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    stopping_changed_.SignalAll();
  }
  thread_.join();
}

void EngineWatch::Look() {
  MutexLock lock(&mutex_);
  LookLocked();
}

void EngineWatch::Run() {
  MutexLock lock(&mutex_);
  while (!stopping_) {
    LookLocked();
    stopping_changed_.WaitWithTimeout(&mutex_, kLookPeriod);
  }
}

void EngineWatch::LookLocked() {
  const bool getting_on = engine_.Healthy(kStallLimit);
  if (getting_on == getting_on_) return;
  getting_on_ = getting_on;
  if (getting_on) {
    LOG(INFO) << "engine goes on";
  } else {
    LOG(ERROR) << "engine stalled: it has work and has got nowhere for seconds=" << kStallLimit;
  }
  on_change_(getting_on);
}

}  // namespace quern
