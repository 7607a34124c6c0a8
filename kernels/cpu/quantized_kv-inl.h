// Keys and values rounded to integers in groups: kernels/kernel_table.h, QuantizedKv.

constexpr int kCodeRun = 16;

QUERN_INLINE int CodeBytes(int bits, int count) {
  return static_cast<int>(CeilDiv(count, kCodeRun)) * kCodeRun * bits / 8;
}

// Where the parts of one head in a page begin, in bytes.
struct QuantizedHead {
  QuantizedHead(int bits, int head_dim)
      : key_bytes(CodeBytes(bits, kQuantizedPageTokens)),
        value_bytes(CodeBytes(bits, head_dim)),
        num_groups(static_cast<int>(CeilDiv(head_dim, kKvGroupChannels))),
        values(head_dim * key_bytes),
        key_scales(values + kQuantizedPageTokens * value_bytes),
        key_offsets(key_scales + head_dim * 2),
        value_scales(key_offsets + head_dim * 2),
        value_offsets(value_scales + num_groups * kQuantizedPageTokens * 2),
        size(value_offsets + num_groups * kQuantizedPageTokens * 2) {}

  int key_bytes;    // of one channel's codes
  int value_bytes;  // of one position's codes
  int num_groups;   // of channels of a value
  int values;
  int key_scales;
  int key_offsets;
  int value_scales;
  int value_offsets;
  int size;
};

size_t QuantizedHeadBytes(int bits, int head_dim) {
  return static_cast<size_t>(QuantizedHead(bits, head_dim).size);
}

// --- Rounding ----------------------------------------------------------------------------------

// What eight groups, one a lane, have seen.
struct KvRange {
  F32x8 least = Set(__builtin_inff());
  F32x8 largest = Set(-__builtin_inff());
  // 0 * x summed: 0, or NaN as soon as a NaN or an infinity is among them.
  F32x8 poison = Zero();

  QUERN_INLINE void Include(F32x8 v) {
    least = Min(v, least);
    largest = Max(v, largest);
    poison = Fma(v, Zero(), poison);
  }
};

// Scales and offsets of eight groups, as stored and as floats.
struct KvScales {
  QUERN_INLINE KvScales(const KvRange& range, int bits) {
    const float levels = static_cast<float>((1 << bits) - 1);
    StoreHalf(Add(Div(Sub(range.largest, range.least), Set(levels)), range.poison), half_scale);
    StoreHalf(range.least, half_offset);
    scale = LoadHalf(half_scale);
    offset = LoadHalf(half_offset);
  }

  uint16_t half_scale[8], half_offset[8];
  F32x8 scale, offset;
};

// (v - offset) / scale as an integer in [0, 2^bits - 1]; 0 where the scale is 0 or NaN.
QUERN_INLINE F32x8 CodesOf(F32x8 v, F32x8 scale, F32x8 offset, float levels) {
  const F32x8 code = Div(Sub(v, offset), scale);
  // 0 / 0 is NaN, and so the 0 of Max; a scale that is 0 as a half meets values that differ by less
  // than its least, all of which are the offset.
  return ToFloat(RoundToInt(Min(Max(code, Zero()), Set(levels))));
}

// Code `index` of a run that is zero there.
QUERN_INLINE void PutCode(uint8_t* codes, int bits, int index, float code) {
  const auto value = static_cast<uint8_t>(code);
  if (bits == 8) {
    codes[index] = value;
  } else {
    uint8_t& byte = codes[index / kCodeRun * 8 + index % 8];
    byte = static_cast<uint8_t>(byte | (index % kCodeRun < 8 ? value : value << 4));
  }
}

// rows: the head's [kQuantizedPageTokens][head_dim] half floats.
void QuantizeKeys(const uint16_t* rows, int bits, int head_dim, const QuantizedHead& at,
                  uint8_t* out) {
  const float levels = static_cast<float>((1 << bits) - 1);
  __builtin_memset(out, 0, static_cast<size_t>(at.values));
  ForEachRun(head_dim, [&](int channel, int n) {
    KvRange range;
    for (int t = 0; t < kQuantizedPageTokens; ++t) {
      range.Include(LoadHalfRun(rows + t * head_dim + channel, n));
    }
    const KvScales scales(range, bits);
    const size_t bytes = static_cast<size_t>(n) * 2;
    __builtin_memcpy(out + at.key_scales + channel * 2, scales.half_scale, bytes);
    __builtin_memcpy(out + at.key_offsets + channel * 2, scales.half_offset, bytes);
    for (int t = 0; t < kQuantizedPageTokens; ++t) {
      float code[8];
      Store(CodesOf(LoadHalfRun(rows + t * head_dim + channel, n), scales.scale, scales.offset,
                    levels),
            code);
      for (int i = 0; i < n; ++i) PutCode(out + (channel + i) * at.key_bytes, bits, t, code[i]);
    }
  });
}

