// Low-bit matrices times int8 activations.
//
// Activations are one record a token: [padded cols] int8, where each group fills whole chunks with
// zeros, then per group its scale (float) and minus the sum of its integers (int32). Records have
// an odd number of 64-byte lines, so that those of several tokens do not meet in the same cache
// sets.
//
// Per (row, group, token) every path below computes the exact integer
//   s = sum_k code * a - zero_point * sum_k a
// and then out = fma(float(s), row scale * token scale, out), groups ascending. That is the one
// rounding rule: it makes a token's numbers independent of the tokens around it.

// Prefetch distances of the weight stream in bytes, tuned by kernels/bench for weights in DRAM: the
// far one hides DRAM, the near one L2. Without them 4-bit decode ran at half the rate.
constexpr size_t kNearPrefetch = 2048;
constexpr size_t kFarPrefetch = 16384;

struct ActivationLayout {
  ActivationLayout(int cols, int group_size) : groups(cols, group_size) {
    values_bytes = groups.total_chunks() * kChunk;
    const int64_t lines = CeilDiv(values_bytes + int64_t{groups.count} * 8, 64);
    record_bytes = (lines | 1) * 64;
  }
  int64_t scales_offset() const { return values_bytes; }
  int64_t sums_offset() const { return values_bytes + int64_t{groups.count} * 4; }

  Groups groups;
  int64_t values_bytes;
  int64_t record_bytes;
};

size_t ActivationBytes(int num_tokens, int cols, int group_size) {
  return static_cast<size_t>(num_tokens * ActivationLayout(cols, group_size).record_bytes);
}

// One group of `n` floats into `chunks` whole chunks.
QUERN_INLINE void QuantizeGroup(const float* x, int n, int chunks, int8_t* values, float* scale_out,
                                int32_t* negated_sum) {
  F32x8 max = Zero();
  // 0 * x summed: 0, or NaN as soon as a NaN or an infinity is among them.
  F32x8 poison = Zero();
  for (int i = 0; i < n; i += 8) {
    const F32x8 v = n - i >= 8 ? Load(x + i) : LoadPart(x + i, n - i);
    max = Max(max, Abs(v));
    poison = Fma(v, Zero(), poison);
  }
  const float largest = MaxLane(max);
  // A scale so small that it is subnormal would lose its precision; such a group is zero.
  const bool zero = !(largest >= 0x1p-100f);
  const float scale = zero ? 0.0f : largest / 127.0f;
  const F32x8 divisor = Set(zero ? 1.0f : scale);
  I32x8 sum = ZeroInt();
  for (int i = 0; i < chunks * kChunk; i += 8) {
    F32x8 v = i + 8 <= n ? Load(x + i) : LoadPart(x + i, i < n ? n - i : 0);
    v = Div(v, divisor);
    const I32x8 q = RoundToInt(Min(Max(v, Set(-127.0f)), Set(127.0f)));
    sum = AddInt(sum, q);
    StoreInt8(q, values + i);
  }
  *scale_out = scale + SumLanes(poison);
  *negated_sum = -SumLanesInt(sum);
}

void QuantizeActivations(const float* x, int64_t x_stride, int token_begin, int token_end,
                         int /*num_tokens*/, int cols, int group_size, uint8_t* out) {
  const ActivationLayout layout(cols, group_size);
  for (int token = token_begin; token < token_end; ++token) {
    uint8_t* record = out + token * layout.record_bytes;
    const float* from = x + token * x_stride;
    int8_t* values = reinterpret_cast<int8_t*>(record);
    float* scales = reinterpret_cast<float*>(record + layout.scales_offset());
    int32_t* sums = reinterpret_cast<int32_t*>(record + layout.sums_offset());
    for (int group = 0; group < layout.groups.count; ++group) {
      const int begin = group * group_size;
      const int chunks = layout.groups.chunks(group);
      QuantizeGroup(from + begin, MinInt(group_size, cols - begin), chunks, values, scales + group,
                    sums + group);
      values += chunks * kChunk;
    }
    // The filling up to the end is never read but by copies.
    uint8_t* end = record + layout.sums_offset() + int64_t{layout.groups.count} * 4;
    __builtin_memset(end, 0, static_cast<size_t>(record + layout.record_bytes - end));
  }
}

// --- Inner loops -------------------------------------------------------------------------------

// 8-bit codes are multiplied as two halves of four bits, since a pair of products with a whole byte
// does not fit int16.
template <int kBits>
constexpr int kPlanes = kBits == 8 ? 2 : 1;

// Chunks whose products an int16 lane can hold: a step adds at most 2 * (2^bits - 1) * 127, that is
// 762, 1778 or 3810, eight times a chunk.
template <int kBits>
constexpr int kChunksPerWidening = kBits == 2   ? 4
                                   : kBits == 3 ? 2
                                                : 1;

