#include "services/cli/scrape.h"

#include <absl/strings/ascii.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>

#include <optional>

namespace quern::cli {
namespace {

// The text up to the closing quote, without escapes; `rest` goes on behind the quote.
std::optional<std::string> TakeQuoted(absl::string_view* rest) {
  if (!absl::ConsumePrefix(rest, "\"")) return std::nullopt;
  std::string value;
  while (!rest->empty()) {
    char c = rest->front();
    rest->remove_prefix(1);
    if (c == '"') return value;
    if (c == '\\' && !rest->empty()) {
      c = rest->front() == 'n' ? '\n' : rest->front();
      rest->remove_prefix(1);
    }
    value.push_back(c);
  }
  return std::nullopt;
}

std::optional<Sample> ParseLine(absl::string_view line) {
  Sample sample;
  const size_t end = line.find_first_of("{ ");
  if (end == 0 || end == absl::string_view::npos || line.front() == '#') return std::nullopt;
  sample.name = std::string(line.substr(0, end));
  line.remove_prefix(end);
  if (absl::ConsumePrefix(&line, "{")) {
    while (!absl::ConsumePrefix(&line, "}")) {
      const size_t equals = line.find('=');
      if (equals == absl::string_view::npos) return std::nullopt;
      const std::string label(line.substr(0, equals));
      line.remove_prefix(equals + 1);
      const std::optional<std::string> value = TakeQuoted(&line);
      if (!value.has_value()) return std::nullopt;
      sample.labels[label] = *value;
      absl::ConsumePrefix(&line, ",");
    }
  }
  // A timestamp may follow the value.
  const absl::string_view rest = absl::StripAsciiWhitespace(line);
  if (!absl::SimpleAtod(rest.substr(0, rest.find(' ')), &sample.value)) return std::nullopt;
  return sample;
}

}  // namespace

std::vector<Sample> ParseScrape(absl::string_view text) {
  std::vector<Sample> samples;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    if (std::optional<Sample> sample = ParseLine(line)) samples.push_back(*std::move(sample));
  }
  return samples;
}

}  // namespace quern::cli
