#ifndef QUERN_SERVICES_CLI_LOAD_REPORT_H_
#define QUERN_SERVICES_CLI_LOAD_REPORT_H_

// What a load test says of many requests.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "services/cli/load.h"

namespace quern::cli {

// What makes an answer a good one, in seconds.
struct LoadLimits {
  double first_token = 0;
  double next_token = 0;
};

// Every request is in one of the four counts. Times in seconds.
struct LoadSummary {
  int num_answered = 0;
  int num_refused = 0;  // RESOURCE_EXHAUSTED, HTTP's 429
  int num_given_up = 0;
  std::map<std::string, int> failures;  // any other, by code
  std::string failure_example;
  int num_good = 0;  // answered within the limits

  // Of the answered; given-up ones count in `first` with what they had waited, so that a queue
  // that was not worked off still shows.
  std::vector<double> first, next, whole;
  std::vector<double> gaps;  // between pieces
  std::vector<double> refused;

  double window_tokens = 0;
  int64_t prompt_tokens = 0;  // as far as the server says them
  int64_t cached_prompt_tokens = 0;

  int num_failed() const;
  int num_sent() const { return num_answered + num_refused + num_given_up + num_failed(); }
  // 1 when nothing was sent.
  double good_share() const;
};

LoadSummary Summarize(const std::vector<LoadOutcome>& outcomes, const LoadLimits& limits);

// The value that `share` of `values` do not exceed (nearest rank); 0 for none.
double Percentile(std::vector<double> values, double share);

// The columns after the first, which says how the load was made; and a row of them.
std::vector<std::string> LoadColumns();
std::vector<std::string> LoadCells(const LoadSummary& summary, double seconds);
// The same and more as JSON.
Json LoadJson(const LoadSummary& summary, double seconds);
// Lines on what the table has no column for: refusals and failures. Empty without any.
std::string LoadNotes(const std::string& name, const LoadSummary& summary);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_LOAD_REPORT_H_
