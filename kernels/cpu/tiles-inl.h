// Prepacked matrices.
//
// Packed: blocks of 32 rows, inside them groups in ascending order, each a tile:
//   scales      32 halves
//   zero points 32 bytes, absent when symmetric
//   codes       chunks of 32 input channels (the last filled with zeros), 128 * bits bytes each:
//               64 * bits bytes of rows 0-15, then those of rows 16-31
// So a thread reads one linear stream. A chunk of 16 rows is `bits` lines of 64 bytes; byte
// 4 * r + j of a line belongs to row r and to channel 4 * s + j, where step s of 8 lies
//   2 bits: line s / 4, bits 2 * (s % 4) and up        4 bits: line s / 2, bits 4 * (s % 2) and up
//   8 bits: line s
//   3 bits: steps 0-5 in pairs at bits 0 and 3 of lines 0, 1, 2; the two bits left in each byte
//           hold step 6 (line 0: its low two bits; line 1, bit 6: its top bit) and step 7
//           (line 1, bit 7: its low bit; line 2: its top two bits)
// Four channels of eight rows are one vector, multiplied by four activations in every lane: sums
// stay in their row's lane.
//
// Dense: blocks of 32 rows as two panels of 16, each [cols][16] in the matrix's own type.

constexpr int kPanelRows = 16;
constexpr int kChunk = 32;  // input channels
constexpr int kStepsPerChunk = 8;
constexpr int kScaleBytes = kRowBlock * 2;

QUERN_INLINE int MinInt(int a, int b) { return a < b ? a : b; }
QUERN_INLINE int MaxInt(int a, int b) { return a > b ? a : b; }
QUERN_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the groups of a matrix, and so of its activations, lie.
struct Groups {
  Groups(int cols, int group_size)
      : count(static_cast<int>(CeilDiv(cols, group_size))),
        full_chunks(static_cast<int>(CeilDiv(group_size, kChunk))),
        last_chunks(static_cast<int>(CeilDiv(cols - (count - 1) * int64_t{group_size}, kChunk))) {}
  int chunks(int group) const { return group + 1 < count ? full_chunks : last_chunks; }
  int64_t total_chunks() const { return int64_t{count - 1} * full_chunks + last_chunks; }

  int count;
  int full_chunks;
  int last_chunks;
};

struct TileLayout {
  TileLayout(int cols, int group_size, int bits, bool symmetric)
      : groups(cols, group_size),
        header_bytes(symmetric ? kScaleBytes : kScaleBytes + kRowBlock),
        chunk_bytes(kRowBlock * kChunk / 8 * bits) {}
  int64_t block_bytes() const {
    return int64_t{groups.count} * header_bytes + groups.total_chunks() * chunk_bytes;
  }

  Groups groups;
  int header_bytes;
  int chunk_bytes;
};

// --- Packing -----------------------------------------------------------------------------------

// Code `index` of a packed sequence (kernels/packed_matrix.h).
template <int kBits>
QUERN_INLINE uint32_t ReadCode(const uint32_t* words, int64_t index) {
  const uint32_t* run = words + index / 32 * kBits;
  const int j = static_cast<int>(index % 32);
  if constexpr (kBits == 3) {
    return (run[j / 16] >> (j % 16 * 2) & 3u) | (run[2] >> j & 1u) << 2;
  } else {
    constexpr int kPerWord = 32 / kBits;
    return run[j / kPerWord] >> (j % kPerWord * kBits) & ((1u << kBits) - 1);
  }
}

// Four codes that lie next to each other in the low bits of x, one to a byte.
template <int kBits>
QUERN_INLINE uint32_t SpreadFour(uint32_t x) {
  constexpr uint32_t kOnes = 0x01010101u;
  if constexpr (kBits == 8) {
    return x;
  } else {
    // Two to a half, then one to a byte.
    x &= (1u << 4 * kBits) - 1;
    x = (x | x << (16 - 2 * kBits)) & ((1u << 2 * kBits) - 1) * 0x00010001u;
    return (x | x << (8 - kBits)) & ((1u << kBits) - 1) * kOnes;
  }
}

// The steps of one run of 32 codes, which is a chunk where groups are whole runs.
template <int kBits>
QUERN_INLINE void ReadSteps(const uint32_t* run, uint32_t (&step)[kStepsPerChunk]) {
  for (int s = 0; s < kStepsPerChunk; ++s) {
    if constexpr (kBits == 3) {
      step[s] = SpreadFour<2>(run[s / 4] >> (s % 4 * 8)) | SpreadFour<1>(run[2] >> (s * 4)) << 2;
    } else {
      constexpr int kPerWord = 8 / kBits;
      step[s] = SpreadFour<kBits>(run[s / kPerWord] >> (s % kPerWord * kBits * 4));
    }
  }
}

