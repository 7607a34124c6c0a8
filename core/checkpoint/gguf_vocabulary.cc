#include "core/checkpoint/gguf_vocabulary.h"

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "core/base/utf8.h"
#include "core/checkpoint/gguf_vocabulary_format.h"

namespace quern {
namespace {

constexpr size_t kMaxTokens = 1'048'576;
constexpr size_t kMaxMerges = 2'097'152;
constexpr size_t kMaxTokenBytes = 4'096;
// A piece's splits are looked up one by one, so their cost grows with the square of its length.
constexpr size_t kMaxPieceBytes = 256;
constexpr size_t kMaxJsonBytes = size_t{64} << 20;
constexpr absl::string_view kMetaspace = "\xe2\x96\x81";  // U+2581

struct Token {
  absl::string_view text;
  int64_t type = kGgufNormal;
};

class Translator {
 public:
  explicit Translator(const GgufFile& file) : file_(file) {}

  absl::StatusOr<std::string> Translate();

 private:
  absl::Status Damaged(absl::string_view what) const {
    return absl::DataLossError(absl::StrCat(file_.path(), ": tokenizer.ggml.", what));
  }
  absl::Status ReadTokens(size_t max_token_bytes);
  absl::Status CheckToken(size_t id, size_t max_token_bytes) const;
  // The token of tokenizer.ggml.{name}_token_id, or nothing.
  absl::StatusOr<std::optional<size_t>> SpecialId(absl::string_view name) const;
  absl::StatusOr<Json> PostProcessor(bool add_bos_default) const;
  Json AddedTokens() const;
  Json Vocab() const;
  absl::StatusOr<Json> ByteLevelBpe();
  absl::StatusOr<Json> SentencePieceBpe();
  absl::StatusOr<std::vector<std::string>> MergesFromScores(const std::vector<float>& scores) const;

