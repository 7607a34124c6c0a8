#ifndef QUERN_CORE_TOKENIZER_PRE_TOKENIZER_H_
#define QUERN_CORE_TOKENIZER_PRE_TOKENIZER_H_

// Cuts text into the words that BPE works on, as the pre_tokenizer of a tokenizer.json says. A
// pattern that stands there is looked up in a table of known ones; the table's own pattern runs.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <deque>
#include <string>
#include <vector>

#include "core/tokenizer/regex.h"

namespace quern {

// Patterns this project has a version of.
enum class KnownPattern {
  kGpt2,          // GPT-2, SmolLM2, StarCoder: what ByteLevel with use_regex runs
  kLlama3,        // Llama 3, SmolLM3: digits in groups of at most three
  kQwen2,         // Qwen 2, 2.5, 3: digits one by one
  kTekken,        // Mistral NeMo
  kEachDigit,     // Digits with individual_digits: each character of category N alone
  kRunsOfDigits,  // Digits without it
};

// The row of the table whose text in tokenizer.json files is exactly `pattern`. INVALID_ARGUMENT
// with the pattern (shortened) and the names of those known.
absl::StatusOr<KnownPattern> RecognizePattern(absl::string_view pattern);

struct PreTokenizerStep {
  enum class Kind {
    kSplit,      // by `pattern`: matches and what lies between them are pieces
    kAddSpace,   // a space before each piece that begins with none (ByteLevel, add_prefix_space)
    kMetaspace,  // spaces become U+2581; `prepend` and `split` say what else
  };
  enum class Prepend { kNever, kFirst, kAlways };
  Kind kind = Kind::kSplit;
  KnownPattern pattern = KnownPattern::kGpt2;
  // U+2581 before each piece, or only before one that begins the text.
  Prepend prepend = Prepend::kNever;
  // Each U+2581 begins a word.
  bool split = false;
};

// Thread-safe.
class PreTokenizer {
 public:
  static absl::StatusOr<PreTokenizer> Create(const std::vector<PreTokenizerStep>& steps);

  // Words of a text. Some are views into the text they were cut from, which must outlive them.
  struct Words {
    std::vector<absl::string_view> pieces;
    std::deque<std::string> storage;  // of pieces that a step changed
  };
  // Replaces `words` by those of `text`, which must be UTF-8. `at_start`: `text` begins the whole
  // input. RESOURCE_EXHAUSTED as Regex::Split.
  absl::Status Split(absl::string_view text, bool at_start, Words* words) const;

 private:
  struct Step {
    PreTokenizerStep spec;
    std::vector<Regex> regex;  // one for kSplit, none otherwise
  };
  std::vector<Step> steps_;
};

}  // namespace quern

#endif  // QUERN_CORE_TOKENIZER_PRE_TOKENIZER_H_
