#ifndef QUERN_KERNELS_PACKED_MATRIX_H_
#define QUERN_KERNELS_PACKED_MATRIX_H_

// Weight matrices as kernels take them: views of raw memory, row-major, y = x * W^T.

#include <cstddef>
#include <cstdint>

namespace quern {

// The largest group_size: the integer sum of a group, up to 255 * 127 * group_size, fits 32 bits.
inline constexpr int kMaxGroupSize = 65536;

// A quantized matrix in its canonical (on-disk) layout; see core/artifact/README.md.
//
//   w[r][c] = (code[r][c] - zero_point[r][c / group_size]) * scale[r][c / group_size]
//
// codes: rows x words_per_row() 32-bit little-endian words. Each run of 32 codes of a row takes
//   `bits` words, low plane first; a plane of w bits holds code j of the run at bit
//   w * (j % (32 / w)) of its word j / (32 / w). Planes: 2 bits -> 2; 3 -> 2 and 1; 4 -> 4; 8 -> 8.
//   The last run of a row is filled with zeros. No code crosses a word.
// scales: IEEE half, [rows][num_groups()]. May be negative when symmetric.
// zero_points: the flat sequence [rows * num_groups()] packed like one row of codes, each in
//   [0, 2^bits - 1]; null when symmetric, where the zero point is 2^(bits - 1).
//
// The last group of a row is shorter when group_size does not divide cols.
struct PackedMatrix {
  int rows = 0;
  int cols = 0;
  int bits = 0;        // 2, 3, 4 or 8
  int group_size = 0;  // input channels of a group, in [1, min(cols, kMaxGroupSize)]
  bool symmetric = false;
  const uint32_t* codes = nullptr;
  const uint16_t* scales = nullptr;
  const uint32_t* zero_points = nullptr;

  int num_groups() const { return (cols + group_size - 1) / group_size; }
  int64_t words_per_row() const { return int64_t{(cols + 31) / 32} * bits; }
};

// 32-bit words that hold `count` codes of `bits` bits in the plane layout above.
constexpr int64_t PackedWords(int64_t count, int bits) { return (count + 31) / 32 * bits; }

// Reads code `index` of a packed sequence.
constexpr uint32_t UnpackCode(const uint32_t* words, int bits, int64_t index) {
  const uint32_t* run = words + index / 32 * bits;
  const int j = static_cast<int>(index % 32);
  if (bits == 3) {
    return ((run[j / 16] >> (j % 16 * 2)) & 3u) | ((run[2] >> j) & 1u) << 2;
  }
  const int per_word = 32 / bits;
  return (run[j / per_word] >> (j % per_word * bits)) & ((1u << bits) - 1);
}

// A dense matrix, [rows][cols] row-major. `data` need not be aligned to the element.
struct DenseMatrix {
  enum class Type { kF32, kF16, kBF16 };
  Type type = Type::kF32;
  int rows = 0;
  int cols = 0;
  const void* data = nullptr;
};

}  // namespace quern

#endif  // QUERN_KERNELS_PACKED_MATRIX_H_
