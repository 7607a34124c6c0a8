#include "services/cli/load_report.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <algorithm>

namespace quern::cli {
namespace {

std::string Milliseconds(double seconds) { return absl::StrFormat("%.1f ms", seconds * 1e3); }

Json PercentilesOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {{"p50", Percentile(values, 0.5)},
          {"p90", Percentile(values, 0.9)},
          {"p99", Percentile(values, 0.99)}};
}

// With every percentile from 0 to 100, to be drawn.
Json DistributionOf(const std::vector<double>& values) {
  std::vector<double> sorted = values;
  std::sort(sorted.begin(), sorted.end());
  Json json = PercentilesOf(sorted);
  json["percentiles"] = Json::array();
  for (int i = 0; i <= 100 && !sorted.empty(); ++i) {
    json["percentiles"].push_back(Percentile(sorted, i / 100.0));
  }
  return json;
}

}  // namespace

int LoadSummary::num_failed() const {
  int sum = 0;
  for (const auto& [code, count] : failures) sum += count;
  return sum;
}

double LoadSummary::good_share() const {
  return num_sent() == 0 ? 1 : static_cast<double>(num_good) / num_sent();
}

LoadSummary Summarize(const std::vector<LoadOutcome>& outcomes, const LoadLimits& limits) {
  LoadSummary summary;
  for (const LoadOutcome& outcome : outcomes) {
    summary.window_tokens += outcome.window_tokens;
    summary.gaps.insert(summary.gaps.end(), outcome.gaps.begin(), outcome.gaps.end());
    switch (outcome.status.code()) {
      case absl::StatusCode::kOk:
        break;
      case absl::StatusCode::kResourceExhausted:
        ++summary.num_refused;
        summary.refused.push_back(outcome.whole);
        continue;
      case absl::StatusCode::kCancelled:
        ++summary.num_given_up;
        summary.first.push_back(outcome.first_token > 0 ? outcome.first_token : outcome.whole);
        continue;
      default:
        ++summary.failures[absl::StatusCodeToString(outcome.status.code())];
        summary.failure_example = std::string(outcome.status.message());
        continue;
    }
    ++summary.num_answered;
    summary.first.push_back(outcome.first_token);
    summary.next.push_back(outcome.next_token);
    summary.whole.push_back(outcome.whole);
    summary.prompt_tokens += std::max(0, outcome.usage.prompt_tokens);
    summary.cached_prompt_tokens += std::max(0, outcome.usage.cached_prompt_tokens);
    // An answer without any text has no first token that could be in time.
    if (outcome.usage.output_tokens > 0 && outcome.first_token <= limits.first_token &&
        outcome.next_token <= limits.next_token) {
      ++summary.num_good;
    }
  }
  return summary;
}

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const auto index = static_cast<ptrdiff_t>(share * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + index, values.end());
  return values[index];
}

std::vector<std::string> LoadColumns() {
  return {"answered", "refused", "failed",    "first token p50", "p99",   "next token p50",
          "p99",      "gap p99", "whole p99", "tokens/s",        "good/s"};
}

std::vector<std::string> LoadCells(const LoadSummary& summary, double seconds) {
  return {absl::StrCat(summary.num_answered),
          absl::StrCat(summary.num_refused),
          absl::StrCat(summary.num_failed() + summary.num_given_up),
          Milliseconds(Percentile(summary.first, 0.5)),
          Milliseconds(Percentile(summary.first, 0.99)),
          Milliseconds(Percentile(summary.next, 0.5)),
          Milliseconds(Percentile(summary.next, 0.99)),
          Milliseconds(Percentile(summary.gaps, 0.99)),
          absl::StrFormat("%.1f s", Percentile(summary.whole, 0.99)),
          absl::StrFormat("%.1f", summary.window_tokens / seconds),
          absl::StrFormat("%.2f", summary.num_good / seconds)};
}

Json LoadJson(const LoadSummary& summary, double seconds) {
  return {{"sent", summary.num_sent()},
          {"answered", summary.num_answered},
          {"refused", summary.num_refused},
          {"givenUp", summary.num_given_up},
          {"failures", summary.failures},
          {"good", summary.num_good},
          {"goodShare", summary.good_share()},
          {"firstTokenSeconds", DistributionOf(summary.first)},
          {"nextTokenSeconds", DistributionOf(summary.next)},
          {"gapSeconds", DistributionOf(summary.gaps)},
          {"wholeSeconds", DistributionOf(summary.whole)},
          {"refusedSeconds", PercentilesOf(summary.refused)},
          {"promptTokens", summary.prompt_tokens},
          {"cachedPromptTokens", summary.cached_prompt_tokens},
          {"outputTokensPerSecond", summary.window_tokens / seconds},
          {"goodPerSecond", summary.num_good / seconds}};
}

std::string LoadNotes(const std::string& name, const LoadSummary& summary) {
  std::string notes;
  if (summary.num_refused > 0) {
    absl::StrAppendFormat(&notes, "%s: %d refused, within %s (p50), %s (p99)\n", name,
                          summary.num_refused, Milliseconds(Percentile(summary.refused, 0.5)),
                          Milliseconds(Percentile(summary.refused, 0.99)));
  }
  if (summary.num_given_up > 0) {
    absl::StrAppendFormat(&notes, "%s: %d given up, not answered in time\n", name,
                          summary.num_given_up);
  }
  for (const auto& [code, count] : summary.failures) {
    absl::StrAppendFormat(&notes, "%s: %d failed with %s\n", name, count, code);
  }
  if (!summary.failure_example.empty()) {
    absl::StrAppendFormat(&notes, "%s: one of them: %s\n", name, summary.failure_example);
  }
  return notes;
}

}  // namespace quern::cli
