#include "services/quantizer/cancellation.h"

#include <utility>

namespace quern {

void Cancellation::Request() {
  requested_ = true;
  MutexLock lock(&mutex_);
  if (interrupt_) interrupt_();
}

absl::Status Cancellation::Check() const {
  if (!requested_) return absl::OkStatus();
  return absl::CancelledError("the run was asked to stop");
}

Cancellation::Scope::Scope(Cancellation& cancellation, std::function<void()> interrupt)
    : cancellation_(cancellation) {
  MutexLock lock(&cancellation_.mutex_);
  cancellation_.interrupt_ = std::move(interrupt);
  if (cancellation_.requested_) cancellation_.interrupt_();
}

Cancellation::Scope::~Scope() {
  MutexLock lock(&cancellation_.mutex_);
  cancellation_.interrupt_ = nullptr;
}

}  // namespace quern
