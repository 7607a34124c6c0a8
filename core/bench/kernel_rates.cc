#include "core/bench/kernel_rates.h"

#include <absl/status/status.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "core/base/status_macros.h"
#include "core/bench/machine_limits.h"
#include "core/engine/aligned_buffer.h"

namespace quern {
namespace {

using kernels::KernelTable;
using kernels::kRowBlock;
using kernels::PrepackedMatrix;

std::vector<float> RandomFloats(int64_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// The kernel and its limit in turns, so that both see the same minute of the machine.
struct InTurns {
  double seconds = 0;
  double share = 0;
};
InTurns Measure(int repetitions, const std::function<void()>& kernel,
                const std::function<double()>& limit_seconds) {
  std::vector<double> seconds, shares;
  for (int i = 0; i < repetitions; ++i) {
    seconds.push_back(MedianSeconds(1, kernel));
    shares.push_back(limit_seconds() / seconds.back());
  }
  return {Median(seconds), Median(shares)};
}

class Measurer {
 public:
  Measurer(const KernelTable& table, ThreadPool& pool, const KernelRateOptions& options,
           const std::function<void(const KernelRate&)>& on_rate)
      : table_(table), pool_(pool), options_(options), on_rate_(on_rate) {}

  // The rows of every copy of one matrix, `copies` of them one after the other.
  struct Weights {
    AlignedBuffer data;
    int64_t bytes_each = 0;
    int copies = 0;
  };

  absl::StatusOr<Weights> Repeat(int64_t bytes, int num_tokens,
                                 const std::function<void(uint8_t*)>& prepack) {
    Weights w;
    w.bytes_each = (bytes + 255) / 256 * 256;
    const int64_t memory = options_.memory_bytes > 0 ? options_.memory_bytes : UncachedBytes();
    w.copies = num_tokens == 1 ? static_cast<int>(memory / w.bytes_each) + 1 : 1;
    ASSIGN_OR_RETURN(w.data, AlignedBuffer::Allocate(w.bytes_each * w.copies, "the weights"));
    prepack(w.data.data());
    for (int i = 1; i < w.copies; ++i) {
      std::memcpy(w.data.data() + i * w.bytes_each, w.data.data(), w.bytes_each);
    }
    return w;
  }

  // `multiply(weights, row_begin, row_end)` for all rows of all copies, shared by rows, with
  // `planes` products of bytes (0: of floats) for each weight and token.
  void Report(const std::string& name, int num_tokens, const Weights& weights, int planes,
              const std::function<void(const uint8_t*, int, int)>& multiply) {
    const int64_t blocks = options_.rows / kRowBlock;
    const double operations =
        2.0 * std::max(1, planes) * options_.rows * options_.cols * num_tokens;
    const auto kernel = [&] {
      // One region each, as the matrices of a model have.
      for (int i = 0; i < weights.copies; ++i) {
        pool_.ParallelFor(blocks, 1, [&](int64_t begin, int64_t end) {
          multiply(weights.data.data() + i * weights.bytes_each,
                   static_cast<int>(begin * kRowBlock), static_cast<int>(end * kRowBlock));
        });
      }
    };
    const bool by_memory = num_tokens == 1;
    const auto limit = [&] {
      if (by_memory) {
        return MedianSeconds(1, [&] {
          ReadOnAll(table_, pool_, weights.data.data(), weights.bytes_each * weights.copies);
        });
      }
      return operations / PeakRate(/*is_packed=*/planes > 0);
    };
    const InTurns measured = Measure(options_.repetitions, kernel, limit);
    on_rate_({.name = name,
              .shape = absl::StrCat(options_.rows, "x", options_.cols),
              .num_tokens = num_tokens,
              .seconds = measured.seconds / weights.copies,
              .gb_per_second = static_cast<double>(weights.bytes_each) * weights.copies /
                               measured.seconds * 1e-9,
              .gops = operations * weights.copies / measured.seconds * 1e-9,
              .share_of_limit = measured.share,
              .bound_by_memory = by_memory});
  }

  absl::Status Packed(int bits, int group_size, kernels::ActivationPrecision precision,
                      const std::string& name, int num_tokens) {
    const int rows = options_.rows;
    const int cols = options_.cols;
    PackedMatrix w{.rows = rows, .cols = cols, .bits = bits, .group_size = group_size};
    const int64_t num_groups = int64_t{rows} * w.num_groups();
    std::mt19937 random(1);
    std::vector<uint32_t> codes(rows * w.words_per_row());
    for (uint32_t& word : codes) word = random();
    const std::vector<uint32_t> zero_points(PackedWords(num_groups, bits), 0x55555555u);
    const std::vector<uint16_t> scales(num_groups, 0x2000);
    w.codes = codes.data();
    w.scales = scales.data();
    w.zero_points = zero_points.data();
    ASSIGN_OR_RETURN(const Weights weights,
                     Repeat(static_cast<int64_t>(table_.prepacked_bytes(w)), num_tokens,
                            [&](uint8_t* out) { table_.prepack(w, 0, rows, out); }));
    const kernels::ActivationFormat format{
        .cols = cols, .group_size = group_size, .precision = precision};
    const std::vector<float> x = RandomFloats(int64_t{num_tokens} * cols);
    ASSIGN_OR_RETURN(
        AlignedBuffer activations,
        AlignedBuffer::Allocate(static_cast<int64_t>(table_.activation_bytes(format, num_tokens)),
                                "the activations"));
    table_.quantize_activations(format, x.data(), cols, 0, num_tokens, activations.data());
    std::vector<float> y(int64_t{num_tokens} * rows);
    Report(name, num_tokens, weights, precision == kernels::ActivationPrecision::kInt16 ? 2 : 1,
           [&](const uint8_t* data, int begin, int end) {
             const PrepackedMatrix m{
                 .rows = rows, .cols = cols, .bits = bits, .group_size = group_size, .data = data};
             table_.matmul(m, activations.data(), format.precision, num_tokens, begin, end, false,
                           y.data(), rows);
           });
    return absl::OkStatus();
  }

  absl::Status Dense(const std::string& name, DenseMatrix::Type type, int num_tokens) {
    const int rows = options_.rows;
    const int cols = options_.cols;
    const std::vector<float> values = RandomFloats(int64_t{rows} * cols);
    const std::vector<uint16_t> halves(values.size(), 0x3c00);
    const bool wide = type == DenseMatrix::Type::kF32;
    const DenseMatrix w{.type = type,
                        .rows = rows,
                        .cols = cols,
                        .data = wide ? static_cast<const void*>(values.data()) : halves.data()};
    ASSIGN_OR_RETURN(const Weights weights,
                     Repeat(static_cast<int64_t>(table_.prepacked_dense_bytes(w)), num_tokens,
                            [&](uint8_t* out) { table_.prepack_dense(w, 0, rows, out); }));
    const std::vector<float> x = RandomFloats(int64_t{num_tokens} * cols);
    std::vector<float> y(int64_t{num_tokens} * rows);
    Report(name, num_tokens, weights, /*planes=*/0, [&](const uint8_t* data, int begin, int end) {
      const PrepackedMatrix m{.rows = rows, .cols = cols, .dense_type = type, .data = data};
      table_.matmul_dense(m, x.data(), cols, num_tokens, begin, end, false, y.data(), rows);
    });
    return absl::OkStatus();
  }

  // The last `num_tokens` of `positions`, each thread a sequence of its own.
  absl::Status Attention(int positions, int num_tokens) {
    const kernels::AttentionShape shape{.num_heads = 32, .num_kv_heads = 8, .head_dim = 64};
    const int width = shape.num_heads * shape.head_dim;
    const int64_t row = int64_t{shape.num_kv_heads} * shape.head_dim;
    constexpr int kPageTokens = 16;
    std::vector<int32_t> pages(positions / kPageTokens);
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
    const int threads = pool_.num_threads();
    std::vector<uint16_t> halves(2 * threads * positions * row);
    const std::vector<float> queries = RandomFloats(int64_t{num_tokens} * width);
    const size_t scratch_floats = table_.attention_scratch_floats(shape);
    std::vector<float> scratch(threads * scratch_floats), out(threads * queries.size());
    const auto pages_of = [&](int64_t thread) {
      uint16_t* keys = halves.data() + 2 * thread * positions * row;
      return kernels::PagedKv{.keys = keys,
                              .values = keys + positions * row,
                              .page_table = pages.data(),
                              .page_stride = kPageTokens * row,
                              .page_tokens = kPageTokens};
    };
    for (int thread = 0; thread < threads; ++thread) {
      for (int p = 0; p < positions; ++p) {
        table_.store_kv(pages_of(thread), shape, p, queries.data(), queries.data());
      }
    }
    const auto kernel = [&] {
      pool_.ParallelFor(threads, 1, [&](int64_t begin, int64_t end) {
        for (; begin < end; ++begin) {
          table_.attention(pages_of(begin), shape,
                           {.queries = queries.data(),
                            .query_stride = width,
                            .first_position = positions - num_tokens,
                            .num_tokens = num_tokens,
                            .head_end = shape.num_heads,
                            .out = out.data() + begin * static_cast<int64_t>(queries.size()),
                            .out_stride = width},
                           scratch.data() + begin * static_cast<int64_t>(scratch_floats));
        }
      });
    };
    const double operations =
        4.0 * width * num_tokens * threads * (positions - (num_tokens - 1) / 2.0);
    const InTurns measured =
        Measure(options_.repetitions, kernel, [&] { return operations / PeakRate(false); });
    on_rate_({.name = "attention",
              .shape = absl::StrCat("32/8x64 at ", positions),
              .num_tokens = num_tokens,
              .seconds = measured.seconds,
              .gb_per_second =
                  static_cast<double>(halves.size() * sizeof(uint16_t)) / measured.seconds * 1e-9,
              .gops = operations / measured.seconds * 1e-9,
              .share_of_limit = measured.share});
    return absl::OkStatus();
  }

  absl::Status Run() {
    bool any = false;
    const auto wanted = [&](absl::string_view name) {
      const bool is = absl::StrContains(name, options_.filter);
      any |= is;
      return is;
    };
    for (const int num_tokens : options_.tokens) {
      for (const int bits : {2, 3, 4, 8}) {
        for (const int group_size : {64, 128}) {
          for (const auto& [precision, suffix] :
               {std::pair{kernels::ActivationPrecision::kInt8, ""},
                std::pair{kernels::ActivationPrecision::kInt16, "a16"}}) {
            const std::string name = absl::StrCat("w", bits, "g", group_size, suffix);
            if (wanted(name)) {
              RETURN_IF_ERROR(Packed(bits, group_size, precision, name, num_tokens));
            }
          }
        }
      }
      using Type = DenseMatrix::Type;
      for (const auto& [name, type] :
           {std::pair{"f32", Type::kF32}, {"f16", Type::kF16}, {"bf16", Type::kBF16}}) {
        if (wanted(name)) RETURN_IF_ERROR(Dense(name, type, num_tokens));
      }
    }
    for (const int positions : {64, 512, 2048}) {
      for (const int num_tokens : {1, 16}) {
        if (wanted("attention")) RETURN_IF_ERROR(Attention(positions, num_tokens));
      }
    }
    if (any) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "no kernel's name contains \"", options_.filter,
        "\"; they are w2g64 to w8g128, the same with a16, f32, f16, bf16 and attention"));
  }

 private:
  // Operations per second of the loop that bounds a kernel, now.
  double PeakRate(bool is_packed) {
    int64_t operations = 0;
    const double seconds = MedianSeconds(1, [&] {
      operations = is_packed ? MultiplyBytesOnAll(table_, pool_, 500)
                             : MultiplyFloatsOnAll(table_, pool_, 500);
    });
    return static_cast<double>(operations) / seconds;
  }

  const KernelTable& table_;
  ThreadPool& pool_;
  const KernelRateOptions& options_;
  const std::function<void(const KernelRate&)>& on_rate_;
};

}  // namespace

absl::Status MeasureKernels(const KernelTable& table, ThreadPool& pool,
                            const KernelRateOptions& options,
                            const std::function<void(const KernelRate&)>& on_rate) {
  if (options.rows < kRowBlock || options.rows % kRowBlock != 0 || options.cols < 128 ||
      options.repetitions < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rows ", options.rows, ", cols ", options.cols, ", repetitions ", options.repetitions,
        ": wanted rows in multiples of ", kRowBlock, ", at least 128 cols and 1 repetition"));
  }
  return Measurer(table, pool, options, on_rate).Run();
}

}  // namespace quern