// Codes of step kStep for vector `v` (8 rows) of a chunk.
template <int kBits, int kStep, int kPlane>
QUERN_INLINE U8x32 Unpack(const uint8_t* chunk, int v) {
  const uint8_t* lines = chunk + v / 2 * (64 * kBits) + v % 2 * 32;
  if constexpr (kBits == 3) {
    if constexpr (kStep < 6) return Field<kStep % 2 * 3, 7>(LoadBytes(lines + 64 * (kStep / 2)));
    if constexpr (kStep == 6) {
      return Or(Field<6, 3>(LoadBytes(lines)), Field<4, 4>(LoadBytes(lines + 64)));
    }
    return Or(Field<7, 1>(LoadBytes(lines + 64)), Field<5, 6>(LoadBytes(lines + 128)));
  } else if constexpr (kBits == 8) {
    return Field<kPlane * 4, 15>(LoadBytes(lines + 64 * kStep));
  } else {
    constexpr int kFields = 8 / kBits;
    return Field<kStep % kFields * kBits, (1 << kBits) - 1>(
        LoadBytes(lines + 64 * (kStep / kFields)));
  }
}

template <int kBits, int kTokens, int kVectors, int kStep, int kPlane>
QUERN_INLINE void MultiplyStep(const uint8_t* chunk, const int8_t* a, int64_t record_bytes,
                               I16x16 (&sum)[kTokens][kVectors]) {
  U8x32 codes[kVectors];
  for (int v = 0; v < kVectors; ++v) codes[v] = Unpack<kBits, kStep, kPlane>(chunk, v);
  for (int t = 0; t < kTokens; ++t) {
    const U8x32 four = Broadcast4(a + t * record_bytes + 4 * kStep);
    for (int v = 0; v < kVectors; ++v) {
      sum[t][v] = AddInt16(sum[t][v], MulBytes(codes[v], four));
    }
  }
}

// Steps kStep and up of one chunk.
template <int kBits, int kTokens, int kVectors, int kStep = 0>
QUERN_INLINE void MultiplyChunk(const uint8_t* chunk, const int8_t* a, int64_t record_bytes,
                                I16x16 (&sum)[kPlanes<kBits>][kTokens][kVectors]) {
  if constexpr (kStep < kStepsPerChunk) {
    MultiplyStep<kBits, kTokens, kVectors, kStep, 0>(chunk, a, record_bytes, sum[0]);
    if constexpr (kPlanes<kBits> == 2) {
      MultiplyStep<kBits, kTokens, kVectors, kStep, 1>(chunk, a, record_bytes, sum[1]);
    }
    MultiplyChunk<kBits, kTokens, kVectors, kStep + 1>(chunk, a, record_bytes, sum);
  }
}

// Adds code * a over one group to `total`. `codes` is that of the vectors' first row.
template <int kBits, int kTokens, int kVectors>
QUERN_INLINE void MultiplyGroup(const uint8_t* codes, int num_chunks, const int8_t* a,
                                int64_t record_bytes, I32x8 (&total)[kTokens][kVectors]) {
  constexpr int kChunkBytes = kRowBlock * kChunk / 8 * kBits;
  for (int chunk = 0; chunk < num_chunks;) {
    I16x16 sum[kPlanes<kBits>][kTokens][kVectors];
    for (auto& plane : sum) {
      for (auto& token : plane) {
        for (auto& v : token) v = ZeroInt16();
      }
    }
    const int end = MinInt(chunk + kChunksPerWidening<kBits>, num_chunks);
    for (; chunk < end; ++chunk, codes += kChunkBytes, a += kChunk) {
      for (int i = 0; i < kChunkBytes; i += 64) Prefetch(codes + i, kNearPrefetch, kFarPrefetch);
      MultiplyChunk<kBits, kTokens, kVectors>(codes, a, record_bytes, sum);
    }
    for (int t = 0; t < kTokens; ++t) {
      for (int v = 0; v < kVectors; ++v) {
        total[t][v] = AddPairs<1>(sum[0][t][v], total[t][v]);
        if constexpr (kPlanes<kBits> == 2) {
          total[t][v] = AddPairs<16>(sum[1][t][v], total[t][v]);
        }
      }
    }
  }
}