// Eight positions at a time, one a lane.
void QuantizeValues(const uint16_t* rows, int bits, int head_dim, const QuantizedHead& at,
                    uint8_t* out) {
  const float levels = static_cast<float>((1 << bits) - 1);
  __builtin_memset(out + at.values, 0, static_cast<size_t>(at.key_scales - at.values));
  for (int t = 0; t < kQuantizedPageTokens; t += 8) {
    for (int group = 0; group < at.num_groups; ++group) {
      const int begin = group * kKvGroupChannels;
      const int end = MinInt(begin + kKvGroupChannels, head_dim);
      const auto for_each_channel = [&](const auto& body) {
        ForEachRun(end - begin, [&](int channel, int n) {
          F32x8 block[8];
          for (int i = 0; i < 8; ++i) {
            block[i] = LoadHalfRun(rows + (t + i) * head_dim + begin + channel, n);
          }
          Transpose(block);
          for (int i = 0; i < n; ++i) body(begin + channel + i, block[i]);
        });
      };
      KvRange range;
      for_each_channel([&](int, F32x8 v) { range.Include(v); });
      const KvScales scales(range, bits);
      const int lane = (group * kQuantizedPageTokens + t) * 2;
      __builtin_memcpy(out + at.value_scales + lane, scales.half_scale, sizeof(scales.half_scale));
      __builtin_memcpy(out + at.value_offsets + lane, scales.half_offset,
                       sizeof(scales.half_offset));
      for_each_channel([&](int channel, F32x8 v) {
        float code[8];
        Store(CodesOf(v, scales.scale, scales.offset, levels), code);
        for (int i = 0; i < 8; ++i) {
          PutCode(out + at.values + (t + i) * at.value_bytes, bits, channel, code[i]);
        }
      });
    }
  }
}

void QuantizeKv(const QuantizedKv& kv, const AttentionShape& shape, int page, int head_begin,
                int head_end) {
  const QuantizedHead at(kv.bits, shape.head_dim);
  for (int head = head_begin; head < head_end; ++head) {
    const int64_t rows = int64_t{head} * kv.open.page_tokens * shape.head_dim;
    uint8_t* out = kv.pages + kv.page_table[page] * kv.page_stride + int64_t{head} * at.size;
    QuantizeKeys(kv.open.keys + rows, kv.bits, shape.head_dim, at, out);
    QuantizeValues(kv.open.values + rows, kv.bits, shape.head_dim, at, out);
  }
}

// --- Attention ---------------------------------------------------------------------------------

static_assert(kQuantizedPageTokens % kAttentionBlock == 0 && kAttentionBlock % kCodeRun == 0);

// The 16 codes of a run as floats.
template <int kBits>
QUERN_INLINE void LoadCodes(const uint8_t* p, F32x8 (&out)[2]) {
  const I32x8 bytes = LoadBytesAsInt(p);
  if constexpr (kBits == 8) {
    out[0] = ToFloat(bytes);
    out[1] = ToFloat(LoadBytesAsInt(p + 8));
  } else {
    out[0] = ToFloat(FieldInt<0, 15>(bytes));
    out[1] = ToFloat(FieldInt<4, 15>(bytes));
  }
}

QUERN_INLINE void PrefetchBytes(const uint8_t* p, int n) {
  for (int i = 0; i < n; i += 64) __builtin_prefetch(p + i);
}

// The keys and values of one head: whole pages as integers, then the open one.
template <int kBits>
class QuantizedPositions {
 public:
  QuantizedPositions(const QuantizedKv& kv, int kv_head, int head_dim, int num_positions)
      : kv_(kv),
        at_(kBits, head_dim),
        head_dim_(head_dim),
        base_(kv.pages + int64_t{kv_head} * at_.size),
        num_whole_((num_positions - 1) / kQuantizedPageTokens),
        open_(kv.open, kv_head, head_dim, num_positions - num_whole_ * kQuantizedPageTokens) {}