// Puts the codes of one row, four to a step's 32-bit word, into the row's lane of the lines.
template <int kBits>
QUERN_INLINE void WriteSteps(const uint32_t (&step)[kStepsPerChunk], uint8_t* lane) {
  uint32_t line[kBits] = {};
  if constexpr (kBits == 3) {
    constexpr uint32_t kOne = 0x01010101u, kThree = 0x03030303u;
    line[0] = step[0] | step[1] << 3 | (step[6] & kThree) << 6;
    line[1] = step[2] | step[3] << 3 | (step[6] >> 2 & kOne) << 6 | (step[7] & kOne) << 7;
    line[2] = step[4] | step[5] << 3 | (step[7] >> 1 & kThree) << 6;
  } else {
    constexpr int kFields = 8 / kBits;
    for (int s = 0; s < kStepsPerChunk; ++s) line[s / kFields] |= step[s] << (s % kFields * kBits);
  }
  for (int i = 0; i < kBits; ++i) __builtin_memcpy(lane + 64 * i, &line[i], sizeof(line[i]));
}

// The inverse, of one code: channel `k` of the chunk, in the lane of its row.
template <int kBits>
QUERN_INLINE int ReadLane(const uint8_t* lane, int k) {
  const uint8_t* byte = lane + k % 4;
  const int step = k / 4;
  if constexpr (kBits == 3) {
    if (step < 6) return byte[64 * (step / 2)] >> (step % 2 * 3) & 7;
    if (step == 6) return (byte[0] >> 6 & 3) | (byte[64] >> 4 & 4);
    return (byte[64] >> 7 & 1) | (byte[128] >> 5 & 6);
  } else {
    constexpr int kFields = 8 / kBits;
    return byte[64 * (step / kFields)] >> (step % kFields * kBits) & ((1 << kBits) - 1);
  }
}

QUERN_INLINE int64_t LaneOffset(int lane, int bits) {
  return lane / kPanelRows * (64 * bits) + lane % kPanelRows * 4;
}

template <int kBits>
void PrepackRow(const PackedMatrix& w, const TileLayout& layout, int row, uint8_t* block) {
  const int lane = row % kRowBlock;
  const bool padding = row >= w.rows;
  const uint32_t* codes = padding ? nullptr : w.codes + int64_t{row} * CeilDiv(w.cols, 32) * kBits;
  uint8_t* tile = block;
  for (int group = 0; group < layout.groups.count; ++group) {
    const int64_t index = int64_t{row} * layout.groups.count + group;
    const uint16_t scale = padding ? 0 : w.scales[index];
    __builtin_memcpy(tile + 2 * lane, &scale, sizeof(scale));
    if (!w.symmetric) {
      tile[kScaleBytes + lane] =
          padding ? 0 : static_cast<uint8_t>(ReadCode<kBits>(w.zero_points, index));
    }
    tile += layout.header_bytes;
    const int begin = group * w.group_size;
    const int end = padding ? begin : MinInt(w.cols - begin, w.group_size) + begin;
    for (int chunk = 0; chunk < layout.groups.chunks(group); ++chunk) {
      const int first = begin + chunk * kChunk;
      const int count = MinInt(kChunk, end - first);
      uint32_t step[kStepsPerChunk] = {};
      if (count == kChunk && first % kChunk == 0) {
        ReadSteps<kBits>(codes + first / kChunk * kBits, step);
      } else {
        for (int k = 0; k < count; ++k) {
          step[k / 4] |= ReadCode<kBits>(codes, first + k) << (k % 4 * 8);
        }
      }
      WriteSteps<kBits>(step, tile + LaneOffset(lane, kBits));
      tile += layout.chunk_bytes;
    }
  }
}

template <int kBits>
void PrepackRows(const PackedMatrix& w, int row_begin, int row_end, uint8_t* out) {
  const TileLayout layout(w.cols, w.group_size, kBits, w.symmetric);
  const int64_t padded_end = CeilDiv(row_end, kRowBlock) * kRowBlock;
  for (int64_t row = row_begin; row < padded_end; ++row) {
    PrepackRow<kBits>(w, layout, static_cast<int>(row),
                      out + row / kRowBlock * layout.block_bytes());
  }
}

size_t PrepackedBytes(const PackedMatrix& w) {
  const TileLayout layout(w.cols, w.group_size, w.bits, w.symmetric);
  return static_cast<size_t>(CeilDiv(w.rows, kRowBlock) * layout.block_bytes());
}

