#ifndef QUERN_SERVICES_INFERENCE_RESIDENT_MODEL_H_
#define QUERN_SERVICES_INFERENCE_RESIDENT_MODEL_H_

#include <absl/base/thread_annotations.h>
#include <absl/time/time.h>

#include <functional>
#include <memory>
#include <optional>

#include "core/base/clock.h"
#include "core/base/mutex.h"
#include "services/inference/active_model.h"

namespace quern {

// A model in the engine and who uses it. A request holds a use from when it found the model until
// it has ended, so that a model is taken out of memory only when nobody is on the way to it.
// Thread-safe; a use may outlive the registry, but not the clock.
class ResidentModel : public std::enable_shared_from_this<ResidentModel> {
 public:
  // In use by nobody since now.
  ResidentModel(ActiveModel model, Clock& clock);

  const ActiveModel& model() const { return model_; }

  // A use; it ends when the last copy of the pointer goes. Not after Close.
  std::shared_ptr<const ActiveModel> Use() ABSL_LOCKS_EXCLUDED(mutex_);

  // When the last use ended; nothing while there is one.
  std::optional<absl::Time> UnusedSince() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Calls `on_unused` once when no use is left: at once, or on the thread that ends the last. Once
  // only.
  void Close(std::function<void()> on_unused) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void EndUse() ABSL_LOCKS_EXCLUDED(mutex_);

  const ActiveModel model_;
  Clock& clock_;
  mutable Mutex mutex_;
  int num_uses_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time unused_since_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> on_unused_ ABSL_GUARDED_BY(mutex_);  // from Close to the last use's end
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_RESIDENT_MODEL_H_