// kVectors * 8 rows from `first_vector` of one block of rows, kTokens tokens.
template <int kBits, int kTokens, int kVectors>
void MultiplyRows(const PrepackedMatrix& w, const TileLayout& tiles, const uint8_t* block,
                  int first_vector, const ActivationLayout& layout, const uint8_t* record,
                  bool accumulate, float* y, int64_t y_stride) {
  F32x8 out[kTokens][kVectors];
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectors; ++v) {
      out[t][v] = accumulate ? Load(y + t * y_stride + 8 * v) : Zero();
    }
  }
  const int64_t record_bytes = layout.record_bytes;
  const int8_t* a = reinterpret_cast<const int8_t*>(record);
  const uint8_t* tile = block;
  for (int group = 0; group < layout.groups.count; ++group) {
    const int chunks = layout.groups.chunks(group);
    Prefetch(tile, kNearPrefetch, kFarPrefetch);
    Prefetch(tile + 64, kNearPrefetch, kFarPrefetch);
    I32x8 total[kTokens][kVectors];
    F32x8 scale[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const int lane = (first_vector + v) * 8;
      const I32x8 zero_point =
          w.symmetric ? SetInt(1 << (kBits - 1)) : LoadBytesAsInt(tile + kScaleBytes + lane);
      scale[v] = LoadHalf(reinterpret_cast<const uint16_t*>(tile) + lane);
      for (int t = 0; t < kTokens; ++t) {
        int32_t negated_sum;
        __builtin_memcpy(&negated_sum,
                         record + t * record_bytes + layout.sums_offset() + int64_t{group} * 4,
                         sizeof(negated_sum));
        total[t][v] = MulInt(zero_point, SetInt(negated_sum));
      }
    }
    tile += tiles.header_bytes;
    MultiplyGroup<kBits, kTokens, kVectors>(tile + LaneOffset(first_vector * 8, kBits), chunks, a,
                                            record_bytes, total);
    tile += int64_t{chunks} * tiles.chunk_bytes;
    a += chunks * kChunk;
    for (int t = 0; t < kTokens; ++t) {
      float token_scale;
      __builtin_memcpy(&token_scale,
                       record + t * record_bytes + layout.scales_offset() + int64_t{group} * 4,
                       sizeof(token_scale));
      for (int v = 0; v < kVectors; ++v) {
        out[t][v] = Fma(ToFloat(total[t][v]), Mul(scale[v], Set(token_scale)), out[t][v]);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectors; ++v) Store(out[t][v], y + t * y_stride + 8 * v);
  }
}

// All 32 rows of a block for `num_tokens` <= kMaxTokens tokens.
constexpr int kMaxTokens = 4;

template <int kBits, int kTokens>
QUERN_INLINE void MultiplyBlock(const PrepackedMatrix& w, const TileLayout& tiles,
                                const uint8_t* block, const ActivationLayout& layout,
                                const uint8_t* record, bool accumulate, float* y,
                                int64_t y_stride) {
  // As many accumulators as registers hold.
  constexpr int kVectors = kTokens <= 2 && kTokens * kPlanes<kBits> <= 2 ? 4 : 2;
  for (int v = 0; v < 4; v += kVectors) {
    MultiplyRows<kBits, kTokens, kVectors>(w, tiles, block, v, layout, record, accumulate,
                                           y + 8 * v, y_stride);
  }
}

template <int kBits>
void MultiplyTokens(int num_tokens, const PrepackedMatrix& w, const TileLayout& tiles,
                    const uint8_t* block, const ActivationLayout& layout, const uint8_t* record,
                    bool accumulate, float* y, int64_t y_stride) {
  switch (num_tokens) {
    case 1:
      return MultiplyBlock<kBits, 1>(w, tiles, block, layout, record, accumulate, y, y_stride);
    case 2:
      return MultiplyBlock<kBits, 2>(w, tiles, block, layout, record, accumulate, y, y_stride);
    case 3:
      return MultiplyBlock<kBits, 3>(w, tiles, block, layout, record, accumulate, y, y_stride);
    case 4:
      return MultiplyBlock<kBits, 4>(w, tiles, block, layout, record, accumulate, y, y_stride);
  }
  __builtin_unreachable();
}

// --- Matrix ------------------------------------------------------------------------------------

template <int kBits>
void PackedMatmul(const PrepackedMatrix& w, const uint8_t* activations, int num_tokens,
                  int row_begin, int row_end, bool accumulate, float* y, int64_t y_stride) {
  const TileLayout tiles(w.cols, w.group_size, kBits, w.symmetric);
  const ActivationLayout layout(w.cols, w.group_size);
  for (int row = row_begin; row < row_end; row += kRowBlock) {
    const uint8_t* block = w.data + row / kRowBlock * tiles.block_bytes();
    const int rows = MinInt(kRowBlock, row_end - row);
    for (int token = 0; token < num_tokens;) {
      const int tokens = NextTokens(num_tokens - token, kMaxTokens);
      WithWholeBlock(tokens, rows, y + token * y_stride + row, y_stride,
                     [&](float* out, int64_t stride) {
                       MultiplyTokens<kBits>(tokens, w, tiles, block, layout,
                                             activations + token * layout.record_bytes, accumulate,
                                             out, stride);
                     });
      token += tokens;
    }
  }
}

void Matmul(const PrepackedMatrix& w, const uint8_t* activations, int num_tokens, int row_begin,
            int row_end, bool accumulate, float* y, int64_t y_stride) {
  switch (w.bits) {
#define QUERN_CASE(bits)                                                                     \
  case bits:                                                                                 \
    return PackedMatmul<bits>(w, activations, num_tokens, row_begin, row_end, accumulate, y, \
                              y_stride);
    QUERN_FOR_EACH_WIDTH(QUERN_CASE)
#undef QUERN_CASE
  }
  __builtin_unreachable();
}
