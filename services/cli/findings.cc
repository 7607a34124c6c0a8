#include "services/cli/findings.h"

#include <absl/strings/ascii.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <algorithm>

#include "services/cli/format.h"

namespace quern::cli {
namespace {

using Level = Finding::Level;

constexpr int kCheckCells = 19;  // "inference metrics" and two blanks
// A narrower screen gets long lines rather than columns of single words.
constexpr int kMinTextCells = 24;
constexpr char kReset[] = "\x1b[0m";
constexpr char kBold[] = "\x1b[1m";
constexpr char kDim[] = "\x1b[2m";

struct LevelLook {
  const char* name;
  const char* mark;
  const char* color;
};

const LevelLook& LookOf(Level level) {
  static constexpr LevelLook kLooks[] = {{"ok", "✓", "\x1b[32m"},
                                         {"skipped", "-", kDim},
                                         {"warning", "!", "\x1b[33m"},
                                         {"problem", "✗", "\x1b[31m"}};
  return kLooks[static_cast<int>(level)];
}

std::string Paint(absl::string_view text, absl::string_view color, bool colors) {
  return colors ? absl::StrCat(color, text, kReset) : std::string(text);
}

// The text as it grows.
class Writer {
 public:
  Writer(int columns, bool colors) : columns_(columns), colors_(colors) {}

  void Section(const std::string& name) {
    absl::StrAppend(&text_, text_.empty() ? "" : "\n", Paint(name, kBold, colors_), "\n");
  }

  void Write(const Finding& finding) {
    const LevelLook& look = LookOf(finding.level);
    absl::StrAppend(&text_, "  ", Paint(look.mark, look.color, colors_), " ",
                    Padded(finding.check, kCheckCells));
    // A name that leaves no room has its line to itself.
    if (Cells(finding.check) >= kCheckCells) {
      absl::StrAppend(&text_, "\n", std::string(4 + kCheckCells, ' '));
    }
    Body(finding.found, 4 + kCheckCells, finding.level == Level::kSkipped ? kDim : "");
    if (!finding.wanted.empty()) Labelled("wanted", finding.wanted);
    if (!finding.advice.empty()) Labelled("do", finding.advice);
  }

  void Line(const std::string& line) { absl::StrAppend(&text_, "\n", line, "\n"); }

  std::string Take() { return std::move(text_); }

 private:
  static std::string Padded(const std::string& text, int cells) {
    return absl::StrCat(text, std::string(std::max(0, cells - Cells(text)), ' '));
  }

  void Labelled(const std::string& label, const std::string& body) {
    absl::StrAppend(&text_, std::string(4 + kCheckCells, ' '),
                    Paint(Padded(label, 8), kDim, colors_));
    Body(body, 4 + kCheckCells + 8, "");
  }

  // `body` from cell `indent` on; its later lines below its first.
  void Body(const std::string& body, int indent, absl::string_view color) {
    const int width = columns_ == 0 ? 0 : std::max(kMinTextCells, columns_ - indent);
    const std::string gap(indent, ' ');
    std::string begin;
    for (const std::string& line : WrapWords(body, width)) {
      absl::StrAppend(&text_, begin, color.empty() ? line : Paint(line, color, colors_), "\n");
      begin = gap;
    }
  }

  const int columns_;
  const bool colors_;
  std::string text_;
};

// Names of files and answers of others go to the terminal: no line breaks, nothing it would obey.
std::string OneLine(absl::string_view text) {
  std::string line(text);
  std::replace_if(
      line.begin(), line.end(), [](char c) { return absl::ascii_iscntrl(c) != 0; }, ' ');
  return line;
}

std::string Counted(int count, const char* one, const char* many) {
  return absl::StrCat(count, " ", count == 1 ? one : many);
}

}  // namespace

void Findings::StartSection(absl::string_view section) { section_ = std::string(section); }

void Findings::Add(Level level, absl::string_view check, absl::string_view found,
                   absl::string_view wanted, absl::string_view advice) {
  all_.push_back(
      {section_, OneLine(check), level, OneLine(found), OneLine(wanted), OneLine(advice)});
}

void Findings::Ok(absl::string_view check, absl::string_view found) {
  Add(Level::kOk, check, found, "", "");
}

void Findings::Skip(absl::string_view check, absl::string_view why, absl::string_view advice) {
  Add(Level::kSkipped, check, why, "", advice);
}

void Findings::Warn(absl::string_view check, absl::string_view found, absl::string_view wanted,
                    absl::string_view advice) {
  Add(Level::kWarning, check, found, wanted, advice);
}

void Findings::Problem(absl::string_view check, absl::string_view found, absl::string_view wanted,
                       absl::string_view advice) {
  Add(Level::kProblem, check, found, wanted, advice);
}

void Findings::Append(const Findings& other) {
  all_.insert(all_.end(), other.all_.begin(), other.all_.end());
}

int Findings::Count(Level level) const {
  return static_cast<int>(std::count_if(
      all_.begin(), all_.end(), [level](const Finding& found) { return found.level == level; }));
}

std::string Findings::Summary() const {
  std::vector<std::string> parts = {
      Counted(Count(Level::kProblem), "problem", "problems"),
      Counted(Count(Level::kWarning), "warning", "warnings"),
      absl::StrCat(Count(Level::kOk), " ok"),
  };
  if (const int skipped = Count(Level::kSkipped); skipped > 0) {
    parts.push_back(absl::StrCat(skipped, " not checked"));
  }
  return absl::StrJoin(parts, ", ");
}

std::string Findings::ToText(int columns, bool colors) const {
  Writer writer(columns, colors);
  std::string section;
  for (const Finding& finding : all_) {
    if (finding.section != section) writer.Section(section = finding.section);
    writer.Write(finding);
  }
  const Level worst = Count(Level::kProblem) > 0   ? Level::kProblem
                      : Count(Level::kWarning) > 0 ? Level::kWarning
                                                   : Level::kOk;
  writer.Line(Paint(Summary(), LookOf(worst).color, colors));
  return writer.Take();
}

Json Findings::ToJson() const {
  Json findings = Json::array();
  for (const Finding& finding : all_) {
    findings.push_back({{"section", finding.section},
                        {"check", finding.check},
                        {"level", LookOf(finding.level).name},
                        {"found", finding.found},
                        {"wanted", finding.wanted},
                        {"advice", finding.advice}});
  }
  Json summary;
  for (const Level level : {Level::kOk, Level::kSkipped, Level::kWarning, Level::kProblem}) {
    summary[LookOf(level).name] = Count(level);
  }
  return {{"version", QUERN_VERSION}, {"findings", findings}, {"summary", summary}};
}

}  // namespace quern::cli
