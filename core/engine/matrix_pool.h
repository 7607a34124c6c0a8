#ifndef QUERN_CORE_ENGINE_MATRIX_POOL_H_
#define QUERN_CORE_ENGINE_MATRIX_POOL_H_

#include <absl/base/thread_annotations.h>

#include <map>
#include <memory>
#include <string>

#include "core/base/mutex.h"
#include "core/engine/aligned_buffer.h"

namespace quern {

// The prepacked matrices that models hold, by identity, so that models that have one in common (a
// scale delta and its base) hold it once. Thread-safe.
class MatrixPool {
 public:
  // Null when no model holds it, and for an empty key.
  std::shared_ptr<const AlignedBuffer> Find(const std::string& key) ABSL_LOCKS_EXCLUDED(mutex_);

  // Lets others find `matrix` as long as a model holds it. Returns the one to be used: another load
  // may have been faster. An empty key is not kept.
  std::shared_ptr<const AlignedBuffer> Add(const std::string& key,
                                           std::shared_ptr<const AlignedBuffer> matrix)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  Mutex mutex_;
  std::map<std::string, std::weak_ptr<const AlignedBuffer>> matrices_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_MATRIX_POOL_H_
