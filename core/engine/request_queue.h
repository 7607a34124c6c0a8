#ifndef QUERN_CORE_ENGINE_REQUEST_QUEUE_H_
#define QUERN_CORE_ENGINE_REQUEST_QUEUE_H_

#include <absl/status/status.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <absl/types/span.h>

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/mutex.h"
#include "core/engine/admission.h"
#include "core/engine/event.h"
#include "core/engine/sequence.h"

namespace quern {

class ServedModel;

// What others want of the engine thread, in the order they asked.
struct Inbox {
  std::vector<std::pair<ServedModel*, std::unique_ptr<Sequence>>> sequences;
  std::vector<ServedModel*> loaded;
  // Notified when the model has ended its sequences and the engine thread has let go of it.
  std::vector<std::pair<ServedModel*, Event*>> unloads;
  bool end_all = false;  // end every sequence now
  bool stop = false;     // and the thread
};

// Requests on their way to the engine thread, and how many are on their way through it.
// Thread-safe.
class RequestQueue {
 public:
  explicit RequestQueue(const AdmissionLimits& limits) : admission_(limits) {}

  // Whether a request of `tokens` may come: OK, RESOURCE_EXHAUSTED (see Admission) or UNAVAILABLE,
  // when closed. How long it would wait counts only for a model.
  absl::Status Check(const ServedModel* model, absl::string_view principal, Priority priority,
                     int64_t tokens) const;
  // The same for `sequence`, and takes it.
  absl::Status Push(ServedModel* model, std::unique_ptr<Sequence> sequence);
  void PushLoaded(ServedModel* model);
  void PushUnload(ServedModel* model, Event* done);

  // Takes all there is; with `wait`, blocks until there is something.
  Inbox Take(bool wait);
  // These have ended and give back their places; their sinks hear of it next.
  void ReleasePlaces(absl::Span<const EndedSequence> ended);
  // Their sinks have heard of it.
  void MarkEnded(int count);

  // Refuses requests from now on.
  void Close();
  // Waits until no request is unended; false when that takes longer than `timeout`.
  bool WaitUntilIdle(absl::Duration timeout);
  // Makes the engine thread end all sequences, or end itself.
  void EndAll();
  void Stop();

  // What the engine thread holds of a model and how fast it is, without what it has not taken yet.
  void SetLoad(const ServedModel* model, const EngineLoad& load);
  // The model has gone.
  void ForgetLoad(const ServedModel* model);

  // Tokens of the requests that hold a place.
  int64_t num_tokens() const;
  // Requests that the engine thread has not taken yet.
  int num_queued() const;
  // Requests whose sinks have not heard of their end.
  int num_unended() const;

 private:
  absl::Status CheckLocked(const ServedModel* model, absl::string_view principal, Priority priority,
                           int64_t tokens) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasInboxLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable Mutex mutex_;
  CondVar inbox_filled_;
  CondVar became_idle_;
  Inbox inbox_ ABSL_GUARDED_BY(mutex_);
  std::map<const ServedModel*, EngineLoad> loads_ ABSL_GUARDED_BY(mutex_);
  Admission admission_ ABSL_GUARDED_BY(mutex_);
  int num_unended_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_REQUEST_QUEUE_H_
