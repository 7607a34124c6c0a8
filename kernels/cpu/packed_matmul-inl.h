// Low-bit matrices times int8 or int16 activations.
//
// Per (row, group, token) every path below computes the exact integer
//   s = sum_k code * a - zero_point * sum_k a
// and then out = fma(float(s), row scale * token scale, out), groups ascending. With two planes of
// activations there are two such integers, and fma(float(first), 256, float(second)) takes the
// place of float(s). That is the one rounding rule: it makes a token's numbers independent of the
// tokens around it.
//
// A vector holds kRowsPerVector rows; rows_*-inl.h has its types and operations, dot_*-inl.h how
// bytes are multiplied: kPlanes, kChunksPerJoin and DotSum.
//
// Few tokens read the tiles as they are, one linear stream. Many tokens share codes that were
// unpacked once, into a panel that stays in L1.

// Prefetch distances of the weight stream in bytes, tuned by `quern bench kernels` for weights in
// DRAM: the far one hides DRAM, the near one L2. Without them 4-bit decode ran at half the rate.
constexpr size_t kNearPrefetch = 2048;
constexpr size_t kFarPrefetch = 16384;

constexpr int kVectorsPerBlock = kRowBlock / kRowsPerVector;

// Lines of the weight stream that each chunk of products with a panel fetches for the next panel:
// memory would rest meanwhile.
constexpr int kLinesAhead = kRowsPerVector / 4;

// Tokens that share codes in registers: as many sums as there are registers for. Unpacking takes
// some of them, and tokens of two planes have two sums.
template <int kActivationPlanes>
constexpr int kMaxTokens = (kRowsPerVector == 16 ? 8 : 4) / kActivationPlanes;

// From how many tokens on a panel pays, and for how many it is used before the next is unpacked.
constexpr int kMinPanelPass = kRowsPerVector == 16 ? 9 : 8;
constexpr int kMaxPanelPass = 128;
// With so many tokens, blocks as equal as they can be hold more than half of kMaxTokens.
static_assert(kMinPanelPass >= kMaxTokens<1>);

// What a panel holds. Groups wider than that go without.
constexpr int kPanelChunks = 16;
constexpr int kMaxPanelChunks = 64;
constexpr int kPanelStepBytes = 4 * kRowBlock;
template <int kBits>
constexpr int kPanelChunkBytes = kPlanes<kBits>*(kStepsPerChunk* kPanelStepBytes);

// --- Codes -------------------------------------------------------------------------------------

// Codes of step kStep for vector `v` of a chunk, times 2^kUp: those of kUp bits above the lowest of
// their byte need no shift.
template <int kBits, int kStep, int kPlane, int kUp = 0>
QUERN_INLINE RowBytes Unpack(const uint8_t* chunk, int v) {
  const uint8_t* lines = chunk + LaneOffset(v * kRowsPerVector, kBits);
  if constexpr (kBits == 3) {
    if constexpr (kStep < 6) {
      return Field<kStep % 2 * 3 - kUp, 7 << kUp>(LoadRowBytes(lines + 64 * (kStep / 2)));
    }
    if constexpr (kStep == 6) {
      return Or(Field<6, 3>(LoadRowBytes(lines)), Field<4, 4>(LoadRowBytes(lines + 64)));
    }
    return Or(Field<7, 1>(LoadRowBytes(lines + 64)), Field<5, 6>(LoadRowBytes(lines + 128)));
  } else if constexpr (kBits == 8 && kPlanes<kBits> == 1) {
    return LoadRowBytes(lines + 64 * kStep);
  } else if constexpr (kBits == 8) {
    return Field<kPlane * 4, 15>(LoadRowBytes(lines + 64 * kStep));
  } else {
    constexpr int kFields = 8 / kBits;
    return Field<kStep % kFields * kBits - kUp, ((1 << kBits) - 1) << kUp>(
        LoadRowBytes(lines + 64 * (kStep / kFields)));
  }
}

// The same from a chunk of tiles or of a panel.
template <int kBits, bool kPanel, int kStep, int kPlane, int kUp>
QUERN_INLINE RowBytes LoadCodes(const uint8_t* chunk, int v) {
  if constexpr (kPanel) {
    return LoadRowBytes(chunk + (kStep * kPlanes<kBits> + kPlane) * kPanelStepBytes +
                        4 * kRowsPerVector * v);
  } else {
    return Unpack<kBits, kStep, kPlane, kUp>(chunk, v);
  }
}

