#include "core/tokenizer/tokenizer.h"

#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_replace.h>
#include <absl/strings/strip.h>

#include <utility>

#include "core/base/status_macros.h"
#include "core/base/utf8.h"
#include "core/tokenizer/added_tokens.h"
#include "core/tokenizer/bpe.h"
#include "core/tokenizer/normalizer.h"
#include "core/tokenizer/pre_tokenizer.h"
#include "core/tokenizer/tokenizer_spec.h"
#include "core/tokenizer/vocabulary.h"

namespace quern {
namespace {

// Offsets in a word fit int32_t, with room for what normalizing adds.
constexpr size_t kMaxTextBytes = size_t{1} << 30;

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(TokenizerSpec spec, AddedTokens raw, AddedTokens normalized, PreTokenizer words)
      : spec_(std::move(spec)),
        raw_tokens_(std::move(raw)),
        normalized_tokens_(std::move(normalized)),
        pre_tokenizer_(std::move(words)),
        bpe_(spec_.bpe, &spec_.vocabulary, std::move(spec_.merges)) {}

  using Tokenizer::Encode;
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              const EncodeOptions& options) const override;
  std::string Decode(absl::Span<const int32_t> ids, bool keep_special) const override;
  absl::string_view TokenBytes(int32_t id) const override { return spec_.vocabulary.Bytes(id); }
  bool strips_leading_space() const override { return spec_.strip_leading_space; }
  int32_t vocab_size() const override { return spec_.vocabulary.size(); }
  int32_t TokenToId(absl::string_view token) const override { return spec_.vocabulary.Find(token); }
  bool IsSpecial(int32_t id) const override { return spec_.vocabulary.IsSpecial(id); }
  bool TakesSpaceBehind(int32_t id) const override { return spec_.vocabulary.TakesSpaceBehind(id); }
  int32_t bos_id() const override { return spec_.prefix.empty() ? -1 : spec_.prefix.front(); }

 private:
  struct Scratch {
    PreTokenizer::Words words;
    Bpe::Scratch bpe;
  };
  // Text without added tokens that are found before normalizing.
  absl::Status EncodeOrdinary(absl::string_view text, bool at_start, bool allow_special,
                              Scratch* scratch, std::vector<int32_t>* ids) const;

  TokenizerSpec spec_;
  AddedTokens raw_tokens_;
  AddedTokens normalized_tokens_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;  // looks into spec_.vocabulary
};

absl::StatusOr<std::vector<int32_t>> BpeTokenizer::Encode(absl::string_view text,
                                                          const EncodeOptions& options) const {
  if (text.size() >= kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text: found ", text.size(), " bytes, wanted fewer than ", kMaxTextBytes));
  }
  if (const size_t invalid = FindInvalidUtf8(text); invalid != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("text: byte ", invalid, " is not UTF-8, wanted UTF-8"));
  }
  std::vector<int32_t> ids;
  if (options.add_special_tokens) ids = spec_.prefix;
  Scratch scratch;
  bool at_start = options.at_start;
  for (const AddedTokens::Part& part : raw_tokens_.Split(text, options.parse_special_tokens)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
    } else {
      RETURN_IF_ERROR(
          EncodeOrdinary(part.text, at_start, options.parse_special_tokens, &scratch, &ids));
    }
    at_start = false;
  }
  if (options.add_special_tokens) {
    ids.insert(ids.end(), spec_.suffix.begin(), spec_.suffix.end());
  }
  return ids;
}

absl::Status BpeTokenizer::EncodeOrdinary(absl::string_view text, bool at_start, bool allow_special,
                                          Scratch* scratch, std::vector<int32_t>* ids) const {
  ASSIGN_OR_RETURN(const std::string normalized, Normalize(spec_.normalizer, text));
  for (const AddedTokens::Part& part : normalized_tokens_.Split(normalized, allow_special)) {
    if (part.id >= 0) {
      ids->push_back(part.id);
    } else {
      RETURN_IF_ERROR(pre_tokenizer_.Split(part.text, at_start, &scratch->words));
      for (absl::string_view word : scratch->words.pieces) {
        bpe_.Encode(word, allow_special, &scratch->bpe, ids);
      }
    }
    at_start = false;
  }
  return absl::OkStatus();
}

std::string BpeTokenizer::Decode(absl::Span<const int32_t> ids, bool keep_special) const {
  std::string text;
  for (int32_t id : ids) {
    if (keep_special || !IsSpecial(id)) absl::StrAppend(&text, TokenBytes(id));
  }
  if (spec_.strip_leading_space && absl::StartsWith(text, " ")) text.erase(0, 1);
  return text;
}

// What each token is in decoded text. Added tokens are text already.
void SetTokenBytes(TokenizerSpec* spec) {
  Vocabulary& vocabulary = spec->vocabulary;
  std::vector<bool> is_added(static_cast<size_t>(vocabulary.size()));
  for (const AddedToken& token : spec->added_tokens) {
    is_added[static_cast<size_t>(token.id)] = true;
  }
  std::string bytes;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const absl::string_view text = vocabulary.Text(id);
    absl::string_view hex = text;
    uint32_t byte = 0;
    if (is_added[static_cast<size_t>(id)]) {
      vocabulary.SetBytes(id, std::string(text));
    } else if (spec->bpe.byte_level) {
      const bool is_bytes = ByteLevelToBytes(text, &bytes);
      vocabulary.SetBytes(id, is_bytes ? bytes : std::string(text));
    } else if (spec->bpe.byte_fallback && absl::ConsumePrefix(&hex, "<0x") &&
               absl::ConsumeSuffix(&hex, ">") && absl::SimpleHexAtoi(hex, &byte)) {
      vocabulary.SetBytes(id, std::string(1, static_cast<char>(byte)));
    } else if (spec->decode_metaspace) {
      vocabulary.SetBytes(id, absl::StrReplaceAll(text, {{kMetaspace, " "}}));
    } else {
      vocabulary.SetBytes(id, std::string(text));
    }
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromJson(absl::string_view json) {
  ASSIGN_OR_RETURN(TokenizerSpec spec, ReadTokenizerSpec(json));
  std::vector<AddedToken> raw;
  std::vector<AddedToken> normalized;
  for (const AddedToken& token : spec.added_tokens) {
    if (!token.normalized) {
      raw.push_back(token);
      continue;
    }
    normalized.push_back(token);
    ASSIGN_OR_RETURN(normalized.back().content, Normalize(spec.normalizer, token.content));
  }
  ASSIGN_OR_RETURN(PreTokenizer words, PreTokenizer::Create(spec.pre_tokenizer));
  SetTokenBytes(&spec);
  return std::make_shared<const BpeTokenizer>(std::move(spec), AddedTokens(std::move(raw)),
                                              AddedTokens(std::move(normalized)), std::move(words));
}

}  // namespace quern
