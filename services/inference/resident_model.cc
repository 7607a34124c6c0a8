#include "services/inference/resident_model.h"

#include <utility>

namespace quern {

ResidentModel::ResidentModel(ActiveModel model, Clock& clock)
    : model_(std::move(model)), clock_(clock), unused_since_(clock.Now()) {}

std::shared_ptr<const ActiveModel> ResidentModel::Use() {
  {
    MutexLock lock(&mutex_);
    ++num_uses_;
  }
  return std::shared_ptr<const ActiveModel>(
      &model_, [self = shared_from_this()](const ActiveModel*) { self->EndUse(); });
}

std::optional<absl::Time> ResidentModel::UnusedSince() const {
  MutexLock lock(&mutex_);
  if (num_uses_ > 0) return std::nullopt;
  return unused_since_;
}

void ResidentModel::Close(std::function<void()> on_unused) {
  {
    MutexLock lock(&mutex_);
    if (num_uses_ > 0) {
      on_unused_ = std::move(on_unused);
      return;
    }
  }
  on_unused();
}

void ResidentModel::EndUse() {
  std::function<void()> on_unused;
  {
    MutexLock lock(&mutex_);
    if (--num_uses_ > 0) return;
    unused_since_ = clock_.Now();
    on_unused = std::exchange(on_unused_, nullptr);
  }
  if (on_unused != nullptr) on_unused();
}

}  // namespace quern
