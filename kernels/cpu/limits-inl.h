// What this CPU can do at most with these instructions: the limits that rates are measured against.

uint64_t Read(const uint8_t* p, size_t n) {
  RowBytes lines[4] = {};
  constexpr size_t kBytes = 4 * kRowsPerVector;
  for (size_t i = 0; i < n; i += 4 * kBytes) {
    for (size_t line = 0; line < 4 * kBytes; line += 64) {
      Prefetch(p + i + line, kNearPrefetch, kFarPrefetch);
    }
    for (size_t v = 0; v < 4; ++v) lines[v] = Or(lines[v], LoadRowBytes(p + i + v * kBytes));
  }
  uint8_t bytes[kBytes];
  StoreBytes(Or(Or(lines[0], lines[1]), Or(lines[2], lines[3])), bytes);
  uint64_t sum = 0;
  for (const uint8_t byte : bytes) sum += byte;
  return sum;
}

// The loop over a panel that MultiplyRows has, its operands in L1, without scales and zero points.
int64_t MultiplyBytes(const uint8_t* operands, int64_t rounds) {
  constexpr int kVectors = 2;
  constexpr int kChunks = 8;
  constexpr int64_t kRecordBytes = kChunks * kChunk + 64;
  static_assert(kChunks * kPanelChunkBytes<2> + kMaxTokens<1> * kRecordBytes <= kPeakOperandBytes);
  const auto* activations =
      reinterpret_cast<const int8_t*>(operands + kChunks * kPanelChunkBytes<2>);
  using L = Loop<2, /*kPanel=*/true, kMaxTokens<1>, /*kActivationPlanes=*/1, kVectors>;
  L::Totals total;
  const uint8_t* ahead = nullptr;
  for (auto& token : total) {
    for (RowInts& v : token) v = SetRowInts(0);
  }
  for (int64_t i = 0; i < rounds; ++i) {
    MultiplyGroup<L>(operands, kChunks, 0, ahead, activations, {kRecordBytes, 0}, total);
    asm volatile("" : : "r"(total) : "memory");
  }
  return rounds * kChunks * kChunk * kMaxTokens<1> * kVectors * kRowsPerVector * 2;
}

int64_t MultiplyFloats(int64_t rounds) {
  constexpr int kChains = 12;
  constexpr int kSteps = 64;
  RowFloats chain[kChains];
  for (RowFloats& c : chain) c = SetRows(1.0f);
  const RowFloats factor = SetRows(0.5f);
  for (int64_t i = 0; i < rounds * kSteps; ++i) {
    for (RowFloats& c : chain) c = Fma(c, factor, factor);
  }
  asm volatile("" : : "r"(chain) : "memory");
  return rounds * kSteps * kChains * kRowsPerVector * 2;
}
