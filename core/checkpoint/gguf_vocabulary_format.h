#ifndef QUERN_CORE_CHECKPOINT_GGUF_VOCABULARY_FORMAT_H_
#define QUERN_CORE_CHECKPOINT_GGUF_VOCABULARY_FORMAT_H_

// What values of tokenizer.ggml.* mean, for both directions.

#include <absl/strings/string_view.h>

#include <cstdint>

namespace quern {

// tokenizer.ggml.token_type
enum GgufTokenType : int32_t {
  kGgufNormal = 1,
  kGgufUnknown = 2,
  kGgufControl = 3,
  kGgufUserDefined = 4,
  kGgufUnused = 5,
  kGgufByte = 6
};

// How text is split before merging. The patterns are those of the families' own tokenizer.json.
struct GgufPreTokenizer {
  absl::string_view pre;      // tokenizer.ggml.pre
  absl::string_view pattern;  // of a Split step before ByteLevel; empty: ByteLevel's own
  bool single_digits;         // a Digits step before ByteLevel
  bool nfc;                   // normalizer
  bool ignore_merges;         // a whole word that is a token is that token
  bool add_bos;               // when tokenizer.ggml.add_bos_token is missing
};

inline constexpr absl::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr absl::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr absl::string_view kTekkenPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Of rows that mean the same, the name that converters write now is the first.
inline constexpr GgufPreTokenizer kGgufPreTokenizers[] = {
    {"gpt-2", "", false, false, false, false},
    {"default", "", false, false, false, false},
    {"smollm", "", true, false, false, false},
    {"starcoder", "", true, false, false, false},
    {"llama-bpe", kLlama3Pattern, false, false, true, true},
    {"llama3", kLlama3Pattern, false, false, true, true},
    {"llama-v3", kLlama3Pattern, false, false, true, true},
    {"qwen2", kQwen2Pattern, false, true, false, false},
    {"tekken", kTekkenPattern, false, false, true, true},
};

}  // namespace quern

#endif  // QUERN_CORE_CHECKPOINT_GGUF_VOCABULARY_FORMAT_H_
