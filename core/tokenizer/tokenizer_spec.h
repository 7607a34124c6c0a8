#ifndef QUERN_CORE_TOKENIZER_TOKENIZER_SPEC_H_
#define QUERN_CORE_TOKENIZER_TOKENIZER_SPEC_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/tokenizer/added_tokens.h"
#include "core/tokenizer/bpe.h"
#include "core/tokenizer/normalizer.h"
#include "core/tokenizer/pre_tokenizer.h"
#include "core/tokenizer/vocabulary.h"

namespace quern {

// What a tokenizer.json says, checked, in this project's words. Its truncation and padding do not
// count: callers have limits of their own.
struct TokenizerSpec {
  Vocabulary vocabulary;  // the model's and the added tokens, bytes not yet set
  BpeOptions bpe;
  std::vector<BpeMerge> merges;
  std::vector<AddedToken> added_tokens;
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  // Ids that the post-processor puts before and after a single text.
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
  // Decoding turns U+2581 into a space.
  bool decode_metaspace = false;
  // Decoding drops one space at the beginning of the text.
  bool strip_leading_space = false;
};

// Errors as Tokenizer::FromJson.
absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(absl::string_view json);

}  // namespace quern

#endif  // QUERN_CORE_TOKENIZER_TOKENIZER_SPEC_H_
