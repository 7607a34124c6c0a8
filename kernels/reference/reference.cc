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

namespace {

// The nearest half float, to even.
double RoundToHalf(double x) {
  if (x == 0 || !std::isfinite(x)) return x;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(x), -14) - 10);
  const double rounded = std::nearbyint(x / unit) * unit;
  return std::fabs(rounded) > 65504 ? std::copysign(INFINITY, x) : rounded;
}

double HalfAt(const uint8_t* p, int64_t index) {
  uint16_t half;
  std::memcpy(&half, p + 2 * index, 2);
  return double{HalfToFloat(half)};
}

// Rounds `count` numbers, `stride` apart, that share a scale.
void RoundGroup(int bits, int count, int64_t stride, double* x) {
  const auto levels = static_cast<float>((1 << bits) - 1);
  float least = INFINITY, largest = -INFINITY;
  bool finite = true;
  for (int i = 0; i < count; ++i) {
    const auto value = static_cast<float>(x[i * stride]);
    finite = finite && std::isfinite(value);
    least = std::min(least, value);
    largest = std::max(largest, value);
  }
  const auto scale = static_cast<float>(RoundToHalf((largest - least) / levels));
  for (int i = 0; i < count; ++i) {
    const float code =
        scale == 0
            ? 0
            : std::min(std::nearbyint((static_cast<float>(x[i * stride]) - least) / scale), levels);
    x[i * stride] = finite ? double{code} * scale + least : NAN;
  }
}

// `key` and `value` (position, kv_head, channel) give the numbers.
template <typename Key, typename Value>
std::vector<double> Attend(const AttentionShape& shape, int position, const float* query,
                           const Key& key, const Value& value) {
  const int dim = shape.head_dim;
  std::vector<double> out(static_cast<size_t>(shape.num_heads) * dim);
  for (int head = 0; head < shape.num_heads; ++head) {
    const int kv_head = head / (shape.num_heads / shape.num_kv_heads);
    std::vector<double> weights;
    for (int p = 0; p <= position; ++p) {
      double score = 0;
      for (int i = 0; i < dim; ++i) score += query[head * dim + i] * key(p, kv_head, i);
      weights.push_back(score / std::sqrt(double{1} * dim));
    }
    const double max = *std::max_element(weights.begin(), weights.end());
    double sum = 0;
    for (double& weight : weights) sum += weight = std::exp(weight - max);
    for (int p = 0; p <= position; ++p) {
      for (int i = 0; i < dim; ++i) out[head * dim + i] += weights[p] / sum * value(p, kv_head, i);
    }
  }
  return out;
}

double PagedAt(const PagedKv& kv, const uint16_t* base, int head_dim, int p, int kv_head, int i) {
  return double{
      HalfToFloat(base[kv.page_table[p / kv.page_tokens] * kv.page_stride +
                       (int64_t{kv_head} * kv.page_tokens + p % kv.page_tokens) * head_dim + i])};
}

}  // namespace

std::vector<double> Attention(const PagedKv& kv, const AttentionShape& shape, int position,
                              const float* query) {
  const auto at = [&](const uint16_t* base) {
    return [&kv, &shape, base](int p, int kv_head, int i) {
      return PagedAt(kv, base, shape.head_dim, p, kv_head, i);
    };
  };
  return Attend(shape, position, query, at(kv.keys), at(kv.values));
}

KvHead RoundKv(int bits, int head_dim, const uint16_t* keys, const uint16_t* values) {
  KvHead head;
  for (int i = 0; i < kQuantizedPageTokens * head_dim; ++i) {
    head.keys.push_back(HalfToFloat(keys[i]));
    head.values.push_back(HalfToFloat(values[i]));
  }
  for (int channel = 0; channel < head_dim; ++channel) {
    RoundGroup(bits, kQuantizedPageTokens, head_dim, head.keys.data() + channel);
  }
  for (int t = 0; t < kQuantizedPageTokens; ++t) {
    for (int begin = 0; begin < head_dim; begin += kKvGroupChannels) {
      RoundGroup(bits, std::min(kKvGroupChannels, head_dim - begin), 1,
                 head.values.data() + t * head_dim + begin);
    }
  }
  return head;
}

KvHead DequantizeKv(int bits, int head_dim, const uint8_t* head) {
  const auto row_bytes = [&](int count) { return (count + 15) / 16 * 16 * bits / 8; };
  const auto code_at = [&](const uint8_t* row, int index) {
    if (bits == 8) return int{row[index]};
    return row[index / 16 * 8 + index % 8] >> (index % 16 < 8 ? 0 : 4) & 15;
  };
  const int num_groups = (head_dim + kKvGroupChannels - 1) / kKvGroupChannels;
  const int key_bytes = row_bytes(kQuantizedPageTokens);
  const int value_bytes = row_bytes(head_dim);
  const uint8_t* value_codes = head + int64_t{head_dim} * key_bytes;
  const uint8_t* key_scales = value_codes + int64_t{kQuantizedPageTokens} * value_bytes;
  const uint8_t* value_scales = key_scales + int64_t{4} * head_dim;
  KvHead out;
  for (int t = 0; t < kQuantizedPageTokens; ++t) {
    for (int i = 0; i < head_dim; ++i) {
      out.keys.push_back(code_at(head + int64_t{i} * key_bytes, t) * HalfAt(key_scales, i) +
                         HalfAt(key_scales, head_dim + i));
      const int group = i / kKvGroupChannels * kQuantizedPageTokens + t;
      out.values.push_back(code_at(value_codes + int64_t{t} * value_bytes, i) *
                               HalfAt(value_scales, group) +
                           HalfAt(value_scales, num_groups * kQuantizedPageTokens + group));
    }
  }
  return out;
}

std::vector<double> Attention(const QuantizedKv& kv, const AttentionShape& shape, int position,
                              const float* query) {
  const int dim = shape.head_dim;
  const int num_whole = position / kQuantizedPageTokens;
  const int padded = (dim + 15) / 16 * 16;
  const int num_groups = (dim + kKvGroupChannels - 1) / kKvGroupChannels;
  const int64_t head_bytes = int64_t{kQuantizedPageTokens} * (dim + padded) * kv.bits / 8 +
                             4 * (dim + num_groups * kQuantizedPageTokens);
  std::vector<KvHead> heads;  // [page][kv_head]
  for (int page = 0; page < num_whole; ++page) {
    for (int kv_head = 0; kv_head < shape.num_kv_heads; ++kv_head) {
      heads.push_back(DequantizeKv(
          kv.bits, dim, kv.pages + kv.page_table[page] * kv.page_stride + kv_head * head_bytes));
    }
  }
  const auto at = [&](std::vector<double> KvHead::*numbers, const uint16_t* open) {
    return [&, numbers, open](int p, int kv_head, int i) {
      const int page = p / kQuantizedPageTokens;
      const int slot = p % kQuantizedPageTokens;
      if (page == num_whole) return PagedAt(kv.open, open, dim, slot, kv_head, i);
      return (heads[page * shape.num_kv_heads + kv_head].*numbers)[slot * dim + i];
    };
  };
  return Attend(shape, position, query, at(&KvHead::keys, kv.open.keys),
                at(&KvHead::values, kv.open.values));
}

}  // namespace quern::kernels::reference
