#ifndef QUERN_CORE_TOKENIZER_REGEX_H_
#define QUERN_CORE_TOKENIZER_REGEX_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <memory>
#include <vector>

namespace quern {

// A pattern of our own, compiled by PCRE2 with Unicode properties. Patterns that come with a model
// are never compiled. Thread-safe.
class Regex {
 public:
  // INTERNAL when the pattern does not compile.
  static absl::StatusOr<Regex> Compile(absl::string_view pattern);

  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  // Appends to `pieces` every match in `text` and every stretch between matches, in order; the
  // pieces, views into `text`, join to it. `text` must be UTF-8. RESOURCE_EXHAUSTED when matching
  // passes PCRE2's limits.
  absl::Status Split(absl::string_view text, std::vector<absl::string_view>* pieces) const;

 private:
  struct Code;
  explicit Regex(std::unique_ptr<Code> code);
  std::unique_ptr<Code> code_;
};

}  // namespace quern

#endif  // QUERN_CORE_TOKENIZER_REGEX_H_
