#include "core/tokenizer/pre_tokenizer.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_replace.h>

#include <utility>

#include "core/base/status_macros.h"
#include "core/base/utf8.h"
#include "core/tokenizer/normalizer.h"

namespace quern {
namespace {

struct PatternRow {
  KnownPattern pattern;
  absl::string_view name;
  absl::string_view published;  // as it stands in tokenizer.json files
};

constexpr PatternRow kPatterns[] = {
    {KnownPattern::kGpt2, "GPT-2",
     R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
    {KnownPattern::kLlama3, "Llama 3",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
     R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    {KnownPattern::kQwen2, "Qwen2",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
     R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    {KnownPattern::kTekken, "Mistral NeMo",
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
     R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N})"
     R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
};

// The members of Unicode's White_Space but CR and LF, inside a character class. PCRE2's \s has
// U+180E besides, which the engine these patterns were written for (Oniguruma) does not.
constexpr absl::string_view kBlanks =
    R"(\x{9}\x{b}\x{c}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f})"
    R"(\x{3000})";

// Our version of a pattern: the same matches, with possessive repeats, so that no match walks back
// over a long run.
std::string OurPattern(KnownPattern pattern) {
  const std::string space = absl::StrCat("\\r\\n", kBlanks);
  // ` ?[^\s\p{L}\p{N}]+`, `\s*[\r\n]+` and `\s+(?!\S)|\s+`.
  const std::string symbols = absl::StrCat(" ?[^", space, R"(\p{L}\p{N}]++)");
  const std::string newlines = absl::StrCat("(?:[", kBlanks, R"(]*+[\r\n]++)++)");
  const std::string spaces = absl::StrCat("[", space, "]+(?![^", space, "])|[", space, "]+");
  constexpr absl::string_view kContractions = R"((?i:'(?:[stmd]|re|ve|ll))|)";
  constexpr absl::string_view kWord = R"([^\r\n\p{L}\p{N}]?\p{L}++|)";
  switch (pattern) {
    case KnownPattern::kGpt2:
      return absl::StrCat(R"('(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++|)", symbols, "|", spaces);
    case KnownPattern::kLlama3:
      return absl::StrCat(kContractions, kWord, R"(\p{N}{1,3}+|)", symbols, R"([\r\n]*+|)",
                          newlines, "|", spaces);
    case KnownPattern::kQwen2:
      return absl::StrCat(kContractions, kWord, R"(\p{N}|)", symbols, R"([\r\n]*+|)", newlines, "|",
                          spaces);
    case KnownPattern::kTekken: {
      constexpr absl::string_view kUpper = R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])";
      constexpr absl::string_view kLower = R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])";
      constexpr absl::string_view kBefore = R"([^\r\n\p{L}\p{N}]?)";
      return absl::StrCat(kBefore, kUpper, "*", kLower, "++|", kBefore, kUpper, "++", kLower,
                          R"(*+|\p{N}|)", symbols, R"([\r\n/]*+|)", newlines, "|", spaces);
    }
    case KnownPattern::kEachDigit:
      return R"(\p{N})";
    case KnownPattern::kRunsOfDigits:
      return R"(\p{N}++)";
  }
  return "";
}

// Spaces of `piece` become U+2581, one is put before it where the step says so, and each begins a
// word where the step says so.
void ApplyMetaspace(const PreTokenizerStep& step, absl::string_view piece, bool at_start,
                    PreTokenizer::Words* out) {
  std::string text = absl::StrReplaceAll(piece, {{" ", kMetaspace}});
  const bool prepend = step.prepend == PreTokenizerStep::Prepend::kAlways ||
                       (step.prepend == PreTokenizerStep::Prepend::kFirst && at_start);
  if (prepend && !absl::StartsWith(text, kMetaspace)) text = absl::StrCat(kMetaspace, text);
  out->storage.push_back(std::move(text));
  absl::string_view rest = out->storage.back();
  while (step.split && !rest.empty()) {
    const size_t next = rest.find(kMetaspace, 1);
    if (next == absl::string_view::npos) break;
    out->pieces.push_back(rest.substr(0, next));
    rest.remove_prefix(next);
  }
  out->pieces.push_back(rest);
}

}  // namespace

absl::StatusOr<KnownPattern> RecognizePattern(absl::string_view pattern) {
  std::string names;
  for (const PatternRow& row : kPatterns) {
    if (row.published == pattern) return row.pattern;
    absl::StrAppend(&names, names.empty() ? "" : ", ", row.name);
  }
  constexpr size_t kShown = 300;
  return absl::InvalidArgumentError(
      absl::StrCat("the pattern ", Quoted(pattern, kShown), " (", pattern.size(),
                   " bytes) is not known; known are those of ", names));
}

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const std::vector<PreTokenizerStep>& steps) {
  PreTokenizer result;
  for (const PreTokenizerStep& spec : steps) {
    Step step{spec, {}};
    if (spec.kind == PreTokenizerStep::Kind::kSplit) {
      ASSIGN_OR_RETURN(Regex regex, Regex::Compile(OurPattern(spec.pattern)));
      step.regex.push_back(std::move(regex));
    }
    result.steps_.push_back(std::move(step));
  }
  return result;
}

absl::Status PreTokenizer::Split(absl::string_view text, bool at_start, Words* words) const {
  words->pieces.clear();
  words->storage.clear();
  if (text.empty()) return absl::OkStatus();
  words->pieces.push_back(text);
  std::vector<absl::string_view> pieces;
  for (const Step& step : steps_) {
    pieces.swap(words->pieces);
    words->pieces.clear();
    bool first = at_start;
    for (absl::string_view piece : pieces) {
      switch (step.spec.kind) {
        case PreTokenizerStep::Kind::kSplit:
          RETURN_IF_ERROR(step.regex.front().Split(piece, &words->pieces));
          break;
        case PreTokenizerStep::Kind::kAddSpace:
          if (piece.front() == ' ') {
            words->pieces.push_back(piece);
          } else {
            words->storage.push_back(absl::StrCat(" ", piece));
            words->pieces.push_back(words->storage.back());
          }
          break;
        case PreTokenizerStep::Kind::kMetaspace:
          ApplyMetaspace(step.spec, piece, first, words);
          break;
      }
      first = false;
    }
  }
  return absl::OkStatus();
}

}  // namespace quern
