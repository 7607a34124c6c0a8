#include "services/cli/bench_table.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <iostream>
#include <utility>

#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "services/cli/format.h"

namespace quern::cli {
namespace {

// A run has some hundred rows.
constexpr size_t kMaxEarlierBytes = 16 << 20;

}  // namespace

absl::StatusOr<BenchTable> BenchTable::Create(const Context& context,
                                              std::vector<std::string> header,
                                              std::vector<bool> right,
                                              std::vector<std::string> keys, std::string rate,
                                              const std::string& earlier) {
  BenchTable table(context.json());
  table.right_ = std::move(right);
  table.keys_ = std::move(keys);
  table.rate_ = std::move(rate);
  table.compares_ = !earlier.empty();
  if (table.compares_) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(earlier, kMaxEarlierBytes));
    ASSIGN_OR_RETURN(const Json document, ParseJson(text, earlier));
    const auto rows = document.is_object() ? document.find("rows") : document.end();
    if (!document.is_object() || rows == document.end() || !rows->is_array()) {
      return absl::InvalidArgumentError(
          absl::StrCat(earlier, ": no \"rows\"; wanted what the same command printed with --json"));
    }
    for (const Json& row : *rows) {
      if (!row.is_object() || !row.contains(table.rate_) || !row.at(table.rate_).is_number()) {
        return absl::InvalidArgumentError(
            absl::StrCat(earlier, ": a row without the number \"", table.rate_,
                         "\"; wanted what the same command printed with --json"));
      }
    }
    table.earlier_ = *rows;
    header.push_back("against earlier");
    table.right_.push_back(true);
  }
  table.cells_.push_back(std::move(header));
  return table;
}

std::string BenchTable::KeyOf(const Json& row) const {
  std::string key;
  for (const std::string& name : keys_) absl::StrAppend(&key, row.value(name, Json()).dump(), " ");
  return key;
}

void BenchTable::Add(std::vector<std::string> cells, Json row) {
  if (compares_) {
    std::string ratio = "-";
    for (const Json& earlier : earlier_) {
      const double before = earlier.at(rate_).get<double>();
      if (KeyOf(earlier) != KeyOf(row) || before <= 0) continue;
      row["againstEarlier"] = row.at(rate_).get<double>() / before;
      ratio = absl::StrFormat("%.2fx", row.at("againstEarlier").get<double>());
    }
    cells.push_back(ratio);
  }
  cells_.push_back(std::move(cells));
  rows_.push_back(std::move(row));
}

void BenchTable::Finish(Json document, const std::string& below) {
  if (json_) {
    document["rows"] = std::move(rows_);
    std::cout << document.dump() << std::endl;
  } else {
    std::cout << FormatTable(cells_, right_) << below << std::flush;
  }
}

}  // namespace quern::cli
