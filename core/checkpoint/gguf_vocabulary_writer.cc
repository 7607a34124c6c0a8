#include <absl/container/flat_hash_map.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/gguf_vocabulary.h"
#include "core/checkpoint/gguf_vocabulary_format.h"

namespace quern {
namespace {

constexpr absl::string_view kWhere = "tokenizer.json";

absl::Status NoForm(absl::string_view what) {
  return absl::FailedPreconditionError(
      absl::StrCat(kWhere, ": ", what, ", which GGUF cannot express"));
}

// The member of an object, or null.
const Json& At(const Json& json, const char* key) {
  static const Json* const null = new Json();
  if (!json.is_object()) return *null;
  const auto found = json.find(key);
  return found == json.end() ? *null : *found;
}

std::string TextAt(const Json& json, const char* key) {
  const Json& value = At(json, key);
  return value.is_string() ? value.get<std::string>() : "";
}

bool BoolAt(const Json& json, const char* key, bool fallback) {
  const Json& value = At(json, key);
  return value.is_boolean() ? value.get<bool>() : fallback;
}

// The steps of a Sequence, or the one step that stands for itself; none when null.
std::vector<Json> Steps(const Json& json, const char* list) {
  if (json.is_null()) return {};
  if (TextAt(json, "type") != "Sequence") return {json};
  const Json& steps = At(json, list);
  return steps.is_array() ? steps.get<std::vector<Json>>() : std::vector<Json>();
}

// As the files have them: "left right" or ["left", "right"].
std::optional<std::vector<std::string>> Merges(const Json& model) {
  std::vector<std::string> merges;
  const Json& list = At(model, "merges");
  if (!list.is_array()) return std::nullopt;
  merges.reserve(list.size());
  for (const Json& merge : list) {
    if (merge.is_string()) {
      merges.push_back(merge.get<std::string>());
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      merges.push_back(absl::StrCat(merge[0].get<std::string>(), " ", merge[1].get<std::string>()));
    } else {
      return std::nullopt;
    }
  }
  return merges;
}

// What is added at the ends of a text, by the tokens' names.
struct Ends {
  std::vector<std::string> before;
  std::vector<std::string> after;
  bool operator==(const Ends&) const = default;
};

Ends EndsOf(const Json& tokenizer) {
  Ends ends;
  for (const Json& step : Steps(At(tokenizer, "post_processor"), "processors")) {
    if (TextAt(step, "type") != "TemplateProcessing") continue;
    bool behind = false;
    for (const Json& piece : At(step, "single")) {
      if (piece.contains("Sequence")) {
        behind = true;
      } else {
        (behind ? ends.after : ends.before).push_back(TextAt(At(piece, "SpecialToken"), "id"));
      }
    }
  }
  return ends;
}

struct WrittenToken {
  std::string text;
  GgufTokenType type = kGgufUnused;
};

class VocabularyWriter {
 public:
  VocabularyWriter(const Json& tokenizer, const ModelConfig& config, GgufWriter& writer)
      : tokenizer_(tokenizer), model_(At(tokenizer, "model")), config_(config), writer_(writer) {}

  absl::Status Write();

 private:
  absl::Status ReadTokens(bool byte_fallback);
  absl::Status Place(const Json& id, std::string text, GgufTokenType type);
  absl::Status WriteByteLevel();
  absl::Status WriteSentencePiece();
  absl::Status WriteSpecialIds();

