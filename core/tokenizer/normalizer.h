#ifndef QUERN_CORE_TOKENIZER_NORMALIZER_H_
#define QUERN_CORE_TOKENIZER_NORMALIZER_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <string>
#include <vector>

namespace quern {

// U+2581, SentencePiece's visible space.
inline constexpr absl::string_view kMetaspace = "\u2581";

enum class NormalizerStep {
  kNfc,                 // Unicode canonical composition (Qwen)
  kPrependMetaspace,    // U+2581 before text that is not empty (Llama 2)
  kSpacesToMetaspaces,  // each U+0020 becomes U+2581 (Llama 2)
};

// `text` (UTF-8) after the steps. Time is linear in the text, but for sorting runs of combining
// marks. INTERNAL when utf8proc fails.
absl::StatusOr<std::string> Normalize(const std::vector<NormalizerStep>& steps,
                                      absl::string_view text);

}  // namespace quern

#endif  // QUERN_CORE_TOKENIZER_NORMALIZER_H_
