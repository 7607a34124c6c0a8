#ifndef QUERN_TESTS_CORE_TOKENIZER_FIXTURES_H_
#define QUERN_TESTS_CORE_TOKENIZER_FIXTURES_H_

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/tokenizer/tokenizer.h"

namespace quern {

// The bytes of a file below the source root; empty when it is not there.
std::string ReadSourceFile(const std::string& path);

// A byte-level tokenizer.json: the 256 bytes as ids 0 to 255, then the results of `merges` in
// order, then `special` tokens. No normalizer, GPT-2's pre-tokenizer.
Json ByteLevelJson(const std::vector<std::vector<std::string>>& merges,
                   const std::vector<std::string>& special);

// A SentencePiece-style tokenizer.json as Llama 2's: <unk>, <s>, </s>, the 256 byte tokens (ids 3
// to 258), U+2581 (259), the letters a to e (260 to 264), then the results of `merges`. BOS <s>.
Json PiecesJson(const std::vector<std::vector<std::string>>& merges);

// A row of added_tokens.
Json AddedTokenJson(int id, const std::string& content, bool special = true);

// Dies when the text is not accepted.
std::shared_ptr<const Tokenizer> MakeTokenizer(const Json& json);

// The ids; dies when encoding fails.
std::vector<int32_t> Ids(const Tokenizer& tokenizer, const std::string& text,
                         const Tokenizer::EncodeOptions& options = {});

}  // namespace quern

#endif  // QUERN_TESTS_CORE_TOKENIZER_FIXTURES_H_
