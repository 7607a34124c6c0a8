#ifndef QUERN_CORE_CHECKPOINT_GGUF_VOCABULARY_H_
#define QUERN_CORE_CHECKPOINT_GGUF_VOCABULARY_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <string>

#include "core/checkpoint/gguf.h"
#include "core/checkpoint/gguf_writer.h"
#include "core/model/model_config.h"

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

// The inverse: adds the keys tokenizer.ggml.* of a tokenizer.json to a file that is being written,
// a token for each of config.vocab_size ids (unused ones by number), beginning and end of text as
// the configuration has them. FAILED_PRECONDITION when the keys cannot say what the tokenizer does:
// no BPE, a normalizer or pre-tokenizer that has no name there, a merge order that no scores give.
// Whether the file says the same is for the caller to check by the function above.
absl::Status AddVocabularyToGguf(absl::string_view tokenizer_json, const ModelConfig& config,
                                 GgufWriter& writer);

// What text becomes under two tokenizers is the same as far as it depends on their vocabularies,
// merges, added tokens and what they add at the ends: those are equal. Both are tokenizer.json.
bool SameVocabulary(absl::string_view a, absl::string_view b);

}  // namespace quern

#endif  // QUERN_CORE_CHECKPOINT_GGUF_VOCABULARY_H_
