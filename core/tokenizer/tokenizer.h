#ifndef QUERN_CORE_TOKENIZER_TOKENIZER_H_
#define QUERN_CORE_TOKENIZER_TOKENIZER_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace quern {

// Text to token ids and back, from a Hugging Face tokenizer.json: byte-level BPE (GPT-2, Llama 3,
// Qwen, SmolLM2) and SentencePiece-style BPE with byte fallback (Llama 2, Mistral). Immutable
// after construction; thread-safe.
class Tokenizer {
 public:
  // At most 64 MiB. INVALID_ARGUMENT naming what is not supported (an unknown pre-tokenizer is
  // refused by its pattern), DATA_LOSS for damage: ids repeated or out of range, merges of unknown
  // pieces, byte tokens that are not <0x00>..<0xFF>.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromJson(absl::string_view json);
  virtual ~Tokenizer() = default;

  struct EncodeOptions {
    // Add what the model's own post-processor adds (BOS where it does).
    bool add_special_tokens = true;
    // Text of special tokens becomes those tokens; false encodes it as ordinary text, so that a
    // user's text cannot forge them.
    bool parse_special_tokens = true;
    // The text begins the input. Where it follows other tokens, no prefix space is added by
    // tokenizers that add one only there (Metaspace with prepend_scheme "first").
    bool at_start = true;
  };
  // INVALID_ARGUMENT when `text` is not UTF-8 or has 1 GiB or more. Time is O(n log n).
  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                                      const EncodeOptions& options) const = 0;
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text) const {
    return Encode(text, EncodeOptions{});
  }

  // Bytes of the ids in sequence; may end inside a character. Special tokens give no bytes unless
  // `keep_special`. Ids out of range give no bytes. The space that SentencePiece puts before a text
  // is taken away.
  virtual std::string Decode(absl::Span<const int32_t> ids, bool keep_special = false) const = 0;
  // Bytes of one token wherever it stands: nothing is taken away, special tokens give their text.
  // Empty for ids that no token has. Valid as long as this.
  virtual absl::string_view TokenBytes(int32_t id) const = 0;
  // Decode drops one space at the beginning of a text.
  virtual bool strips_leading_space() const = 0;

  // Highest id + 1.
  virtual int32_t vocab_size() const = 0;
  // The id whose token is exactly `token` (special tokens included), or -1.
  virtual int32_t TokenToId(absl::string_view token) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  // Where the token is found in a text, the white space behind it is lost.
  virtual bool TakesSpaceBehind(int32_t id) const = 0;
  // -1 when the tokenizer names none.
  virtual int32_t bos_id() const = 0;
};

// Decodes a stream of ids to text that never ends inside a UTF-8 character. Bytes that can no
// longer become a character come out as U+FFFD. Thread-compatible.
class StreamDecoder {
 public:
  // `continues_text`: the ids go on with a text the reader already has, so a leading space belongs
  // to it; otherwise the first space is dropped where Tokenizer::Decode drops it.
  explicit StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool continues_text = false);
  // The text that is now certain. Special tokens give none.
  std::string Append(int32_t id);
  // What is left: an unfinished character as U+FFFD.
  std::string Finish();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool strip_space_;
  std::string pending_;
};

}  // namespace quern

#endif  // QUERN_CORE_TOKENIZER_TOKENIZER_H_