void Prepack(const PackedMatrix& w, int row_begin, int row_end, uint8_t* out) {
  switch (w.bits) {
#define QUERN_CASE(bits) \
  case bits:             \
    return PrepackRows<bits>(w, row_begin, row_end, out);
    QUERN_FOR_EACH_WIDTH(QUERN_CASE)
#undef QUERN_CASE
  }
  __builtin_unreachable();
}

// --- Dense -------------------------------------------------------------------------------------

QUERN_INLINE int ElementBytes(DenseMatrix::Type type) {
  return type == DenseMatrix::Type::kF32 ? 4 : 2;
}

size_t PrepackedDenseBytes(const DenseMatrix& w) {
  return static_cast<size_t>(CeilDiv(w.rows, kRowBlock) * kRowBlock * w.cols *
                             ElementBytes(w.type));
}

template <typename T>
void PrepackDenseRows(const DenseMatrix& w, int row_begin, int row_end, uint8_t* out) {
  constexpr int64_t kSize = sizeof(T);
  const int64_t padded_end = CeilDiv(row_end, kRowBlock) * kRowBlock;
  for (int64_t row = row_begin; row < padded_end; row += kPanelRows) {
    uint8_t* to = out + row * w.cols * kSize;
    for (int64_t k = 0; k < w.cols; ++k) {
      for (int64_t r = row; r < row + kPanelRows; ++r, to += kSize) {
        T value = 0;
        if (r < w.rows) {
          const uint8_t* from = static_cast<const uint8_t*>(w.data) + (r * w.cols + k) * kSize;
          __builtin_memcpy(&value, from, kSize);
        }
        __builtin_memcpy(to, &value, kSize);
      }
    }
  }
}

void PrepackDense(const DenseMatrix& w, int row_begin, int row_end, uint8_t* out) {
  if (w.type == DenseMatrix::Type::kF32) {
    PrepackDenseRows<uint32_t>(w, row_begin, row_end, out);
  } else {
    PrepackDenseRows<uint16_t>(w, row_begin, row_end, out);
  }
}

// --- Rows back ---------------------------------------------------------------------------------

QUERN_INLINE float HalfToFloat(const uint8_t* p) {
  uint16_t run[8] = {};
  __builtin_memcpy(run, p, sizeof(run[0]));
  float out[8];
  Store(LoadHalf(run), out);
  return out[0];
}

template <int kBits>
void GetPackedRow(const PrepackedMatrix& w, int row, float* out) {
  const TileLayout layout(w.cols, w.group_size, kBits, w.symmetric);
  const int lane = row % kRowBlock;
  const uint8_t* tile = w.data + row / kRowBlock * layout.block_bytes();
  for (int group = 0; group < layout.groups.count; ++group) {
    const float scale = HalfToFloat(tile + 2 * lane);
    const int zero_point = w.symmetric ? 1 << (kBits - 1) : tile[kScaleBytes + lane];
    tile += layout.header_bytes;
    const int begin = group * w.group_size;
    const int end = begin + MinInt(w.cols - begin, w.group_size);
    for (int k = begin; k < end; ++k) {
      const uint8_t* chunk = tile + (k - begin) / kChunk * layout.chunk_bytes;
      const int code = ReadLane<kBits>(chunk + LaneOffset(lane, kBits), (k - begin) % kChunk);
      out[k] = static_cast<float>(code - zero_point) * scale;
    }
    tile += layout.groups.chunks(group) * layout.chunk_bytes;
  }
}

void GetDenseRow(const PrepackedMatrix& w, int row, float* out) {
  const int size = ElementBytes(w.dense_type);
  const uint8_t* panel = w.data + int64_t{row / kPanelRows} * kPanelRows * w.cols * size;
  for (int64_t k = 0; k < w.cols; ++k) {
    const uint8_t* from = panel + (k * kPanelRows + row % kPanelRows) * size;
    if (w.dense_type == DenseMatrix::Type::kF32) {
      __builtin_memcpy(out + k, from, sizeof(float));
    } else if (w.dense_type == DenseMatrix::Type::kF16) {
      out[k] = HalfToFloat(from);
    } else {
      uint16_t half;
      __builtin_memcpy(&half, from, sizeof(half));
      const uint32_t bits = static_cast<uint32_t>(half) << 16;
      __builtin_memcpy(out + k, &bits, sizeof(bits));
    }
  }
}

void GetRow(const PrepackedMatrix& w, int row, float* out) {
  switch (w.bits) {
    case 0:
      return GetDenseRow(w, row, out);
#define QUERN_CASE(bits) \
  case bits:             \
    return GetPackedRow<bits>(w, row, out);
      QUERN_FOR_EACH_WIDTH(QUERN_CASE)
#undef QUERN_CASE
  }
  __builtin_unreachable();
}
