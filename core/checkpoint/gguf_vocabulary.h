#ifndef QUERN_CORE_CHECKPOINT_GGUF_VOCABULARY_H_
#define QUERN_CORE_CHECKPOINT_GGUF_VOCABULARY_H_

#include <absl/status/statusor.h>

#include <string>

#include "core/checkpoint/gguf.h"

namespace quern {

// The vocabulary of a GGUF (keys tokenizer.ggml.*) as the text of a Hugging Face tokenizer.json.
// Empty when the file has none.
//
// Model "gpt2" becomes a byte-level BPE with the pre-tokenizer that tokenizer.ggml.pre names, as
// the family's own tokenizer.json has it. Model "llama" becomes a BPE with byte fallback, whose
// merges follow from the pieces' scores. Control tokens are added tokens only, so that no text
// encodes to one by merging; unused tokens are left out.
//
// INVALID_ARGUMENT for another model or pre-tokenizer, by name; DATA_LOSS for damage: lists of
// different lengths, tokens that are empty, too long, not UTF-8 or occur twice, byte tokens that
// are not <0x00>..<0xFF>, ids that name no token.
absl::StatusOr<std::string> TokenizerJsonFromGguf(const GgufFile& file);

}  // namespace quern

#endif  // QUERN_CORE_CHECKPOINT_GGUF_VOCABULARY_H_
