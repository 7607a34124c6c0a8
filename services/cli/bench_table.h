#ifndef QUERN_SERVICES_CLI_BENCH_TABLE_H_
#define QUERN_SERVICES_CLI_BENCH_TABLE_H_

// How the benchmarks print, and how a run is compared with an earlier one.

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <string>
#include <vector>

#include "core/base/json.h"
#include "services/cli/context.h"

namespace quern::cli {

// A table on the screen, or one JSON document at the end.
class BenchTable {
 public:
  // `rate` names the member of a row's JSON that a comparison is about, larger is better; `keys`
  // those that say which row it is. `earlier` is the output of an earlier run with --json, or
  // empty. INVALID_ARGUMENT when it is not; errors of reading it.
  static absl::StatusOr<BenchTable> Create(const Context& context, std::vector<std::string> header,
                                           std::vector<bool> right, std::vector<std::string> keys,
                                           std::string rate, const std::string& earlier);

  // One row: `cells` for the screen, `row` for JSON and for comparing.
  void Add(std::vector<std::string> cells, Json row);

  // Prints the rest: `document` with the rows as "rows", or the table and then `below`.
  void Finish(Json document, const std::string& below);

 private:
  explicit BenchTable(bool json) : json_(json) {}
  std::string KeyOf(const Json& row) const;

  bool json_;
  std::vector<std::vector<std::string>> cells_;
  std::vector<bool> right_;
  std::vector<std::string> keys_;
  std::string rate_;
  Json rows_ = Json::array();
  Json earlier_ = Json::array();
  bool compares_ = false;
};

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_BENCH_TABLE_H_
