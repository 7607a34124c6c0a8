#include "kernels/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace quern::kernels::reference {

float HalfToFloat(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int fraction = half & 1023;
  const float sign = half >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
}

int CodeAt(const uint32_t* words, int bits, int64_t index) {
  const uint32_t* run = words + index / 32 * bits;
  const int j = static_cast<int>(index % 32);
  int code = 0;
  int bit = 0;
  // Planes: the powers of two that `bits` is the sum of, largest first.
  for (int plane = 8; plane > 0; plane /= 2) {
    if ((bits & plane) == 0) continue;
    const int per_word = 32 / plane;
    for (int i = 0; i < plane; ++i, ++bit) {
      code |= static_cast<int>(run[j / per_word] >> (plane * (j % per_word) + i) & 1u) << bit;
    }
    run += plane;
  }
  return code;
}

std::vector<double> Dequantize(const PackedMatrix& w) {
  std::vector<double> out;
  out.reserve(static_cast<size_t>(w.rows) * w.cols);
  for (int64_t row = 0; row < w.rows; ++row) {
    for (int col = 0; col < w.cols; ++col) {
      const int64_t group = row * w.num_groups() + col / w.group_size;
      const int zero_point = w.symmetric ? 1 << (w.bits - 1) : CodeAt(w.zero_points, w.bits, group);
      const int code = CodeAt(w.codes + row * w.words_per_row(), w.bits, col);
      out.push_back((code - zero_point) * double{HalfToFloat(w.scales[group])});
    }
  }
  return out;
}

std::vector<double> Dequantize(const DenseMatrix& w) {
  std::vector<double> out;
  const int64_t size = int64_t{w.rows} * w.cols;
  out.reserve(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    if (w.type == DenseMatrix::Type::kF32) {
      float value;
      std::memcpy(&value, static_cast<const char*>(w.data) + 4 * i, 4);
      out.push_back(value);
      continue;
    }
    uint16_t half;
    std::memcpy(&half, static_cast<const char*>(w.data) + 2 * i, 2);
    const uint32_t bits = uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    out.push_back(w.type == DenseMatrix::Type::kF16 ? HalfToFloat(half) : value);
  }
  return out;
}

std::vector<double> RoundActivations(const ActivationFormat& format, const float* x) {
  const float largest = format.precision == ActivationPrecision::kInt16 ? 32512 : 127;
  std::vector<double> out;
  for (int begin = 0; begin < format.cols; begin += format.group_size) {
    const int end = std::min(begin + format.group_size, format.cols);
    float max = 0;
    for (int k = begin; k < end; ++k) max = std::max(max, std::fabs(x[k]));
    const float scale = max / largest;
    for (int k = begin; k < end; ++k) {
      out.push_back(scale == 0 ? 0.0 : std::nearbyint(x[k] / scale) * double{scale});
    }
  }
  return out;
}

Product Dot(const double* weights, const double* x, int cols) {
  Product product;
  for (int k = 0; k < cols; ++k) {
    product.value += weights[k] * x[k];
    product.magnitude += std::fabs(weights[k] * x[k]);
  }
  return product;
}

std::vector<double> RmsNorm(const float* x, const float* weight, int n, double eps) {
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += double{x[i]} * x[i];
  std::vector<double> out;
  for (int i = 0; i < n; ++i) out.push_back(x[i] / std::sqrt(squares / n + eps) * weight[i]);
  return out;
}

std::vector<double> Rope(const float* head, int head_dim, const float* cos_sin) {
  const int half = head_dim / 2;
  std::vector<double> out(head_dim);
  for (int i = 0; i < half; ++i) {
    const double cosine = cos_sin[i];
    const double sine = cos_sin[half + i];
    out[i] = head[i] * cosine - head[half + i] * sine;
    out[half + i] = head[half + i] * cosine + head[i] * sine;
  }
  return out;
}

double SiluMul(double gate, double up) { return gate / (1 + std::exp(-gate)) * up; }

std::vector<double> Attention(const PagedKv& kv, const AttentionShape& shape, int position,
                              const float* query) {
  const int dim = shape.head_dim;
  std::vector<double> out(static_cast<size_t>(shape.num_heads) * dim);
  const auto at = [&](const uint16_t* base, int p, int kv_head, int i) {
    return double{
        HalfToFloat(base[kv.page_table[p / kv.page_tokens] * kv.page_stride +
                         (int64_t{kv_head} * kv.page_tokens + p % kv.page_tokens) * dim + i])};
  };
  for (int head = 0; head < shape.num_heads; ++head) {
    const int kv_head = head / (shape.num_heads / shape.num_kv_heads);
    std::vector<double> weights;
    for (int p = 0; p <= position; ++p) {
      double score = 0;
      for (int i = 0; i < dim; ++i) score += query[head * dim + i] * at(kv.keys, p, kv_head, i);
      weights.push_back(score / std::sqrt(double{1} * dim));
    }
    const double max = *std::max_element(weights.begin(), weights.end());
    double sum = 0;
    for (double& weight : weights) sum += weight = std::exp(weight - max);
    for (int p = 0; p <= position; ++p) {
      for (int i = 0; i < dim; ++i) {
        out[head * dim + i] += weights[p] / sum * at(kv.values, p, kv_head, i);
      }
    }
  }
  return out;
}

}  // namespace quern::kernels::reference
