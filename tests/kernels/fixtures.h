#ifndef QUERN_TESTS_KERNELS_FIXTURES_H_
#define QUERN_TESTS_KERNELS_FIXTURES_H_

// Random matrices, and buffers that tell when a kernel writes where it must not.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/kernels.h"

namespace quern::kernels {

// 64-byte aligned memory of exactly `size` bytes between guard bytes.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(size_t size) : size_(size) {
    memory_ =
        static_cast<uint8_t*>(std::aligned_alloc(64, (size + 2 * kGuardBytes + 63) / 64 * 64));
    std::memset(memory_, kGuard, size + 2 * kGuardBytes);
  }
  ~GuardedBuffer() {
    for (size_t i = 0; i < kGuardBytes; ++i) {
      EXPECT_EQ(memory_[i], kGuard) << "written before the buffer";
      EXPECT_EQ(memory_[kGuardBytes + size_ + i], kGuard) << "written " << i << " past the end";
    }
    std::free(memory_);
  }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  uint8_t* data() { return memory_ + kGuardBytes; }
  size_t size() const { return size_; }

 private:
  static constexpr size_t kGuardBytes = 128;
  static constexpr uint8_t kGuard = 0xa5;
  size_t size_;
  uint8_t* memory_;
};

inline std::vector<float> RandomFloats(size_t n, uint32_t seed, float deviation = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

// A packed matrix that owns its memory.
struct PackedFixture {
  PackedMatrix view;
  std::vector<uint32_t> codes;
  std::vector<uint16_t> scales;
  std::vector<uint32_t> zero_points;
};

// Writes `code` as `index` of a packed sequence that was zero there.
inline void SetCode(std::vector<uint32_t>& words, int bits, int64_t index, uint32_t code) {
  uint32_t* run = words.data() + index / 32 * bits;
  const int j = static_cast<int>(index % 32);
  if (bits == 3) {
    run[j / 16] |= (code & 3) << (j % 16 * 2);
    run[2] |= (code >> 2) << j;
  } else {
    const int per_word = 32 / bits;
    run[j / per_word] |= code << (j % per_word * bits);
  }
}

// Codes and zero points over their whole range; scales about 0.01, half of them negative when
// symmetric.
inline PackedFixture RandomPacked(int bits, int rows, int cols, int group_size, bool symmetric,
                                  uint32_t seed) {
  PackedFixture f;
  f.view = {
      .rows = rows, .cols = cols, .bits = bits, .group_size = group_size, .symmetric = symmetric};
  std::mt19937 random(seed);
  const int64_t num_groups = int64_t{rows} * f.view.num_groups();
  f.codes.resize(static_cast<size_t>(rows * f.view.words_per_row()));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      SetCode(f.codes, bits, row * f.view.words_per_row() * 32 / bits + col,
              random() & ((1u << bits) - 1));
    }
  }
  f.zero_points.resize(static_cast<size_t>(PackedWords(num_groups, bits)));
  for (int64_t i = 0; i < num_groups; ++i) {
    // 0x2000 is 2^-7; the fraction bits vary it, the top bit is the sign.
    f.scales.push_back(
        static_cast<uint16_t>(0x2000 | (random() & 0x3ff) | (symmetric ? random() & 0x8000 : 0)));
    if (!symmetric) SetCode(f.zero_points, bits, i, random() & ((1u << bits) - 1));
  }
  f.view.codes = f.codes.data();
  f.view.scales = f.scales.data();
  f.view.zero_points = symmetric ? nullptr : f.zero_points.data();
  return f;
}

inline PrepackedMatrix Describe(const PackedMatrix& w, const uint8_t* data) {
  return {.rows = w.rows,
          .cols = w.cols,
          .bits = w.bits,
          .group_size = w.group_size,
          .symmetric = w.symmetric,
          .data = data};
}

inline PrepackedMatrix Describe(const DenseMatrix& w, const uint8_t* data) {
  return {.rows = w.rows, .cols = w.cols, .dense_type = w.type, .data = data};
}

}  // namespace quern::kernels

#endif  // QUERN_TESTS_KERNELS_FIXTURES_H_