  const Json& tokenizer_;
  const Json& model_;
  const ModelConfig& config_;
  GgufWriter& writer_;
  std::vector<WrittenToken> tokens_;
};

absl::Status VocabularyWriter::Place(const Json& id, std::string text, GgufTokenType type) {
  if (!id.is_number_integer() || id < 0 || id >= config_.vocab_size) {
    return NoForm(absl::StrCat("token ", text, " has id ", id.dump(), " of ", config_.vocab_size));
  }
  tokens_[id.get<size_t>()] = {std::move(text), type};
  return absl::OkStatus();
}

absl::Status VocabularyWriter::ReadTokens(bool byte_fallback) {
  tokens_.resize(config_.vocab_size);
  const Json& vocab = At(model_, "vocab");
  if (!vocab.is_object()) return NoForm("the vocabulary is no object");
  for (const auto& [text, id] : vocab.items()) {
    const bool byte = byte_fallback && text.size() == 6 && absl::StartsWith(text, "<0x");
    RETURN_IF_ERROR(Place(id, text, byte ? kGgufByte : kGgufNormal));
  }
  const std::string unknown = byte_fallback ? TextAt(model_, "unk_token") : "";
  for (const Json& added : At(tokenizer_, "added_tokens")) {
    const std::string text = TextAt(added, "content");
    GgufTokenType type = BoolAt(added, "special", false) ? kGgufControl : kGgufUserDefined;
    if (!unknown.empty() && text == unknown) type = kGgufUnknown;
    RETURN_IF_ERROR(Place(At(added, "id"), text, type));
  }
  std::vector<std::string> texts;
  std::vector<int32_t> types;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    WrittenToken& token = tokens_[id];
    if (token.type == kGgufUnused) token.text = absl::StrCat("[UNUSED", id, "]");
    texts.push_back(token.text);
    types.push_back(static_cast<int32_t>(token.type));
  }
  writer_.Strings("tokenizer.ggml.tokens", texts);
  writer_.Int32s("tokenizer.ggml.token_type", types);
  return absl::OkStatus();
}

absl::Status VocabularyWriter::WriteByteLevel() {
  GgufPreTokenizer found{};
  for (const Json& step : Steps(At(tokenizer_, "normalizer"), "normalizers")) {
    if (TextAt(step, "type") != "NFC") return NoForm(absl::StrCat("normalizer ", step.dump()));
    found.nfc = true;
  }
  std::string pattern;
  bool byte_level = false;
  for (const Json& step : Steps(At(tokenizer_, "pre_tokenizer"), "pretokenizers")) {
    const std::string type = TextAt(step, "type");
    if (type == "Digits" && BoolAt(step, "individual_digits", false)) {
      found.single_digits = true;
    } else if (type == "Split" && TextAt(step, "behavior") == "Isolated" &&
               !BoolAt(step, "invert", false)) {
      pattern = TextAt(At(step, "pattern"), "Regex");
    } else if (type == "ByteLevel" && !BoolAt(step, "add_prefix_space", true) &&
               BoolAt(step, "use_regex", true) == pattern.empty()) {
      byte_level = true;
    } else {
      return NoForm(absl::StrCat("pre-tokenizer ", step.dump()));
    }
  }
  if (!byte_level) return NoForm("no step ByteLevel");
  found.ignore_merges = BoolAt(model_, "ignore_merges", false);
  const GgufPreTokenizer* row = std::find_if(
      std::begin(kGgufPreTokenizers), std::end(kGgufPreTokenizers),
      [&](const GgufPreTokenizer& known) {
        return known.pattern == pattern && known.single_digits == found.single_digits &&
               known.nfc == found.nfc && known.ignore_merges == found.ignore_merges;
      });
  if (row == std::end(kGgufPreTokenizers)) {
    return NoForm(absl::StrCat("pre-tokenizer ", At(tokenizer_, "pre_tokenizer").dump(),
                               " has no name that is known here"));
  }
  writer_.String("tokenizer.ggml.model", "gpt2");
  writer_.String("tokenizer.ggml.pre", row->pre);
  RETURN_IF_ERROR(ReadTokens(/*byte_fallback=*/false));
  const std::optional<std::vector<std::string>> merges = Merges(model_);
  if (!merges.has_value()) return NoForm("merges are no list of pairs");
  writer_.Strings("tokenizer.ggml.merges", *merges);
  return absl::OkStatus();
}

absl::Status VocabularyWriter::WriteSentencePiece() {
  bool prefix = false;
  for (const Json& step : Steps(At(tokenizer_, "normalizer"), "normalizers")) {
    const std::string type = TextAt(step, "type");
    if (type == "Prepend") {
      prefix = true;
    } else if (type != "Replace" || TextAt(At(step, "pattern"), "String") != " ") {
      return NoForm(absl::StrCat("normalizer ", step.dump()));
    }
  }
  for (const Json& step : Steps(At(tokenizer_, "pre_tokenizer"), "pretokenizers")) {
    if (TextAt(step, "type") != "Metaspace") {
      return NoForm(absl::StrCat("pre-tokenizer ", step.dump()));
    }
    prefix = BoolAt(step, "add_prefix_space", TextAt(step, "prepend_scheme") != "never");
  }
  writer_.String("tokenizer.ggml.model", "llama");
  writer_.Bool("tokenizer.ggml.add_space_prefix", prefix);
  RETURN_IF_ERROR(ReadTokens(/*byte_fallback=*/true));
  const std::optional<std::vector<std::string>> merges = Merges(model_);
  if (!merges.has_value()) return NoForm("merges are no list of pairs");
  std::vector<std::string> results;
  absl::flat_hash_map<std::string, size_t> last;
  for (const std::string& merge : *merges) {
    std::string& result = results.emplace_back(merge);
    result.erase(std::min(result.find(' '), result.size()), 1);
    last[result] = results.size() - 1;
  }
  // The earlier a token is made, the higher its score; those whose merges stand mixed share one.
  absl::flat_hash_map<std::string, float> made;
  float score = 0;
  size_t end = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    end = std::max(end, last[results[i]]);
    made.emplace(results[i], score);
    if (i == end) --score;
  }
  std::vector<float> scores;
  for (const WrittenToken& token : tokens_) {
    const auto found = made.find(token.text);
    scores.push_back(found == made.end() ? score : found->second);
  }
  writer_.Float32s("tokenizer.ggml.scores", scores);
  return absl::OkStatus();
}

