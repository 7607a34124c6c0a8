#include "core/engine/sampler.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
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
  float best = -std::numeric_limits<float>::infinity();
  int32_t best_id = -1;
  bool has_nan = false;
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    has_nan |= std::isnan(logits[id]);
    if (logits[id] > best) {
      best = logits[id];
      best_id = id;
    }
  }
  return has_nan || best == std::numeric_limits<float>::infinity() ? -1 : best_id;
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

}  // namespace

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
    if (params.top_p == 1 && params.min_p == 0) return DrawFromAll(weights, sum, uniform);
    // Ids lighter than an even share of what top_p leaves out sum to less than that, so the others
    // reach top_p without them. Half of it, to be far from rounding.
    const double lightest =
        std::max<double>(params.min_p, 0.5 * (1 - params.top_p) * sum / vocab_size);
    candidates.clear();
    for (size_t id = 0; id < vocab_size; ++id) {
      if (weights[id] >= lightest) candidates.push_back(static_cast<int32_t>(id));
    }
  }
  if (params.top_p < 1) KeepTopP(logits, weights, params.top_p * sum, candidates);
  if (params.min_p > 0) {
    std::erase_if(candidates, [&](int32_t id) { return weights[id] < params.min_p; });
  }
  return Draw(weights, uniform, candidates);
}

}  // namespace quern
