#include "core/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "tests/support/status_matchers.h"

namespace quern {
namespace {

std::vector<float> RandomLogits(int vocab_size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(vocab_size);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

int32_t Sample(const std::vector<float>& logits, const SamplingParams& params, uint64_t seed,
               uint64_t index) {
  SamplerScratch scratch;
  const auto token = SampleToken(logits, params, seed, index, scratch);
  EXPECT_OK(token);
  return token.value_or(-1);
}

// The probabilities the parameters ask for, by sorting everything.
std::vector<double> Expected(const std::vector<float>& logits, const SamplingParams& params) {
  const size_t n = logits.size();
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  if (params.top_k > 0) order.resize(std::min<size_t>(n, params.top_k));
  std::vector<double> weights(n, 0.0);
  double sum = 0;
  for (int id : order) {
    weights[id] = std::exp((double{logits[id]} - logits[order[0]]) / params.temperature);
    sum += weights[id];
  }
  double running = 0;
  size_t keep = 0;
  while (keep < order.size() && (keep == 0 || running < params.top_p * sum)) {
    if (weights[order[keep]] < params.min_p) break;
    running += weights[order[keep++]];
  }
  std::vector<double> probabilities(n, 0.0);
  for (size_t i = 0; i < keep; ++i) probabilities[order[i]] = weights[order[i]] / running;
  return probabilities;
}

TEST(SamplerTest, GreedyTakesTheGreatestAndTheLowestIdOfEquals) {
  EXPECT_EQ(Sample({0, 3, -1, 3, 2}, {}, 1, 0), 1);
  EXPECT_EQ(Sample({-5}, {}, 1, 0), 0);
}

TEST(SamplerTest, GreedyLooksEverywhereInLargeVocabularies) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  SamplerScratch scratch;
  for (const int size : {1024, 2053, 3000}) {
    const std::vector<float> random = RandomLogits(size, 5);
    for (const int id : {0, 15, 16, 17, 1023, 1024, 2047, 2048, 2052, 2999}) {
      if (id >= size) continue;
      std::vector<float> logits = random;
      logits[id] = 100;
      logits.back() = 100;
      EXPECT_EQ(Sample(logits, {}, 1, 0), id) << size;
      logits[id] = nan;
      EXPECT_THAT(SampleToken(logits, {}, 1, 0, scratch),
                  StatusIs(absl::StatusCode::kInternal, testing::HasSubstr("not finite")))
          << size << ", " << id;
    }
  }
}

TEST(SamplerTest, TopOneIsGreedyAtAnyTemperature) {
  // A temperature at which the two greatest have the same weight.
  const std::vector<float> logits = {0.0f, 1e-7f, -1.0f};
  for (uint64_t index = 0; index < 50; ++index) {
    EXPECT_EQ(Sample(logits, {.temperature = 5, .top_k = 1}, 3, index), 1);
  }
}

TEST(SamplerTest, RefusesLogitsThatMeanNothing) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  SamplerScratch scratch;
  for (const std::vector<float>& logits :
       {std::vector<float>{1, nan, 2}, {1, infinity}, {-infinity, -infinity}}) {
    for (const float temperature : {0.0f, 1.0f}) {
      EXPECT_THAT(SampleToken(logits, {.temperature = temperature}, 1, 0, scratch),
                  StatusIs(absl::StatusCode::kInternal, testing::HasSubstr("not finite")));
    }
  }
  EXPECT_EQ(Sample({1, -infinity, 2}, {}, 1, 0), 2);
}

TEST(SamplerTest, ADrawDependsOnSeedAndIndexAlone) {
  const std::vector<float> logits = RandomLogits(500, 1);
  const SamplingParams params{.temperature = 1, .top_p = 0.9f};
  SamplerScratch used;
  std::set<int32_t> seen;
  for (uint64_t index = 0; index < 100; ++index) {
    const auto token = SampleToken(logits, params, 7, index, used);
    ASSERT_OK(token);
    EXPECT_EQ(*token, Sample(logits, params, 7, index));
    seen.insert(*token);
  }
  EXPECT_GT(seen.size(), 10u);
}

TEST(SamplerTest, UniformsAreEvenAndUnrelatedBetweenNeighbours) {
  constexpr int kBins = 64;
  constexpr int kDraws = 64000;
  // Neighbouring seeds at one index, and neighbouring indexes of one seed.
  for (const bool by_seed : {false, true}) {
    std::vector<int> bins(kBins, 0);
    double product = 0;
    double previous = 0.5;
    for (int i = 0; i < kDraws; ++i) {
      const double u = by_seed ? UniformAt(i, 0) : UniformAt(42, i);
      ASSERT_GE(u, 0);
      ASSERT_LT(u, 1);
      ++bins[static_cast<int>(u * kBins)];
      product += (u - 0.5) * (previous - 0.5);
      previous = u;
    }
    double chi_square = 0;
    for (const int count : bins) {
      const double expected = double{kDraws} / kBins;
      chi_square += (count - expected) * (count - expected) / expected;
    }
    EXPECT_LT(chi_square, 103.4);  // 63 degrees of freedom, p = 0.001
    // Correlation of neighbours: standard deviation 1 / sqrt(draws).
    EXPECT_LT(std::abs(product / kDraws * 12), 4 / std::sqrt(double{kDraws}));
  }
}

class SamplerDistributionTest : public testing::TestWithParam<SamplingParams> {};

TEST_P(SamplerDistributionTest, DrawsAreAsOftenAsTheirProbability) {
  const SamplingParams& params = GetParam();
  constexpr int kDraws = 40000;
  const std::vector<float> logits = RandomLogits(200, 5);
  const std::vector<double> expected = Expected(logits, params);
  std::vector<int> counts(logits.size(), 0);
  SamplerScratch scratch;
  for (int i = 0; i < kDraws; ++i) {
    const auto token = SampleToken(logits, params, 11, i, scratch);
    ASSERT_OK(token);
    ++counts[*token];
  }
  double chi_square = 0;
  int cells = 0;
  double rare_expected = 0;
  int rare_count = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    const double mean = expected[id] * kDraws;
    if (mean == 0) {
      EXPECT_EQ(counts[id], 0) << "id " << id << " should have been left out";
    } else if (mean < 5) {
      rare_expected += mean;
      rare_count += counts[id];
    } else {
      chi_square += (counts[id] - mean) * (counts[id] - mean) / mean;
      ++cells;
    }
  }
  if (rare_expected >= 5) {
    chi_square += (rare_count - rare_expected) * (rare_count - rare_expected) / rare_expected;
    ++cells;
  }
  // Wilson-Hilferty bound of the chi-square distribution at p = 0.001.
  const double freedom = std::max(1, cells - 1);
  const double term = 1 - 2 / (9 * freedom) + 3.09 * std::sqrt(2 / (9 * freedom));
  EXPECT_LE(chi_square, freedom * term * term * term) << cells << " cells";
}

