// Norm, rotation, activation function and sums on runs of floats. Tails shorter than a vector go
// through the same operations, filled with zeros.

// Calls body(i, n) for runs of n = 8 floats from i and a last shorter one.
template <typename Body>
QUERN_INLINE void ForEachRun(int n, const Body& body) {
  int i = 0;
  for (; i + 8 <= n; i += 8) body(i, 8);
  if (i < n) body(i, n - i);
}
QUERN_INLINE F32x8 LoadRun(const float* p, int n) { return n == 8 ? Load(p) : LoadPart(p, n); }
QUERN_INLINE void StoreRun(F32x8 v, int n, float* p) {
  return n == 8 ? Store(v, p) : StorePart(v, n, p);
}

// exp(x), relative error below 2e-7 for x in [-87.3, 88.3]; outside, the value at the nearer end.
// NaN stays NaN. x = n * log(2) + r, exp(r) by the polynomial of Cephes' expf.
QUERN_INLINE F32x8 Exp(F32x8 x) {
  x = Max(Set(-87.3f), Min(Set(88.3f), x));
  // NaN may round to any integer; the product below restores it, but it must be in range.
  const F32x8 in_range = Max(Min(x, Set(88.3f)), Set(-87.3f));
  const I32x8 n = RoundToInt(Mul(in_range, Set(1.44269504088896341f)));
  const F32x8 nf = ToFloat(n);
  F32x8 r = NegFma(nf, Set(0.693359375f), x);
  r = NegFma(nf, Set(-2.12194440e-4f), r);
  F32x8 p = Set(1.9875691500e-4f);
  p = Fma(p, r, Set(1.3981999507e-3f));
  p = Fma(p, r, Set(8.3334519073e-3f));
  p = Fma(p, r, Set(4.1665795894e-2f));
  p = Fma(p, r, Set(1.6666665459e-1f));
  p = Fma(p, r, Set(5.0000001201e-1f));
  p = Add(Fma(p, Mul(r, r), r), Set(1.0f));
  return Mul(p, PowerOfTwo(n));
}

void RmsNorm(const float* x, const float* weight, int n, float eps, float* out) {
  F32x8 squares = Zero();
  ForEachRun(n, [&](int i, int count) {
    const F32x8 v = LoadRun(x + i, count);
    squares = Fma(v, v, squares);
  });
  const float mean = SumLanes(squares) / static_cast<float>(n);
  const F32x8 factor = Set(1.0f / __builtin_sqrtf(mean + eps));
  ForEachRun(n, [&](int i, int count) {
    StoreRun(Mul(Mul(LoadRun(x + i, count), factor), LoadRun(weight + i, count)), count, out + i);
  });
}

void Rope(float* heads, int num_heads, int head_dim, const float* cos_sin) {
  const int half = head_dim / 2;
  for (int head = 0; head < num_heads; ++head) {
    float* low = heads + int64_t{head} * head_dim;
    float* high = low + half;
    ForEachRun(half, [&](int i, int count) {
      const F32x8 a = LoadRun(low + i, count);
      const F32x8 b = LoadRun(high + i, count);
      const F32x8 cosine = LoadRun(cos_sin + i, count);
      const F32x8 sine = LoadRun(cos_sin + half + i, count);
      StoreRun(NegFma(b, sine, Mul(a, cosine)), count, low + i);
      StoreRun(Fma(a, sine, Mul(b, cosine)), count, high + i);
    });
  }
}

void SiluMul(const float* gate, const float* up, int n, float* out) {
  ForEachRun(n, [&](int i, int count) {
    const F32x8 g = LoadRun(gate + i, count);
    const F32x8 silu = Div(g, Add(Set(1.0f), Exp(Sub(Zero(), g))));
    StoreRun(Mul(silu, LoadRun(up + i, count)), count, out + i);
  });
}

void AddTo(const float* x, int n, float* y) {
  ForEachRun(n, [&](int i, int count) {
    StoreRun(Add(LoadRun(y + i, count), LoadRun(x + i, count)), count, y + i);
  });
}
