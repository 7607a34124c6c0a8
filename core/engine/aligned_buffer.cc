#include "core/engine/aligned_buffer.h"

#include <absl/strings/str_cat.h>
#include <sys/mman.h>

#include <utility>

namespace quern {

absl::StatusOr<AlignedBuffer> AlignedBuffer::Allocate(size_t size_bytes, absl::string_view what) {
  if (size_bytes == 0) return AlignedBuffer();
  void* data =
      mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for ", what, ": ", size_bytes, " bytes wanted"));
  }
  // Only advice: without huge pages everything works, with more misses of the TLB.
  madvise(data, size_bytes, MADV_HUGEPAGE);
  return AlignedBuffer(static_cast<uint8_t*>(data), size_bytes);
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr) munmap(data_, size_bytes_);
}

}  // namespace quern
