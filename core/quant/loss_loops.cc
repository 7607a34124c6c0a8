#include "core/quant/loss_loops.h"

#include <algorithm>
#include <cmath>

#include "core/quant/bfloat16.h"
#include "core/quant/vectors-inl.h"

namespace quern {
namespace {

// The row in floats into `to`, filled up to a multiple of 16 with the least; returns the greatest.
QUERN_INLINE float ToFloats(LogitRow row, int64_t count, float* to) {
  if (row.bfloat16) {
    const auto* from = static_cast<const Bfloat16Bits*>(row.data);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = ToFloat(from[i]);
  } else {
    std::memcpy(to, row.data, count * sizeof(float));
  }
  std::fill(to + count, to + LossScratchFloats(count) / 2, -INFINITY);
  float greatest = to[0];
#pragma omp simd reduction(max : greatest)
  for (int64_t i = 1; i < count; ++i) greatest = greatest < to[i] ? to[i] : greatest;
  return greatest;
}

QUERN_INLINE void FromFloats(const float* from, int64_t count, LogitRow row) {
  if (row.bfloat16) {
    auto* to = static_cast<Bfloat16Bits*>(row.data);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) StoreFloat(from[i], to + i);
  } else {
    std::memcpy(row.data, from, count * sizeof(float));
  }
}

// The log of the sum of e^x in two parts, each as exact as a float is: log_p(x) is (x - greatest) -
// log_sum.
struct Normalizer {
  float greatest;
  float log_sum;
};

template <typename I>
QUERN_INLINE Normalizer LogSumExp(const float* x, int64_t count, float greatest) {
  // Sums of some hundred terms at a time, so that the last ones still count.
  constexpr int64_t kTerms = 128 * I::kLanes;
  double sum = 0;
  const int64_t padded = LossScratchFloats(count) / 2;
  for (int64_t begin = 0; begin < padded; begin += kTerms) {
    typename I::Vec sums{};
    for (int64_t i = begin; i < std::min(begin + kTerms, padded); i += I::kLanes) {
      typename I::Vec value;
      Load<I>(x + i, value);
      value = value - greatest;
      Exp<I>(value);
      sums += value;
    }
    for (int lane = 0; lane < I::kLanes; ++lane) sum += sums[lane];
  }
  return {greatest, static_cast<float>(std::log(sum))};
}

template <typename I>
QUERN_INLINE double Divergence(LogitRow student, LogitRow teacher, HardTarget target, int64_t count,
                               float* scratch) {
  const int64_t padded = LossScratchFloats(count) / 2;
  float* s = scratch;
  float* t = scratch + padded;
  const Normalizer of_s = LogSumExp<I>(s, count, ToFloats(student, count, s));
  const Normalizer of_t = LogSumExp<I>(t, count, ToFloats(teacher, count, t));
  // 0 times the difference of two infinities is no number.
  constexpr float kNever = -200;
  double hard_loss = 0;
  if (target.share > 0) {
    hard_loss =
        target.share * (static_cast<double>(of_s.log_sum) - (s[target.token] - of_s.greatest));
  }
  const float soft_share = 1 - target.share;
  std::fill(s + count, s + padded, of_s.greatest + kNever);
  std::fill(t + count, t + padded, of_t.greatest + kNever);
  constexpr int64_t kTerms = 128 * I::kLanes;
  double loss = 0;
  for (int64_t begin = 0; begin < padded; begin += kTerms) {
    typename I::Vec sums{};
    for (int64_t i = begin; i < std::min(begin + kTerms, padded); i += I::kLanes) {
      typename I::Vec log_p;
      typename I::Vec log_q;
      Load<I>(s + i, log_p);
      Load<I>(t + i, log_q);
      log_p = (log_p - of_s.greatest) - of_s.log_sum;
      log_q = (log_q - of_t.greatest) - of_t.log_sum;
      typename I::Vec p = log_p;
      typename I::Vec q = log_q;
      Exp<I>(p);
      Exp<I>(q);
      sums += q * (log_q - log_p);
      Store<I>(p - soft_share * q, s + i);
    }
    for (int lane = 0; lane < I::kLanes; ++lane) loss += sums[lane];
  }
  s[target.token] -= target.share;
  FromFloats(s, count, student);
  return soft_share * loss + hard_loss;
}

template <typename I>
QUERN_INLINE double CrossEntropy(LogitRow student, int64_t target, int64_t count, float* scratch) {
  float* s = scratch;
  const Normalizer of_s = LogSumExp<I>(s, count, ToFloats(student, count, s));
  const double loss = static_cast<double>(of_s.log_sum) - (s[target] - of_s.greatest);
  for (int64_t i = 0; i < count; i += I::kLanes) {
    typename I::Vec p;
    Load<I>(s + i, p);
    p = (p - of_s.greatest) - of_s.log_sum;
    Exp<I>(p);
    Store<I>(p, s + i);
  }
  s[target] -= 1;
  FromFloats(s, count, student);
  return loss;
}

#if defined(__x86_64__)

QUERN_AVX512 double DivergenceAvx512(LogitRow student, LogitRow teacher, HardTarget target,
                                     int64_t count, float* scratch) {
  return Divergence<Avx512>(student, teacher, target, count, scratch);
}

QUERN_AVX2 double DivergenceAvx2(LogitRow student, LogitRow teacher, HardTarget target,
                                 int64_t count, float* scratch) {
  return Divergence<Avx2>(student, teacher, target, count, scratch);
}

QUERN_AVX512 double CrossEntropyAvx512(LogitRow student, int64_t target, int64_t count,
                                       float* scratch) {
  return CrossEntropy<Avx512>(student, target, count, scratch);
}

QUERN_AVX2 double CrossEntropyAvx2(LogitRow student, int64_t target, int64_t count,
                                   float* scratch) {
  return CrossEntropy<Avx2>(student, target, count, scratch);
}

#endif

double DivergenceBaseline(LogitRow student, LogitRow teacher, HardTarget target, int64_t count,
                          float* scratch) {
  return Divergence<Baseline>(student, teacher, target, count, scratch);
}

double CrossEntropyBaseline(LogitRow student, int64_t target, int64_t count, float* scratch) {
  return CrossEntropy<Baseline>(student, target, count, scratch);
}

}  // namespace

const std::vector<LossLoops>& SupportedLossLoops() {
  static const auto* const supported = [] {
    auto* loops = new std::vector<LossLoops>;
#if defined(__x86_64__)
    if (HasAvx512()) loops->push_back({"avx512", DivergenceAvx512, CrossEntropyAvx512});
    if (HasAvx2()) loops->push_back({"avx2", DivergenceAvx2, CrossEntropyAvx2});
#endif
    loops->push_back({"baseline", DivergenceBaseline, CrossEntropyBaseline});
    return loops;
  }();
  return *supported;
}

}  // namespace quern
