// Speed and memory of Block-AP's training steps on one block of a well-known shape, for
// tests/oracle/compare_speed.py; no test.
//   block_ap_speed SHAPE TOKENS NUM_STEPS NUM_THREADS FLOAT32|BFLOAT16 [PROFILE]
// Prints JSON: tokens per second (of the median step), the products' share of the machine's own
// rate, and the largest resident set. With PROFILE a table of where the time went is printed to the
// standard error; counting costs some percent of it.

#include <absl/strings/numbers.h>
#include <absl/time/clock.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/base/large_pages.h"
#include "core/base/status_macros.h"
#include "core/bench/synthetic_model.h"
#include "core/quant/block_ap.h"
#include "core/quant/device.h"
#include "core/quant/profile.h"
#include "core/quant/quantize.h"

namespace quern {
namespace {

constexpr int kBatchSize = 2;

TorchBlock RandomBlock(const ModelConfig& config) {
  const auto matrix = [](int64_t rows, int64_t cols) {
    return at::randn({rows, cols}, at::kFloat) / std::sqrt(static_cast<double>(cols));
  };
  const int64_t hidden = config.hidden_size;
  const int64_t heads = int64_t{config.num_attention_heads} * config.head_dim;
  TorchBlock block;
  block.linears[kQProj].weight = matrix(heads, hidden);
  block.linears[kKProj].weight = matrix(config.kv_size(), hidden);
  block.linears[kVProj].weight = matrix(config.kv_size(), hidden);
  block.linears[kOProj].weight = matrix(hidden, heads);
  block.linears[kGateProj].weight = matrix(config.intermediate_size, hidden);
  block.linears[kUpProj].weight = matrix(config.intermediate_size, hidden);
  block.linears[kDownProj].weight = matrix(hidden, config.intermediate_size);
  block.input_norm = at::ones({hidden});
  block.post_attention_norm = at::ones({hidden});
  return block;
}

absl::Status Run(const std::string& shape, int num_tokens, int num_steps, int num_threads,
                 ComputeDtype compute_dtype, bool profile) {
  ASSIGN_OR_RETURN(const ProductRates rates, MeasureProductRates("cpu", num_threads));
  ASSIGN_OR_RETURN(const ModelConfig config, SyntheticConfig(shape));
  at::manual_seed(1);
  const TorchBlock source = RandomBlock(config);
  // Between epochs trained values are kept to come back to: in a run after hundreds of steps, so
  // not in the median step here.
  constexpr int kEpochSteps = 4;
  const int num_sequences = kEpochSteps * kBatchSize;
  const at::Tensor states = at::randn({int64_t{num_sequences} * num_tokens, config.hidden_size});
  const at::Tensor ids =
      at::arange(int64_t{num_sequences} * num_tokens).view({num_sequences, num_tokens});
  const ActivationStore inputs(states, ids);
  ActivationStore targets = inputs.Copy();
  const RotaryTables rotary = MakeRotaryTables(config, num_tokens, at::kCPU);
  targets.Advance(config, rotary, 0, source);
  const QuantFormat format{.bits = 2, .group_size = 64};
  const BlockApSettings settings{.sample_count = num_sequences,
                                 .sequence_length_tokens = num_tokens,
                                 .epoch_count = (num_steps + kEpochSteps - 1) / kEpochSteps,
                                 .batch_size = kBatchSize,
                                 .weight_learning_rate = 2e-5,
                                 .quant_learning_rate = 1e-4,
                                 .zero_point_learning_rate = 1e-4,
                                 .validation_sample_count = 0,
                                 .start = QuantStart::kMinMax,
                                 .target = BlockTarget::kSourceStream,
                                 .loss = BlockLoss::kMeanSquares,
                                 .round_scales = false};
  std::vector<absl::Time> times;
  const BlockApContext context{.config = config,
                               .rotary = rotary,
                               .format = format,
                               .settings = settings,
                               .compute_dtype = ToScalarType(compute_dtype),
                               .on_step = [&](int64_t, double) { times.push_back(absl::Now()); }};
  if (profile) StartProfile();
  const absl::Time start = absl::Now();
  RETURN_IF_ERROR(TrainBlock(context, 0, source, inputs, {&targets}, {}).status());
  if (profile) {
    const double wall_seconds = absl::ToDoubleSeconds(absl::Now() - start);
    std::cerr << FormatProfile(StopProfile(), wall_seconds, rates);
  }
  std::vector<double> seconds;
  for (size_t i = 1; i < times.size(); ++i) {
    seconds.push_back(absl::ToDoubleSeconds(times[i] - times[i - 1]));
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  const double step_seconds = seconds[seconds.size() / 2];
  const double tokens = kBatchSize * num_tokens;
  double weights = 0;
  for (const TorchLinear& linear : source.linears) weights += linear.weight.numel();
  // Forward, and backward to inputs and weights; of attention the half that is not masked, whose
  // way back computes the scores again.
  const double flop =
      tokens * (6 * weights + 7.0 * num_tokens * config.num_attention_heads * config.head_dim);
  const double rate = compute_dtype == ComputeDtype::kBfloat16 ? rates.bfloat16 : rates.float32;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::cout << DumpCanonicalJson({{"tokens_per_second", tokens / step_seconds},
                                  {"gflops", flop / step_seconds / 1e9},
                                  {"share", flop / step_seconds / 1e9 / rate},
                                  {"peak_rss_bytes", int64_t{usage.ru_maxrss} * 1024}})
            << std::endl;
  return absl::OkStatus();
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) {
  quern::UseLargePages(argv);  // as quern-quantizer does
  int num_tokens = 0;
  int num_steps = 0;
  int num_threads = 0;
  if (argc < 6 || argc > 7 || !absl::SimpleAtoi(argv[2], &num_tokens) ||
      !absl::SimpleAtoi(argv[3], &num_steps) || !absl::SimpleAtoi(argv[4], &num_threads)) {
    std::cerr << "usage: block_ap_speed SHAPE TOKENS NUM_STEPS NUM_THREADS FLOAT32|BFLOAT16 "
                 "[PROFILE]\n";
    return 2;
  }
  const auto compute_dtype = std::string(argv[5]) == "BFLOAT16" ? quern::ComputeDtype::kBfloat16
                                                                : quern::ComputeDtype::kFloat32;
  const absl::Status status =
      quern::Run(argv[1], num_tokens, num_steps, num_threads, compute_dtype, argc == 7);
  if (status.ok()) return 0;
  std::cerr << status << std::endl;
  return 1;
}