INSTANTIATE_TEST_SUITE_P(
    All, SamplerDistributionTest,
    testing::Values(SamplingParams{.temperature = 1}, SamplingParams{.temperature = 0.5f},
                    SamplingParams{.temperature = 3}, SamplingParams{.temperature = 1, .top_k = 5},
                    SamplingParams{.temperature = 1, .top_k = 199},
                    SamplingParams{.temperature = 1, .top_k = 1000},
                    SamplingParams{.temperature = 1, .top_p = 0.5f},
                    SamplingParams{.temperature = 2, .top_p = 0.99f},
                    SamplingParams{.temperature = 1, .top_p = 1e-6f},
                    SamplingParams{.temperature = 1, .min_p = 0.1f},
                    SamplingParams{.temperature = 1, .top_k = 40, .top_p = 0.9f, .min_p = 0.02f}));

TEST(SamplerTest, LimitsKeepExactlyTheSetThatSortingGives) {
  // Many equal logits: the lower ids must win.
  std::vector<float> logits = RandomLogits(3000, 9);
  for (float& logit : logits) logit = std::round(logit);
  SamplerScratch scratch;
  for (const SamplingParams& params :
       {SamplingParams{.temperature = 1, .top_k = 7},
        SamplingParams{.temperature = 1, .top_k = 700},
        SamplingParams{.temperature = 1, .top_p = 0.3f},
        SamplingParams{.temperature = 1, .top_k = 100, .top_p = 0.5f}}) {
    const std::vector<double> expected = Expected(logits, params);
    for (int i = 0; i < 2000; ++i) {
      const auto token = SampleToken(logits, params, 2, i, scratch);
      ASSERT_OK(token);
      ASSERT_GT(expected[*token], 0) << "top_k " << params.top_k << " top_p " << params.top_p;
    }
  }
}

