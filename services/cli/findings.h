#ifndef QUERN_SERVICES_CLI_FINDINGS_H_
#define QUERN_SERVICES_CLI_FINDINGS_H_

// What `quern doctor` found, and how it looks.

#include <absl/strings/string_view.h>

#include <string>
#include <vector>

#include "core/base/json.h"

namespace quern::cli {

struct Finding {
  enum class Level { kOk, kSkipped, kWarning, kProblem };
  std::string section;  // "machine"
  std::string check;    // "memory"
  Level level = Level::kOk;
  std::string found;
  std::string wanted;  // of warnings and problems
  std::string advice;  // what to do
};

// Thread-compatible.
class Findings {
 public:
  using Level = Finding::Level;

  // Of the findings to come; each section once.
  void StartSection(absl::string_view section);
  void Ok(absl::string_view check, absl::string_view found);
  // Not looked at, and how to have it looked at.
  void Skip(absl::string_view check, absl::string_view why, absl::string_view advice = "");
  // Works now, perhaps slowly or not for long.
  void Warn(absl::string_view check, absl::string_view found, absl::string_view wanted,
            absl::string_view advice);
  // Does not work, or is unsafe.
  void Problem(absl::string_view check, absl::string_view found, absl::string_view wanted,
               absl::string_view advice);

  // After those that are here.
  void Append(const Findings& other);

  const std::vector<Finding>& all() const { return all_; }
  int Count(Level level) const;

  // A line for each, "wanted" and "do" below it, the summary last. Wrapped to `columns` cells
  // unless that is 0.
  std::string ToText(int columns, bool colors) const;
  // "2 problems, 1 warning, 17 ok".
  std::string Summary() const;
  // {"version","findings":[{"section","check","level","found","wanted","advice"}],
  //  "summary":{"ok","skipped","warning","problem"}}.
  Json ToJson() const;

 private:
  void Add(Level level, absl::string_view check, absl::string_view found, absl::string_view wanted,
           absl::string_view advice);

  std::string section_;
  std::vector<Finding> all_;
};

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_FINDINGS_H_
