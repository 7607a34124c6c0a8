#ifndef QUERN_CORE_ENGINE_ALIGNED_BUFFER_H_
#define QUERN_CORE_ENGINE_ALIGNED_BUFFER_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstddef>
#include <cstdint>

namespace quern {

// Zeroed memory from the system, aligned to a page, in huge pages where the system has them. Parts
// that are never written cost nothing. Movable.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // RESOURCE_EXHAUSTED, naming `what`, when the system has none.
  static absl::StatusOr<AlignedBuffer> Allocate(size_t size_bytes, absl::string_view what);

  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  ~AlignedBuffer();

  uint8_t* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  AlignedBuffer(uint8_t* data, size_t size_bytes) : data_(data), size_bytes_(size_bytes) {}
  uint8_t* data_ = nullptr;
  size_t size_bytes_ = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_ALIGNED_BUFFER_H_
