#include "core/engine/sampler.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace quern {
namespace {

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// More probable first; the lower id of equals. By logits: different ones may share a weight.
struct MoreProbable {
  absl::Span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

// Id of the greatest logit, or -1 when a draw from these would mean nothing.
int32_t ArgMax(absl::Span<const float> logits) {
  // Vectors of the compiler's own: at -O2 GCC 12 makes none of a plain loop that minds NaN, which
  // took 3 % of SmolLM2-135M's step. Pieces, so that where the greatest lies is looked up in one
  // of them alone.
  using Vector = float __attribute__((vector_size(16)));
  using Mask = int32_t __attribute__((vector_size(16)));
  constexpr size_t kVectors = 4;  // maxima apart: each waits for the one before it
  constexpr size_t kLanes = sizeof(Vector) / sizeof(float);
  constexpr size_t kPiece = 64 * kVectors * kLanes;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();

  float greatest = -kInfinity;
  absl::Span<const float> where;
  bool has_nan = false;
  for (size_t begin = 0; begin < logits.size(); begin += kPiece) {
    const absl::Span<const float> piece = logits.subspan(begin, kPiece);
    const size_t whole = piece.size() / (kVectors * kLanes) * (kVectors * kLanes);
    Vector best[kVectors];
    std::fill_n(best, kVectors, Vector{} - kInfinity);
    Mask nan[kVectors] = {};
    for (size_t i = 0; i < whole; i += kVectors * kLanes) {
      for (size_t v = 0; v < kVectors; ++v) {
        Vector x;
        std::memcpy(&x, piece.data() + i + v * kLanes, sizeof(x));
        nan[v] |= x != x;
        best[v] = x > best[v] ? x : best[v];
      }
    }
    float most = -kInfinity;
    for (size_t lane = 0; lane < kVectors * kLanes; ++lane) {
      most = std::max(most, best[lane / kLanes][lane % kLanes]);
      has_nan |= nan[lane / kLanes][lane % kLanes] != 0;
    }
    for (const float logit : piece.subspan(whole)) {
      most = std::max(most, logit);
      has_nan |= std::isnan(logit);
    }
    if (most > greatest) {
      greatest = most;
      where = piece;
    }
  }
  if (has_nan || std::isinf(greatest)) return -1;
  const float* found = std::find(where.begin(), where.end(), greatest);
  return static_cast<int32_t>(found - logits.data());
}

// Puts the `k` most probable ids of the vocabulary into `candidates`, in no order. Keeps at most
// about twice as many at a time, so that the vocabulary is only walked.
void KeepTopK(absl::Span<const float> logits, int k, std::vector<int32_t>& candidates) {
  const MoreProbable more_probable{logits};
  const size_t room = 2 * static_cast<size_t>(k) + 64;
  float threshold = -std::numeric_limits<float>::infinity();
  const auto shrink = [&] {
    std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(),
                     more_probable);
    candidates.resize(k);
    threshold = logits[candidates[k - 1]];
  };
  candidates.clear();
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    // An equal logit loses to the lower id that is there already.
    if (candidates.size() >= static_cast<size_t>(k) && logits[id] <= threshold) continue;
    candidates.push_back(id);
    if (candidates.size() == room) shrink();
  }
  if (candidates.size() > static_cast<size_t>(k)) shrink();
}

// Shortens `candidates` to the fewest most probable ones whose weights reach `target`. Sorts only
// as many as it needs.
void KeepTopP(absl::Span<const float> logits, absl::Span<const float> weights, double target,
              std::vector<int32_t>& candidates) {
  const MoreProbable more_probable{logits};
  double sum = 0;
  size_t done = 0;
  for (size_t piece = 64; done < candidates.size(); piece *= 4) {
    const auto begin = candidates.begin() + done;
    const size_t end = std::min(done + piece, candidates.size());
    if (end < candidates.size()) {
      std::nth_element(begin, candidates.begin() + end, candidates.end(), more_probable);
    }
    std::sort(begin, candidates.begin() + end, more_probable);
    while (done < end) {
      sum += weights[candidates[done++]];
      if (sum >= target) {
        candidates.resize(done);
        return;
      }
    }
  }
}

