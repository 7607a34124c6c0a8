#include "core/engine/matrix_pool.h"

#include <utility>

namespace quern {

std::shared_ptr<const AlignedBuffer> MatrixPool::Find(const std::string& key) {
  if (key.empty()) return nullptr;
  MutexLock lock(&mutex_);
  const auto it = matrices_.find(key);
  return it == matrices_.end() ? nullptr : it->second.lock();
}

std::shared_ptr<const AlignedBuffer> MatrixPool::Add(const std::string& key,
                                                     std::shared_ptr<const AlignedBuffer> matrix) {
  if (key.empty()) return matrix;
  MutexLock lock(&mutex_);
  std::erase_if(matrices_, [](const auto& element) { return element.second.expired(); });
  std::weak_ptr<const AlignedBuffer>& held = matrices_[key];
  if (auto other = held.lock(); other != nullptr) return other;
  held = matrix;
  return matrix;
}

}  // namespace quern
