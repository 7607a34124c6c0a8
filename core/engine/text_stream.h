#ifndef QUERN_CORE_ENGINE_TEXT_STREAM_H_
#define QUERN_CORE_ENGINE_TEXT_STREAM_H_

#include <absl/strings/string_view.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/tokenizer/tokenizer.h"

namespace quern {

// Ids to text that may be shown: it never ends inside a character, and what may still become a stop
// sequence is held back. The first match is the one that is complete first (the longest of
// several), so it does not depend on how the text was cut into tokens. Thread-compatible.
class TextStream {
 public:
  // A null tokenizer gives no text. `continues_text`: see StreamDecoder.
  TextStream(std::shared_ptr<const Tokenizer> tokenizer, bool continues_text,
             std::vector<std::string> stop_sequences);

  // The text that is certain now, after `id`. After a match: nothing.
  std::string Append(int32_t id);
  // All that was held back, up to a match.
  std::string Finish();
  // The stop sequence that was found; the text before it has been returned.
  const std::optional<std::string>& matched() const { return matched_; }

 private:
  std::string Push(absl::string_view text);

  std::optional<StreamDecoder> decoder_;
  std::vector<std::string> stop_sequences_;
  // Decoded and not yet returned: the start of a stop sequence.
  std::string held_;
  std::optional<std::string> matched_;
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_TEXT_STREAM_H_