  // `first` is a multiple of kAttentionBlock, so that no block has both kinds of pages.
  QUERN_INLINE void Widen(int first, int count, const AttentionScratch& scratch) {
    const int page = first / kQuantizedPageTokens;
    if (page == num_whole_) return open_.Widen(first, count, scratch);
    const uint8_t* head = base_ + kv_.page_table[page] * kv_.page_stride;
    // The processor does not see where the next page lies.
    const uint8_t* next =
        page + 1 < num_whole_ ? base_ + kv_.page_table[page + 1] * kv_.page_stride : head;
    const int slot = first % kQuantizedPageTokens;
    WidenKeyCodes(head, next, slot, scratch.keys);
    WidenValueCodes(head, next, slot, scratch);
  }

 private:
  QUERN_INLINE void WidenKeyCodes(const uint8_t* head, const uint8_t* next, int slot,
                                  float* out) const {
    const int first_code = CodeBytes(kBits, slot);
    ForEachRun(head_dim_, [&](int channel, int n) {
      float scale[8], offset[8];
      Store(LoadHalvesAt(head + at_.key_scales + channel * 2, n), scale);
      Store(LoadHalvesAt(head + at_.key_offsets + channel * 2, n), offset);
      // Half of the page's codes for each of its blocks.
      PrefetchBytes(next + channel * at_.key_bytes + 8 * first_code, 4 * at_.key_bytes);
      for (int i = 0; i < n; ++i) {
        const uint8_t* codes = head + (channel + i) * at_.key_bytes + first_code;
        float* to = out + (channel + i) * kAttentionBlock;
        for (int p = 0; p < kAttentionBlock; p += kCodeRun, codes += kCodeRun * kBits / 8) {
          F32x8 v[2];
          LoadCodes<kBits>(codes, v);
          Store(Fma(v[0], Set(scale[i]), Set(offset[i])), to + p);
          Store(Fma(v[1], Set(scale[i]), Set(offset[i])), to + p + 8);
        }
      }
    });
  }

  QUERN_INLINE void WidenValueCodes(const uint8_t* head, const uint8_t* next, int slot,
                                    const AttentionScratch& scratch) const {
    const int bytes = kAttentionBlock * at_.value_bytes;
    const uint8_t* codes = head + at_.values + slot * at_.value_bytes;
    PrefetchBytes(next + at_.values + slot * at_.value_bytes, bytes);
    for (int group = 0; group < at_.num_groups; ++group) {
      const int begin = group * kKvGroupChannels;
      const int end = MinInt(begin + kKvGroupChannels, scratch.channels);
      float scale[kAttentionBlock], offset[kAttentionBlock];
      const int lane = (group * kQuantizedPageTokens + slot) * 2;
      for (int p = 0; p < kAttentionBlock; p += 8) {
        Store(LoadHalvesAt(head + at_.value_scales + lane + p * 2, 8), scale + p);
        Store(LoadHalvesAt(head + at_.value_offsets + lane + p * 2, 8), offset + p);
      }
      for (int p = 0; p < kAttentionBlock; ++p) {
        const uint8_t* from = codes + p * at_.value_bytes + begin * kBits / 8;
        float* to = scratch.values + p * scratch.channels;
        for (int c = begin; c < end; c += kCodeRun, from += kCodeRun * kBits / 8) {
          F32x8 v[2];
          LoadCodes<kBits>(from, v);
          Store(Fma(v[0], Set(scale[p]), Set(offset[p])), to + c);
          if (c + 8 < end) Store(Fma(v[1], Set(scale[p]), Set(offset[p])), to + c + 8);
        }
      }
    }
  }

  static QUERN_INLINE F32x8 LoadHalvesAt(const uint8_t* p, int n) {
    uint16_t halves[8] = {};
    __builtin_memcpy(halves, p, static_cast<size_t>(n) * 2);
    return LoadHalf(halves);
  }

  const QuantizedKv& kv_;
  QuantizedHead at_;
  int head_dim_;
  const uint8_t* base_;
  int num_whole_;  // pages that are read as integers
  HalfPositions open_;
};

template <int kBits>
void AttendQuantized(const QuantizedKv& kv, const AttentionShape& shape,
                     const AttentionQuery& query, float* scratch) {
  AttendHeads(shape, query, scratch, [&](int kv_head, int num_positions) {
    return QuantizedPositions<kBits>(kv, kv_head, shape.head_dim, num_positions);
  });
}

void AttentionQuantized(const QuantizedKv& kv, const AttentionShape& shape,
                        const AttentionQuery& query, float* scratch) {
  if (kv.bits == 4) {
    AttendQuantized<4>(kv, shape, query, scratch);
  } else {
    AttendQuantized<8>(kv, shape, query, scratch);
  }
}