// The candidate (by id in ascending order) at which the running sum passes `uniform` of the whole.
int32_t Draw(absl::Span<const float> weights, double uniform, std::vector<int32_t>& candidates) {
  std::sort(candidates.begin(), candidates.end());
  double sum = 0;
  for (int32_t id : candidates) sum += weights[id];
  double left = uniform * sum;
  int32_t last = candidates.front();
  for (int32_t id : candidates) {
    if (weights[id] == 0) continue;
    last = id;
    left -= weights[id];
    if (left < 0) break;
  }
  return last;
}

int32_t DrawFromAll(absl::Span<const float> weights, double sum, double uniform) {
  double left = uniform * sum;
  int32_t last = 0;
  for (int32_t id = 0; id < static_cast<int32_t>(weights.size()); ++id) {
    if (weights[id] == 0) continue;
    last = id;
    left -= weights[id];
    if (left < 0) break;
  }
  return last;
}

// Shortens `candidates` to the fewest that reach `target` of the weights, those whose surprise
// -log p is nearest to its mean over all of them first.
void KeepTypical(absl::Span<const float> logits, absl::Span<const float> weights, float temperature,
                 double target_share, std::vector<int32_t>& candidates) {
  double sum = 0;
  double mean = 0;  // of logit / temperature
  for (int32_t id : candidates) {
    if (weights[id] == 0) continue;
    sum += weights[id];
    mean += static_cast<double>(weights[id]) * (logits[id] / temperature);
  }
  mean /= sum;
  const auto distance = [&](int32_t id) { return std::abs(logits[id] / temperature - mean); };
  std::sort(candidates.begin(), candidates.end(), [&](int32_t a, int32_t b) {
    const double da = distance(a), db = distance(b);
    return da != db ? da < db : a < b;
  });
  double reached = 0;
  size_t count = 0;
  while (count < candidates.size() && reached < target_share * sum) {
    reached += weights[candidates[count++]];
  }
  candidates.resize(std::max<size_t>(count, 1));
}

bool ChangesLogits(const SamplingParams& params, const DrawContext& context) {
  return params.repetition_penalty != 1 || params.presence_penalty != 0 ||
         params.frequency_penalty != 0 || !params.logit_bias.empty() || !context.excluded.empty() ||
         !context.allowed.empty();
}

// -infinity for all but the ids that `context` allows.
void Mask(absl::Span<const float> logits, const DrawContext& context, std::vector<float>& out) {
  for (size_t begin = 0; begin < out.size(); begin += 64) {
    const uint64_t word = context.allowed[begin / 64];
    if (word == ~uint64_t{0}) continue;
    const size_t count = std::min<size_t>(64, out.size() - begin);
    for (size_t i = 0; i < count; ++i) {
      if ((word >> i & 1) == 0) out[begin + i] = -std::numeric_limits<float>::infinity();
    }
  }
  for (const int32_t id : context.also_allowed) out[id] = logits[id];
}

}  // namespace

void SamplerScratch::Reserve(int vocab_size) {
  weights.reserve(vocab_size);
  candidates.reserve(vocab_size);
  logits.reserve(vocab_size);
  counts.resize(vocab_size);
}

absl::Span<const float> AdjustLogits(absl::Span<const float> logits, const SamplingParams& params,
                                     const DrawContext& context, SamplerScratch& scratch) {
  if (!ChangesLogits(params, context)) return logits;
  std::vector<float>& out = scratch.logits;
  out.assign(logits.begin(), logits.end());
  if (!context.allowed.empty()) Mask(logits, context, out);
  std::vector<int32_t>& counts = scratch.counts;
  for (int32_t id : context.output) ++counts[id];
  const auto repeat = [&](int32_t id) {
    const float penalty = params.repetition_penalty;
    out[id] = out[id] > 0 ? out[id] / penalty : out[id] * penalty;
  };
  for (int32_t id : context.output) {
    if (counts[id] == 0) continue;  // done, further up
    repeat(id);
    out[id] -= params.presence_penalty + params.frequency_penalty * static_cast<float>(counts[id]);
    counts[id] = 0;
  }
  if (params.repetition_penalty != 1) {
    // Each id once, and those of the output not again.
    for (int32_t id : context.output) counts[id] = 1;
    for (int32_t id : context.prompt) {
      if (counts[id]++ == 0) repeat(id);
    }
    for (int32_t id : context.output) counts[id] = 0;
    for (int32_t id : context.prompt) counts[id] = 0;
  }
  for (const auto& [id, bias] : params.logit_bias) out[id] += bias;
  for (int32_t id : context.excluded) out[id] = -std::numeric_limits<float>::infinity();
  return out;
}

