#ifndef QUERN_SERVICES_CLI_SCRAPE_H_
#define QUERN_SERVICES_CLI_SCRAPE_H_

#include <absl/strings/string_view.h>

#include <map>
#include <string>
#include <vector>

namespace quern::cli {

// A line of a scrape: name{label="value",...} value.
struct Sample {
  std::string name;
  std::map<std::string, std::string> labels;
  double value = 0;
};

// The samples of Prometheus' text format; comments and lines of another form are left out.
std::vector<Sample> ParseScrape(absl::string_view text);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_SCRAPE_H_