absl::Status VocabularyWriter::WriteSpecialIds() {
  if (config_.bos_token_id >= 0) {
    writer_.Uint32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(config_.bos_token_id));
  }
  constexpr const char* kEnds[] = {"eos", "eot", "eom"};
  if (config_.eos_token_ids.size() > std::size(kEnds)) {
    return NoForm(absl::StrCat(config_.eos_token_ids.size(), " tokens end a text"));
  }
  for (size_t i = 0; i < config_.eos_token_ids.size(); ++i) {
    writer_.Uint32(absl::StrCat("tokenizer.ggml.", kEnds[i], "_token_id"),
                   static_cast<uint32_t>(config_.eos_token_ids[i]));
  }
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (tokens_[id].type == kGgufUnknown) {
      writer_.Uint32("tokenizer.ggml.unknown_token_id", static_cast<uint32_t>(id));
    }
  }
  const Ends ends = EndsOf(tokenizer_);
  writer_.Bool("tokenizer.ggml.add_bos_token", !ends.before.empty());
  writer_.Bool("tokenizer.ggml.add_eos_token", !ends.after.empty());
  return absl::OkStatus();
}

absl::Status VocabularyWriter::Write() {
  if (TextAt(model_, "type") != "BPE" && !At(model_, "merges").is_array()) {
    return NoForm(absl::StrCat("model ", TextAt(model_, "type"), " is no BPE"));
  }
  RETURN_IF_ERROR(BoolAt(model_, "byte_fallback", false) ? WriteSentencePiece() : WriteByteLevel());
  return WriteSpecialIds();
}

// Id by text, added tokens included.
std::map<std::string, Json> AllTokens(const Json& tokenizer) {
  std::map<std::string, Json> tokens;
  for (const auto& [text, id] : At(At(tokenizer, "model"), "vocab").items()) tokens[text] = id;
  for (const Json& added : At(tokenizer, "added_tokens")) {
    tokens[TextAt(added, "content")] = At(added, "id");
  }
  return tokens;
}

}  // namespace

absl::Status AddVocabularyToGguf(absl::string_view tokenizer_json, const ModelConfig& config,
                                 GgufWriter& writer) {
  ASSIGN_OR_RETURN(const Json tokenizer, ParseJson(tokenizer_json, kWhere));
  return VocabularyWriter(tokenizer, config, writer).Write();
}

bool SameVocabulary(absl::string_view a, absl::string_view b) {
  const absl::StatusOr<Json> left = ParseJson(a, kWhere);
  const absl::StatusOr<Json> right = ParseJson(b, kWhere);
  return left.ok() && right.ok() && AllTokens(*left) == AllTokens(*right) &&
         Merges(At(*left, "model")) == Merges(At(*right, "model")) &&
         EndsOf(*left) == EndsOf(*right);
}

}  // namespace quern