// Steps kStep and up of one chunk into a panel.
template <int kBits, int kStep = 0>
QUERN_INLINE void UnpackChunk(const uint8_t* chunk, uint8_t* panel) {
  if constexpr (kStep < kStepsPerChunk) {
    for (int v = 0; v < kVectorsPerBlock; ++v) {
      uint8_t* to = panel + kStep * kPlanes<kBits> * kPanelStepBytes + 4 * kRowsPerVector * v;
      StoreBytes(Unpack<kBits, kStep, 0>(chunk, v), to);
      if constexpr (kPlanes<kBits> == 2) {
        StoreBytes(Unpack<kBits, kStep, 1>(chunk, v), to + kPanelStepBytes);
      }
    }
    UnpackChunk<kBits, kStep + 1>(chunk, panel);
  }
}

// Groups [begin, end) of a block of rows into a panel; `tile` is that of the first.
template <int kBits>
void UnpackGroups(const TileLayout& tiles, const uint8_t* tile, int begin, int end,
                  uint8_t* panel) {
  for (int group = begin; group < end; ++group) {
    tile += tiles.header_bytes;
    for (int chunk = 0; chunk < tiles.groups.chunks(group); ++chunk) {
      for (int i = 0; i < tiles.chunk_bytes; i += 64) {
        __builtin_prefetch(tile + i + kNearPrefetch);
      }
      UnpackChunk<kBits>(tile, panel);
      tile += tiles.chunk_bytes;
      panel += kPanelChunkBytes<kBits>;
    }
  }
}

// --- Inner loops -------------------------------------------------------------------------------

// One block of rows times a few tokens, over groups [group_begin, group_end).
struct BlockProduct {
  const TileLayout& tiles;
  const ActivationLayout& layout;
  bool symmetric;
  int group_begin;
  int group_end;
  const uint8_t* tile;    // of group_begin
  const uint8_t* panel;   // of group_begin, or null
  const uint8_t** ahead;  // with a panel: the weights to fetch meanwhile, moved on; or null
  const uint8_t* record;  // of the first token
  bool accumulate;
  float* y;  // of the block's first row
  int64_t y_stride;
};

// What one inner loop is made for.
template <int kBits_, bool kPanel_, int kTokens_, int kActivationPlanes_, int kVectors_>
struct Loop {
  static constexpr int kBits = kBits_;
  static constexpr bool kPanel = kPanel_;
  static constexpr int kTokens = kTokens_;
  static constexpr int kActivationPlanes = kActivationPlanes_;
  static constexpr int kVectors = kVectors_;
  // A sum is one plane of one token.
  static constexpr int kSums = kTokens * kActivationPlanes;

  using Totals = RowInts[kSums][kVectors];
  // There are registers for more.
  static constexpr bool kFewSums = !kPanel && kSums * kVectors <= 4;
  using Partial = DotSum<kBits, kFewSums>;
  using Partials = Partial[kSums][kVectors];

  static constexpr int Token(int sum) { return sum / kActivationPlanes; }
  static constexpr int Plane(int sum) { return sum % kActivationPlanes; }
};

// From the first sum's activations to those of another.
struct ActivationStrides {
  template <typename L>
  QUERN_INLINE int64_t To(int sum) const {
    return L::Token(sum) * record_bytes + L::Plane(sum) * plane_bytes;
  }
  int64_t record_bytes;
  int64_t plane_bytes;
};

template <typename L, int kStep, int kPlane>
QUERN_INLINE void MultiplyStep(const uint8_t* chunk, int first_vector, const int8_t* a,
                               const ActivationStrides& strides, typename L::Partials& partial,
                               typename L::Totals& total) {
  RowBytes codes[L::kVectors];
  for (int v = 0; v < L::kVectors; ++v) {
    codes[v] = LoadCodes<L::kBits, L::kPanel, kStep, kPlane, L::Partial::Up(kStep)>(
        chunk, first_vector + v);
  }
  for (int s = 0; s < L::kSums; ++s) {
    const RowBytes four = BroadcastToRows(a + strides.To<L>(s) + 4 * kStep);
    for (int v = 0; v < L::kVectors; ++v) {
      partial[s][v].template Add<kStep, kPlane>(codes[v], four, total[s][v]);
    }
  }
}