  const GgufFile& file_;
  std::vector<Token> tokens_;
};

absl::Status Translator::CheckToken(size_t id, size_t max_token_bytes) const {
  const Token& token = tokens_[id];
  if (token.type < kGgufNormal || token.type > kGgufByte) {
    return Damaged(
        absl::StrCat("token_type: found ", token.type, " for id ", id, ", wanted 1 to 6"));
  }
  if (token.text.empty() || token.text.size() > max_token_bytes) {
    return Damaged(absl::StrCat("tokens: id ", id, " has ", token.text.size(),
                                " bytes, wanted 1 to ", max_token_bytes));
  }
  const std::string shown = Quoted(token.text);
  if (!IsUtf8(token.text)) {
    return Damaged(absl::StrCat("tokens: id ", id, " ", shown, " is not UTF-8"));
  }
  constexpr absl::string_view kHex = "0123456789ABCDEF";
  if (token.type == kGgufByte &&
      (token.text.size() != 6 || token.text.substr(0, 3) != "<0x" || token.text[5] != '>' ||
       !absl::StrContains(kHex, token.text[3]) || !absl::StrContains(kHex, token.text[4]))) {
    return Damaged(
        absl::StrCat("tokens: byte token ", shown, " of id ", id, ", wanted <0x00> to <0xFF>"));
  }
  return absl::OkStatus();
}

absl::Status Translator::ReadTokens(size_t max_token_bytes) {
  ASSIGN_OR_RETURN(const std::vector<absl::string_view> texts,
                   file_.Strings("tokenizer.ggml.tokens"));
  if (texts.empty() || texts.size() > kMaxTokens) {
    return Damaged(absl::StrCat("tokens: found ", texts.size(), ", wanted 1 to ", kMaxTokens));
  }
  tokens_.resize(texts.size());
  for (size_t id = 0; id < texts.size(); ++id) tokens_[id].text = texts[id];
  if (file_.Has("tokenizer.ggml.token_type")) {
    ASSIGN_OR_RETURN(const std::vector<int64_t> types, file_.Ints("tokenizer.ggml.token_type"));
    if (types.size() != tokens_.size()) {
      return Damaged(absl::StrCat("token_type: found ", types.size(),
                                  " entries, wanted one for each of ", tokens_.size(), " tokens"));
    }
    for (size_t id = 0; id < types.size(); ++id) tokens_[id].type = types[id];
  }
  absl::flat_hash_set<absl::string_view> seen;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (tokens_[id].type == kGgufUnused) continue;
    RETURN_IF_ERROR(CheckToken(id, max_token_bytes));
    if (!seen.insert(tokens_[id].text).second) {
      return Damaged(
          absl::StrCat("tokens: ", Quoted(tokens_[id].text), " occurs twice, again as id ", id));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<size_t>> Translator::SpecialId(absl::string_view name) const {
  const std::string key = absl::StrCat("tokenizer.ggml.", name, "_token_id");
  ASSIGN_OR_RETURN(const int64_t id, file_.IntOr(key, 0, kNoGgufToken, kNoGgufToken));
  if (id == kNoGgufToken) return std::nullopt;
  if (static_cast<size_t>(id) >= tokens_.size() ||
      tokens_[static_cast<size_t>(id)].type == kGgufUnused) {
    return file_.Wrong(key, absl::StrCat("the id of one of the ", tokens_.size(), " tokens"));
  }
  return static_cast<size_t>(id);
}

absl::StatusOr<Json> Translator::PostProcessor(bool add_bos_default) const {
  ASSIGN_OR_RETURN(const bool add_bos,
                   file_.BoolOr("tokenizer.ggml.add_bos_token", add_bos_default));
  ASSIGN_OR_RETURN(const bool add_eos, file_.BoolOr("tokenizer.ggml.add_eos_token", false));
  Json before = Json::array();
  Json after = Json::array();
  Json special_tokens = Json::object();
  const auto add = [&](absl::string_view name, Json* side) -> absl::Status {
    ASSIGN_OR_RETURN(const std::optional<size_t> id, SpecialId(name));
    if (!id.has_value()) {
      return file_.Wrong(absl::StrCat("tokenizer.ggml.", name, "_token_id"),
                         "an id, since the tokenizer adds it");
    }
    const std::string text(tokens_[*id].text);
    side->push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
    special_tokens[text] = {{"id", text}, {"ids", {*id}}, {"tokens", {text}}};
    return absl::OkStatus();
  };
  if (add_bos) RETURN_IF_ERROR(add("bos", &before));
  if (add_eos) RETURN_IF_ERROR(add("eos", &after));
  if (special_tokens.empty()) return Json(nullptr);
  Json single = before;
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  single.insert(single.end(), after.begin(), after.end());
  Json pair = single;
  pair.insert(pair.end(), before.begin(), before.end());
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  pair.insert(pair.end(), after.begin(), after.end());
  return Json{{"type", "TemplateProcessing"},
              {"single", single},
              {"pair", pair},
              {"special_tokens", special_tokens}};
}

Json Translator::AddedTokens() const {
  Json added = Json::array();
  for (size_t id = 0; id < tokens_.size(); ++id) {
    const Token& token = tokens_[id];
    if (token.type != kGgufControl && token.type != kGgufUserDefined && token.type != kGgufUnknown)
      continue;
    added.push_back({{"id", id},
                     {"content", std::string(token.text)},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", token.type != kGgufUserDefined}});
  }
  return added;
}

// The model's own vocabulary: normal and byte tokens, and what stands between them. Tokens behind
// them (Llama 3, Qwen) are added tokens alone, as in the families' own files: Hugging Face's
// library numbers those that are not in the vocabulary from its end.
Json Translator::Vocab() const {
  const auto is_model_token = [](const Token& token) {
    return token.type == kGgufNormal || token.type == kGgufByte;
  };
  const auto last = std::find_if(tokens_.rbegin(), tokens_.rend(), is_model_token);
  const auto size = static_cast<size_t>(tokens_.rend() - last);
  Json vocab = Json::object();
  for (size_t id = 0; id < size; ++id) {
    if (tokens_[id].type != kGgufUnused) vocab[std::string(tokens_[id].text)] = id;
  }
  return vocab;
}

Json BpeModel(Json vocab, std::vector<std::string> merges) {
  return Json{{"type", "BPE"},
              {"dropout", nullptr},
              {"unk_token", nullptr},
              {"continuing_subword_prefix", nullptr},
              {"end_of_word_suffix", nullptr},
              {"fuse_unk", false},
              {"byte_fallback", false},
              {"ignore_merges", false},
              {"vocab", std::move(vocab)},
              {"merges", std::move(merges)}};
}

Json ByteLevel(bool use_regex) {
  return Json{{"type", "ByteLevel"},
              {"add_prefix_space", false},
              {"trim_offsets", true},
              {"use_regex", use_regex}};
}

Json PreTokenizerJson(const GgufPreTokenizer& pre) {
  Json steps = Json::array();
  if (pre.single_digits) steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  if (!pre.pattern.empty()) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", std::string(pre.pattern)}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back(ByteLevel(/*use_regex=*/pre.pattern.empty()));
  if (steps.size() == 1) return steps[0];
  return Json{{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

absl::StatusOr<Json> Translator::ByteLevelBpe() {
  constexpr absl::string_view kPreKey = "tokenizer.ggml.pre";
  const std::string supported = absl::StrJoin(
      kGgufPreTokenizers, ", ",
      [](std::string* out, const GgufPreTokenizer& pre) { absl::StrAppend(out, pre.pre); });
  if (!file_.Has(kPreKey)) {
    // Such a file was made before the key existed: any choice might split text wrongly, unnoticed.
    return file_.Wrong(kPreKey, absl::StrCat(supported, "; convert the model again"));
  }
  ASSIGN_OR_RETURN(const std::string name, file_.String(kPreKey));
  const GgufPreTokenizer* pre =
      std::find_if(std::begin(kGgufPreTokenizers), std::end(kGgufPreTokenizers),
                   [&](const GgufPreTokenizer& row) { return row.pre == name; });
  if (pre == std::end(kGgufPreTokenizers)) return file_.Wrong(kPreKey, supported);
  RETURN_IF_ERROR(ReadTokens(kMaxTokenBytes));
  ASSIGN_OR_RETURN(const std::vector<absl::string_view> merge_texts,
                   file_.Strings("tokenizer.ggml.merges"));
  if (merge_texts.size() > kMaxMerges) {
    return Damaged(absl::StrCat("merges: found ", merge_texts.size(), ", at most ", kMaxMerges));
  }
  std::vector<std::string> merges;
  merges.reserve(merge_texts.size());
  for (absl::string_view text : merge_texts) {
    if (text.size() > 2 * kMaxTokenBytes || !IsUtf8(text)) {
      return Damaged(absl::StrCat("merges: number ", merges.size(), " ", Quoted(text),
                                  " is not UTF-8 or too long"));
    }
    merges.emplace_back(text);
  }
  Json model = BpeModel(Vocab(), std::move(merges));
  model["ignore_merges"] = pre->ignore_merges;
  ASSIGN_OR_RETURN(Json post_processor, PostProcessor(pre->add_bos));
  return Json{{"normalizer", pre->nfc ? Json{{"type", "NFC"}} : Json(nullptr)},
              {"pre_tokenizer", PreTokenizerJson(*pre)},
              {"post_processor", std::move(post_processor)},
              {"decoder", ByteLevel(/*use_regex=*/true)},
              {"model", std::move(model)}};
}

// As Hugging Face transformers' generate_merges (convert_slow_tokenizer.py): every split of a piece
// into two pieces is a merge, ordered by the result's score, then by the lengths of the halves in
// characters; the order of equal ones is that of the result's id, then of the halves' ids.
// SentencePiece never builds a control, byte or user-defined piece from others, so neither do we.
absl::StatusOr<std::vector<std::string>> Translator::MergesFromScores(
    const std::vector<float>& scores) const {
  absl::flat_hash_map<absl::string_view, size_t> pieces;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (tokens_[id].type == kGgufNormal) pieces.emplace(tokens_[id].text, id);
  }
  struct Merge {
    float score;
    size_t left_length;
    size_t right_length;
    size_t result;
    size_t left;
    size_t right;
    auto Key() const {
      return std::make_tuple(-score, -static_cast<int64_t>(left_length),
                             -static_cast<int64_t>(right_length), result, left, right);
    }
  };
  const auto is_start = [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; };
  std::vector<Merge> merges;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (tokens_[id].type != kGgufNormal) continue;
    const absl::string_view text = tokens_[id].text;
    const auto length = static_cast<size_t>(std::count_if(text.begin(), text.end(), is_start));
    size_t left_length = 1;
    for (size_t cut = 1; cut < text.size(); ++cut) {
      if (!is_start(text[cut])) continue;
      const auto left = pieces.find(text.substr(0, cut));
      const auto right = left == pieces.end() ? left : pieces.find(text.substr(cut));
      if (right != pieces.end()) {
        merges.push_back(
            {scores[id], left_length, length - left_length, id, left->second, right->second});
      }
      ++left_length;
    }
    if (merges.size() > kMaxMerges) {
      return Damaged(absl::StrCat("tokens: more than ", kMaxMerges, " merges follow from them"));
    }
  }
  std::sort(merges.begin(), merges.end(),
            [](const Merge& a, const Merge& b) { return a.Key() < b.Key(); });
  std::vector<std::string> texts;
  texts.reserve(merges.size());
  for (const Merge& merge : merges) {
    texts.push_back(absl::StrCat(tokens_[merge.left].text, " ", tokens_[merge.right].text));
  }
  return texts;
}

absl::StatusOr<Json> Translator::SentencePieceBpe() {
  RETURN_IF_ERROR(ReadTokens(kMaxPieceBytes));
  ASSIGN_OR_RETURN(const std::vector<float> scores, file_.Floats("tokenizer.ggml.scores"));
  if (scores.size() != tokens_.size()) {
    return Damaged(absl::StrCat("scores: found ", scores.size(), ", wanted one for each of ",
                                tokens_.size(), " tokens"));
  }
  if (!std::all_of(scores.begin(), scores.end(), [](float s) { return std::isfinite(s); })) {
    return Damaged("scores: found a number that is not finite");
  }
  ASSIGN_OR_RETURN(const std::optional<size_t> unknown, SpecialId("unknown"));
  for (size_t id = 0; id < tokens_.size(); ++id) {
    // A space would end the first half of a merge; the pieces themselves write U+2581.
    if (tokens_[id].type == kGgufNormal && absl::StrContains(tokens_[id].text, ' ')) {
      return Damaged(absl::StrCat("tokens: id ", id, " has a space, wanted U+2581"));
    }
  }
  ASSIGN_OR_RETURN(std::vector<std::string> merges, MergesFromScores(scores));
  Json model = BpeModel(Vocab(), std::move(merges));
  model["byte_fallback"] = true;
  model["fuse_unk"] = true;
  if (unknown.has_value() && model["vocab"].contains(std::string(tokens_[*unknown].text))) {
    model["unk_token"] = std::string(tokens_[*unknown].text);
  }
  ASSIGN_OR_RETURN(const bool add_prefix, file_.BoolOr("tokenizer.ggml.add_space_prefix", true));
  const std::string metaspace(kMetaspace);
  Json normalizers = Json::array();
  if (add_prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", metaspace}});
  normalizers.push_back(
      {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", metaspace}});
  Json decoders =
      Json::array({{{"type", "Replace"}, {"pattern", {{"String", metaspace}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}}});
  if (add_prefix) {
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  ASSIGN_OR_RETURN(Json post_processor, PostProcessor(/*add_bos_default=*/true));
  return Json{{"normalizer", {{"type", "Sequence"}, {"normalizers", std::move(normalizers)}}},
              {"pre_tokenizer", nullptr},
              {"post_processor", std::move(post_processor)},
              {"decoder", {{"type", "Sequence"}, {"decoders", std::move(decoders)}}},
              {"model", std::move(model)}};
}

absl::StatusOr<std::string> Translator::Translate() {
  constexpr absl::string_view kModelKey = "tokenizer.ggml.model";
  if (!file_.Has(kModelKey)) return std::string();
  ASSIGN_OR_RETURN(const std::string model, file_.String(kModelKey));
  if (model != "gpt2" && model != "llama") return file_.Wrong(kModelKey, "gpt2 or llama");
  Json json;
  if (model == "gpt2") {
    ASSIGN_OR_RETURN(json, ByteLevelBpe());
  } else {
    ASSIGN_OR_RETURN(json, SentencePieceBpe());
  }
  json["version"] = "1.0";
  json["truncation"] = nullptr;
  json["padding"] = nullptr;
  json["added_tokens"] = AddedTokens();
  std::string text = DumpCanonicalJson(json);
  if (text.size() > kMaxJsonBytes) {
    return Damaged(
        absl::StrCat("tokens: as tokenizer.json ", text.size(), " bytes, at most ", kMaxJsonBytes));
  }
  return text;
}

}  // namespace

absl::StatusOr<std::string> TokenizerJsonFromGguf(const GgufFile& file) {
  return Translator(file).Translate();
}

}  // namespace quern
