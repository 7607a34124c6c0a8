#ifndef QUERN_CORE_CONSTRAINT_REGEX_GRAMMAR_H_
#define QUERN_CORE_CONSTRAINT_REGEX_GRAMMAR_H_

#include <absl/strings/string_view.h>

#include "core/constraint/grammar.h"

namespace quern {

enum class RegexUse {
  kWholeText,   // the text matches from its beginning to its end; ^ and $ around it say the same
  kJsonString,  // a JSON string's content, escaped as JSON wants it, has a match: ECMA-262's search
};

// Appends what `pattern` matches and returns the state behind it. The syntax that RE2, ECMA-262 and
// Python share: characters, escapes \t \n \v \f \r \0 \xHH \uHHHH, classes [...] and \d \D \w \W \s
// \S (of ASCII), ".", groups (...), (?:...) and (?P<name>...), "|", the repetitions * + ? {n} {n,}
// {n,m} with or without a lazy "?", ^ at the beginning and $ at the end. A fault, and what is known
// of regular expressions but not supported (assertions, back-references, flags, \p), fails
// `grammar` with INVALID_ARGUMENT and the offset.
int AddRegex(Grammar& grammar, int from, absl::string_view pattern, RegexUse use);

// One character of a JSON string that `grammar` may write in any way: raw or escaped.
int AddJsonCharacter(Grammar& grammar, int from);

}  // namespace quern

#endif  // QUERN_CORE_CONSTRAINT_REGEX_GRAMMAR_H_