// Steps kStep and up of one chunk.
template <typename L, int kStep = 0>
QUERN_INLINE void MultiplyChunk(const uint8_t* chunk, int first_vector, const int8_t* a,
                                const ActivationStrides& strides, typename L::Partials& partial,
                                typename L::Totals& total) {
  if constexpr (kStep < kStepsPerChunk) {
    MultiplyStep<L, kStep, 0>(chunk, first_vector, a, strides, partial, total);
    if constexpr (kPlanes<L::kBits> == 2) {
      MultiplyStep<L, kStep, 1>(chunk, first_vector, a, strides, partial, total);
    }
    MultiplyChunk<L, kStep + 1>(chunk, first_vector, a, strides, partial, total);
  }
}

// Adds code * a over the `num_chunks` chunks of one group to `total`.
template <typename L>
QUERN_INLINE void MultiplyGroup(const uint8_t* codes, int num_chunks, int first_vector,
                                const uint8_t*& ahead, const int8_t* a,
                                const ActivationStrides& strides, typename L::Totals& total) {
  constexpr int kChunkBytes =
      L::kPanel ? kPanelChunkBytes<L::kBits> : kRowBlock * kChunk / 8 * L::kBits;
  for (int chunk = 0; chunk < num_chunks;) {
    typename L::Partials partial;
    for (auto& sum : partial) {
      for (auto& v : sum) v.Clear();
    }
    if constexpr (kSpillsPartials<L::kBits> && L::kActivationPlanes == 2) {
      asm volatile("" : "+m"(total));
    }
    const int end = MinInt(num_chunks - chunk, kChunksPerJoin<L::kBits>) + chunk;
    for (; chunk < end; ++chunk, codes += kChunkBytes, a += kChunk) {
      if constexpr (!L::kPanel) {
        for (int i = 0; i < kChunkBytes; i += 64) Prefetch(codes + i, kNearPrefetch, kFarPrefetch);
      } else if (ahead != nullptr) {
        for (int i = 0; i < kLinesAhead; ++i, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      }
      MultiplyChunk<L>(codes, first_vector, a, strides, partial, total);
    }
    for (int s = 0; s < L::kSums; ++s) {
      for (int v = 0; v < L::kVectors; ++v) partial[s][v].Join(total[s][v]);
    }
  }
}

QUERN_INLINE int32_t LoadInt(const uint8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
QUERN_INLINE float LoadFloat(const uint8_t* p) {
  float v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// kVectors vectors of rows from `first_vector` of the block.
template <typename L>
void MultiplyRows(const BlockProduct& p, int first_vector) {
  constexpr int kTokens = L::kTokens;
  constexpr int kVectors = L::kVectors;
  float* y = p.y + first_vector * kRowsPerVector;
  RowFloats out[kTokens][kVectors];
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectors; ++v) {
      out[t][v] = p.accumulate ? LoadRows(y + t * p.y_stride + kRowsPerVector * v) : ZeroRows();
    }
  }
  const ActivationStrides strides{p.layout.record_bytes, p.layout.plane_bytes};
  const int8_t* a = reinterpret_cast<const int8_t*>(p.record) +
                    int64_t{p.group_begin} * p.layout.groups.full_chunks * kChunk;
  int64_t scale_offset = p.layout.scales_offset() + int64_t{p.group_begin} * 4;
  const int64_t sums_bytes = int64_t{p.layout.groups.count} * 4;
  const uint8_t* tile = p.tile;
  const uint8_t* panel = p.panel;
  const uint8_t* ahead = L::kPanel && p.ahead != nullptr ? *p.ahead : nullptr;
  for (int group = p.group_begin; group < p.group_end; ++group, scale_offset += 4) {
    const int chunks = p.layout.groups.chunks(group);
    if constexpr (!L::kPanel) {
      Prefetch(tile, kNearPrefetch, kFarPrefetch);
      Prefetch(tile + 64, kNearPrefetch, kFarPrefetch);
    }
    typename L::Totals total;
    RowFloats scale[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const int lane = (first_vector + v) * kRowsPerVector;
      const RowInts zero_point = p.symmetric ? SetRowInts(1 << (L::kBits - 1))
                                             : LoadRowBytesAsInt(tile + kScaleBytes + lane);
      scale[v] = LoadRowHalves(reinterpret_cast<const uint16_t*>(tile) + lane);
      for (int s = 0; s < L::kSums; ++s) {
        const int32_t negated_sum = LoadInt(p.record + L::Token(s) * strides.record_bytes +
                                            scale_offset + (1 + L::Plane(s)) * sums_bytes);
        total[s][v] = MulInt(zero_point, SetRowInts(negated_sum));
      }
    }
    tile += p.tiles.header_bytes;
    MultiplyGroup<L>(L::kPanel ? panel : tile, chunks, first_vector, ahead, a, strides, total);
    tile += int64_t{chunks} * p.tiles.chunk_bytes;
    if constexpr (L::kPanel) panel += chunks * kPanelChunkBytes<L::kBits>;
    a += chunks * kChunk;
    for (int t = 0; t < kTokens; ++t) {
      const RowFloats token_scale =
          SetRows(LoadFloat(p.record + t * strides.record_bytes + scale_offset));
      for (int v = 0; v < kVectors; ++v) {
        RowFloats sum = ToFloat(total[t * L::kActivationPlanes][v]);
        if constexpr (L::kActivationPlanes == 2) {
          sum = Fma(sum, SetRows(256.0f), ToFloat(total[2 * t + 1][v]));
        }
        out[t][v] = Fma(sum, Mul(scale[v], token_scale), out[t][v]);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectors; ++v) Store(out[t][v], y + t * p.y_stride + kRowsPerVector * v);
  }
  if (ahead != nullptr) *p.ahead = ahead;
}

// All 32 rows of the block for kTokens tokens.
template <int kBits, bool kPanel, int kTokens, int kActivationPlanes>
QUERN_INLINE void MultiplyBlock(const BlockProduct& p) {
  // As many accumulators as registers hold.
  constexpr int kSums = kTokens * kActivationPlanes;
  constexpr bool kAllRows = kRowsPerVector == 16 || (kSums <= 2 && kSums * kPlanes<kBits> <= 2);
  constexpr int kVectors = kAllRows ? kVectorsPerBlock : 16 / kRowsPerVector;
  for (int v = 0; v < kVectorsPerBlock; v += kVectors) {
    MultiplyRows<Loop<kBits, kPanel, kTokens, kActivationPlanes, kVectors>>(p, v);
  }
}

template <int kBits, bool kPanel, int kActivationPlanes>
void MultiplyTokens(int num_tokens, const BlockProduct& p) {
  constexpr int kMost = kMaxTokens<kActivationPlanes>;
  constexpr int kFewest = kPanel ? (kMost + 1) / 2 : 1;
  switch (num_tokens) {
#define QUERN_CASE(tokens)                                               \
  case tokens:                                                           \
    if constexpr (kFewest <= tokens && tokens <= kMost) {                \
      return MultiplyBlock<kBits, kPanel, tokens, kActivationPlanes>(p); \
    }                                                                    \
    break;
    QUERN_CASE(1)
    QUERN_CASE(2)
    QUERN_CASE(3)
    QUERN_CASE(4)
    QUERN_CASE(5)
    QUERN_CASE(6)
    QUERN_CASE(7)
    QUERN_CASE(8)
#undef QUERN_CASE
  }
  __builtin_unreachable();
}

template <int kActivationPlanes>
constexpr ActivationPrecision kPrecision =
    kActivationPlanes == 2 ? ActivationPrecision::kInt16 : ActivationPrecision::kInt8;

// --- Matrix ------------------------------------------------------------------------------------

template <int kBits, int kActivationPlanes>
void MultiplyTiles(const PrepackedMatrix& w, const uint8_t* activations, int num_tokens,
                   int row_begin, int row_end, bool accumulate, float* y, int64_t y_stride) {
  const TileLayout tiles(w.cols, w.group_size, kBits, w.symmetric);
  const ActivationLayout layout({w.cols, w.group_size, kPrecision<kActivationPlanes>});
  for (int row = row_begin; row < row_end; row += kRowBlock) {
    const int rows = MinInt(kRowBlock, row_end - row);
    for (int token = 0; token < num_tokens;) {
      const int tokens = NextTokens(num_tokens - token, kMaxTokens<kActivationPlanes>);
      WithWholeBlock(tokens, rows, y + token * y_stride + row, y_stride,
                     [&](float* out, int64_t stride) {
                       MultiplyTokens<kBits, /*kPanel=*/false, kActivationPlanes>(
                           tokens, {.tiles = tiles,
                                    .layout = layout,
                                    .symmetric = w.symmetric,
                                    .group_begin = 0,
                                    .group_end = layout.groups.count,
                                    .tile = w.data + row / kRowBlock * tiles.block_bytes(),
                                    .panel = nullptr,
                                    .ahead = nullptr,
                                    .record = activations + token * layout.record_bytes,
                                    .accumulate = accumulate,
                                    .y = out,
                                    .y_stride = stride});
                     });
      token += tokens;
    }
  }
}

// The same through a panel: each block's codes are unpacked once for up to kMaxPanelPass tokens,
// whose sums stay beside it, since rows of y may all lie in the same sets of the cache.
template <int kBits, int kActivationPlanes>
void MultiplyByPanels(const PrepackedMatrix& w, const uint8_t* activations, int num_tokens,
                      int row_begin, int row_end, bool accumulate, float* y, int64_t y_stride) {
  const TileLayout tiles(w.cols, w.group_size, kBits, w.symmetric);
  const ActivationLayout layout({w.cols, w.group_size, kPrecision<kActivationPlanes>});
  const int full_chunks = layout.groups.full_chunks;
  const int groups_per_panel = MaxInt(1, kPanelChunks / full_chunks);
  const int64_t tile_bytes = tiles.header_bytes + int64_t{full_chunks} * tiles.chunk_bytes;
  alignas(64) uint8_t panel[kMaxPanelChunks * kPanelChunkBytes<kBits>];
  alignas(64) float sums[kMaxPanelPass][kRowBlock];
  for (int pass = 0; pass < num_tokens;) {
    const int pass_tokens = NextTokens(num_tokens - pass, kMaxPanelPass);
    for (int row = row_begin; row < row_end; row += kRowBlock) {
      const size_t row_bytes = size_t(MinInt(kRowBlock, row_end - row)) * sizeof(float);
      float* out = y + pass * y_stride + row;
      if (accumulate) {
        for (int t = 0; t < pass_tokens; ++t) {
          __builtin_memcpy(sums[t], out + t * y_stride, row_bytes);
        }
      }
      const uint8_t* tile = w.data + row / kRowBlock * tiles.block_bytes();
      for (int group = 0; group < layout.groups.count; group += groups_per_panel) {
        const int group_end = MinInt(group + groups_per_panel, layout.groups.count);
        UnpackGroups<kBits>(tiles, tile, group, group_end, panel);
        const uint8_t* next = tile + int64_t{groups_per_panel} * tile_bytes;
        const uint8_t* ahead = next;
        for (int token = 0; token < pass_tokens;) {
          const int tokens = NextTokens(pass_tokens - token, kMaxTokens<kActivationPlanes>);
          MultiplyTokens<kBits, /*kPanel=*/true, kActivationPlanes>(
              tokens, {.tiles = tiles,
                       .layout = layout,
                       .symmetric = w.symmetric,
                       .group_begin = group,
                       .group_end = group_end,
                       .tile = tile,
                       .panel = panel,
                       .ahead = ahead < next + groups_per_panel * tile_bytes ? &ahead : nullptr,
                       .record = activations + (pass + token) * layout.record_bytes,
                       .accumulate = accumulate || group > 0,
                       .y = sums[token],
                       .y_stride = kRowBlock});
          token += tokens;
        }
        tile = next;
      }
      for (int t = 0; t < pass_tokens; ++t) {
        __builtin_memcpy(out + t * y_stride, sums[t], row_bytes);
      }
    }
    pass += pass_tokens;
  }
}

template <int kBits, int kActivationPlanes>
void PackedMatmul(const PrepackedMatrix& w, const uint8_t* activations, int num_tokens,
                  int row_begin, int row_end, bool accumulate, float* y, int64_t y_stride) {
  if constexpr (kUsesPanels) {
    if (num_tokens >= kMinPanelPass && CeilDiv(w.group_size, kChunk) <= kMaxPanelChunks) {
      return MultiplyByPanels<kBits, kActivationPlanes>(w, activations, num_tokens, row_begin,
                                                        row_end, accumulate, y, y_stride);
    }
  }
  MultiplyTiles<kBits, kActivationPlanes>(w, activations, num_tokens, row_begin, row_end,
                                          accumulate, y, y_stride);
}

void Matmul(const PrepackedMatrix& w, const uint8_t* activations, ActivationPrecision precision,
            int num_tokens, int row_begin, int row_end, bool accumulate, float* y,
            int64_t y_stride) {
  switch (w.bits) {
#define QUERN_CASE(bits)                                                                 \
  case bits:                                                                             \
    return (precision == ActivationPrecision::kInt16                                     \
                ? PackedMatmul<bits, 2>                                                  \
                : PackedMatmul<bits, 1>)(w, activations, num_tokens, row_begin, row_end, \
                                         accumulate, y, y_stride);
    QUERN_FOR_EACH_WIDTH(QUERN_CASE)
#undef QUERN_CASE
  }
  __builtin_unreachable();
}