TEST(SamplerTest, ATinyTemperatureIsGreedyAndNotNan) {
  EXPECT_EQ(Sample({1, 5, 3}, {.temperature = 1e-38f}, 1, 0), 1);
  EXPECT_EQ(Sample({1, 5, 3}, {.temperature = 1e-38f, .top_p = 0.5f, .min_p = 0.5f}, 1, 0), 1);
}

TEST(SamplingParamsTest, ValidateNamesTheField) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::pair<SamplingParams, std::string> cases[] = {{{.temperature = -1}, "temperature"},
                                                          {{.temperature = nan}, "temperature"},
                                                          {{.top_k = -1}, "top_k"},
                                                          {{.top_p = 0}, "top_p"},
                                                          {{.top_p = 1.5f}, "top_p"},
                                                          {{.top_p = nan}, "top_p"},
                                                          {{.min_p = 1}, "min_p"},
                                                          {{.min_p = -0.1f}, "min_p"}};
  for (const auto& [params, field] : cases) {
    EXPECT_THAT(params.Validate(),
                StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr(field)));
  }
  EXPECT_OK(SamplingParams{}.Validate());
}

std::vector<float> Adjusted(const std::vector<float>& logits, const SamplingParams& params,
                            const DrawContext& context) {
  SamplerScratch scratch;
  scratch.Reserve(static_cast<int>(logits.size()));
  const auto out = AdjustLogits(logits, params, context, scratch);
  EXPECT_THAT(scratch.counts, testing::Each(0)) << "a draw must leave none for the next";
  return {out.begin(), out.end()};
}

TEST(SamplerTest, PenaltiesAndBiasesAreAsTheirSourcesSay) {
  const std::vector<float> logits = {2, -2, 1, 0.5f, 3};
  const std::vector<int32_t> prompt = {0, 1, 0};
  const std::vector<int32_t> output = {1, 2, 2};
  const DrawContext context{.prompt = prompt, .output = output};
  EXPECT_EQ(Adjusted(logits, {}, context), logits);
  // Prompt and output, each id once.
  EXPECT_EQ(Adjusted(logits, {.repetition_penalty = 2}, context),
            (std::vector<float>{1, -4, 0.5f, 0.5f, 3}));
  EXPECT_EQ(Adjusted(logits, {.presence_penalty = 0.25f}, context),
            (std::vector<float>{2, -2.25f, 0.75f, 0.5f, 3}));
  EXPECT_EQ(Adjusted(logits, {.frequency_penalty = 0.25f}, context),
            (std::vector<float>{2, -2.25f, 0.5f, 0.5f, 3}));
  EXPECT_EQ(Adjusted(logits, {.logit_bias = {{4, -5.0f}, {0, 1.0f}}}, context),
            (std::vector<float>{3, -2, 1, 0.5f, -2}));
  const std::vector<int32_t> excluded = {4};
  EXPECT_EQ(Adjusted(logits, {}, {.excluded = excluded})[4],
            -std::numeric_limits<float>::infinity());
}

TEST(SamplerTest, TypicalKeepsWhatIsNearestToTheExpectedSurprise) {
  // Probabilities 0.5, 0.25, 0.125, 0.125: entropy 1.75 bits, distances 0.75, 0.25, 1.25, 1.25.
  const std::vector<float> logits = {std::log(0.5f), std::log(0.25f), std::log(0.125f),
                                     std::log(0.125f)};
  const auto drawn = [&](float typical_p) {
    std::set<int32_t> ids;
    const SamplingParams params{.temperature = 1, .typical_p = typical_p};
    for (uint64_t i = 0; i < 400; ++i) ids.insert(Sample(logits, params, 5, i));
    return ids;
  };
  EXPECT_EQ(drawn(0.2f), (std::set<int32_t>{1}));
  EXPECT_EQ(drawn(0.7f), (std::set<int32_t>{0, 1}));
  EXPECT_EQ(drawn(0.8f), (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(drawn(1), (std::set<int32_t>{0, 1, 2, 3}));
}

}  // namespace
}  // namespace quern