TokenLogprob Logprobs(absl::Span<const float> logits, int32_t id,
                      absl::Span<TokenLogprob> most_probable, SamplerScratch& scratch) {
  const float greatest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - greatest);
  const double log_sum = greatest + std::log(sum);
  const auto logprob = [&](int32_t i) {
    return TokenLogprob{i, static_cast<float>(logits[i] - log_sum)};
  };
  if (!most_probable.empty()) {
    KeepTopK(logits, static_cast<int>(most_probable.size()), scratch.candidates);
    std::sort(scratch.candidates.begin(), scratch.candidates.end(), MoreProbable{logits});
    std::transform(scratch.candidates.begin(), scratch.candidates.end(), most_probable.begin(),
                   logprob);
  }
  return logprob(id);
}

double UniformAt(uint64_t seed, uint64_t index) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;
  const uint64_t bits = Mix(Mix(seed + kGolden) + (index + 1) * kGolden);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

absl::StatusOr<int32_t> SampleToken(absl::Span<const float> logits, const SamplingParams& params,
                                    uint64_t seed, uint64_t index, SamplerScratch& scratch) {
  const int32_t best = ArgMax(logits);
  if (best < 0) {
    return absl::InternalError(
        absl::StrCat("the model's logits for token ", index, " of the answer are not finite"));
  }
  if (params.temperature == 0 || params.top_k == 1) return best;

  const size_t vocab_size = logits.size();
  const bool limit_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < vocab_size;
  const double uniform = UniformAt(seed, index);
  std::vector<float>& weights = scratch.weights;
  std::vector<int32_t>& candidates = scratch.candidates;
  weights.resize(vocab_size);
  const auto weigh = [&](int32_t id) {
    // The greatest weight is 1. Divided, not multiplied: 1 / temperature may be infinite.
    return weights[id] = std::exp((logits[id] - logits[best]) / params.temperature);
  };

  double sum = 0;
  if (limit_k) {
    KeepTopK(logits, params.top_k, candidates);
    // Summed by id: the order must not depend on how the selection went.
    std::sort(candidates.begin(), candidates.end());
    for (int32_t id : candidates) sum += weigh(id);
  } else {
    for (size_t id = 0; id < vocab_size; ++id) sum += weigh(static_cast<int32_t>(id));
    if (params.typical_p == 1 && params.top_p == 1 && params.min_p == 0) {
      return DrawFromAll(weights, sum, uniform);
    }
    // Ids lighter than an even share of what top_p leaves out sum to less than that, so the others
    // reach top_p without them. Half of it, to be far from rounding.
    // (What typical_p keeps is measured against all.)
    const double lightest =
        params.typical_p < 1
            ? 0
            : std::max<double>(params.min_p, 0.5 * (1 - params.top_p) * sum / vocab_size);
    candidates.clear();
    for (size_t id = 0; id < vocab_size; ++id) {
      if (weights[id] >= lightest) candidates.push_back(static_cast<int32_t>(id));
    }
  }
  if (params.typical_p < 1) {
    KeepTypical(logits, weights, params.temperature, params.typical_p, candidates);
    std::sort(candidates.begin(), candidates.end());
    sum = 0;
    for (int32_t id : candidates) sum += weights[id];
  }
  if (params.top_p < 1) KeepTopP(logits, weights, params.top_p * sum, candidates);
  if (params.min_p > 0) {
    std::erase_if(candidates, [&](int32_t id) { return weights[id] < params.min_p; });
  }
  return Draw(weights, uniform, candidates);
}

}  // namespace quern
