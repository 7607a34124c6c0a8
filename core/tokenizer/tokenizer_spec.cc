#include "core/tokenizer/tokenizer_spec.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "core/base/utf8.h"

namespace quern {
namespace {

constexpr size_t kMaxFileBytes = size_t{64} << 20;
constexpr int32_t kMaxVocabulary = 1 << 20;
constexpr size_t kMaxMerges = size_t{1} << 21;
constexpr size_t kMaxTokenBytes = 4096;
// Matching looks at up to so many bytes at each place in a text.
constexpr size_t kMaxAddedTokenBytes = 512;
constexpr size_t kMaxAddedTokens = 1 << 16;
constexpr size_t kMaxSteps = 16;
constexpr absl::string_view kFile = "tokenizer.json";

absl::Status NotSupported(absl::string_view where, absl::string_view what,
                          absl::string_view supported) {
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": ", what, " is not supported; supported: ", supported));
}

// Adds `where` to what a deeper layer found.
absl::Status At(absl::string_view where, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(where, ": ", status.message()));
}

// A component that may be missing, null, one object, or {"type": "Sequence", `member`: [...]}.
absl::StatusOr<std::vector<JsonObject>> Steps(const JsonObject& file, absl::string_view key,
                                              absl::string_view member) {
  std::vector<JsonObject> steps;
  const Json* value = file.Find(key);
  if (value == nullptr || value->is_null()) return steps;
  const std::string where = absl::StrCat(kFile, ": ", key);
  ASSIGN_OR_RETURN(JsonObject object, JsonObject::Of(*value, where));
  ASSIGN_OR_RETURN(std::string type, object.String("type"));
  if (type != "Sequence") {
    steps.push_back(object);
    return steps;
  }
  ASSIGN_OR_RETURN(const Json* members, object.Array(member));
  if (members->size() > kMaxSteps) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", member, ": found ", members->size(),
                                                   " steps, wanted at most ", kMaxSteps));
  }
  for (size_t i = 0; i < members->size(); ++i) {
    ASSIGN_OR_RETURN(JsonObject step,
                     JsonObject::Of((*members)[i], absl::StrCat(where, "[", i, "]")));
    steps.push_back(step);
  }
  return steps;
}

// The text of {"pattern": {"String": text}}, or nothing for a pattern of another kind.
absl::StatusOr<std::string> PatternString(const JsonObject& step, absl::string_view kind) {
  ASSIGN_OR_RETURN(JsonObject pattern, step.Object("pattern"));
  if (!pattern.Has(kind)) {
    return absl::InvalidArgumentError(
        absl::StrCat(step.where(), ": pattern: found no \"", kind, "\", wanted one"));
  }
  return pattern.String(kind);
}

absl::Status ReadNormalizer(const JsonObject& file, TokenizerSpec* spec) {
  constexpr absl::string_view kSupported =
      "NFC, Prepend of U+2581, Replace of a space by U+2581, and sequences of them";
  ASSIGN_OR_RETURN(std::vector<JsonObject> steps, Steps(file, "normalizer", "normalizers"));
  for (const JsonObject& step : steps) {
    ASSIGN_OR_RETURN(std::string type, step.String("type"));
    if (type == "NFC") {
      spec->normalizer.push_back(NormalizerStep::kNfc);
    } else if (type == "Prepend") {
      ASSIGN_OR_RETURN(std::string text, step.String("prepend"));
      if (text != kMetaspace) {
        return NotSupported(step.where(), absl::StrCat("Prepend of ", Quoted(text)), kSupported);
      }
      spec->normalizer.push_back(NormalizerStep::kPrependMetaspace);
    } else if (type == "Replace") {
      ASSIGN_OR_RETURN(std::string from, PatternString(step, "String"));
      ASSIGN_OR_RETURN(std::string to, step.String("content"));
      if (from != " " || to != kMetaspace) {
        return NotSupported(step.where(),
                            absl::StrCat("Replace of ", Quoted(from), " by ", Quoted(to)),
                            kSupported);
      }
      spec->normalizer.push_back(NormalizerStep::kSpacesToMetaspaces);
    } else {
      return NotSupported(step.where(), absl::StrCat("normalizer ", Quoted(type)), kSupported);
    }
  }
  return absl::OkStatus();
}

absl::Status ReadSplit(const JsonObject& step, TokenizerSpec* spec) {
  ASSIGN_OR_RETURN(std::string text, PatternString(step, "Regex"));
  const absl::StatusOr<KnownPattern> pattern = RecognizePattern(text);
  if (!pattern.ok()) return At(step.where(), pattern.status());
  ASSIGN_OR_RETURN(std::string behavior, step.String("behavior"));
  ASSIGN_OR_RETURN(bool invert, step.BoolOr("invert", false));
  // Every character is in some match of the known patterns, so that to remove what lies between
  // matches removes nothing.
  if (!(behavior == "Isolated" && !invert) && !(behavior == "Removed" && invert)) {
    return NotSupported(step.where(),
                        absl::StrCat("Split with behavior ", Quoted(behavior),
                                     invert ? ", inverted" : ", not inverted"),
                        "Isolated, and Removed inverted");
  }
  spec->pre_tokenizer.push_back({.kind = PreTokenizerStep::Kind::kSplit, .pattern = *pattern});
  return absl::OkStatus();
}

absl::Status ReadByteLevel(const JsonObject& step, TokenizerSpec* spec) {
  ASSIGN_OR_RETURN(bool add_space, step.BoolOr("add_prefix_space", true));
  ASSIGN_OR_RETURN(bool use_regex, step.BoolOr("use_regex", true));
  if (add_space) spec->pre_tokenizer.push_back({.kind = PreTokenizerStep::Kind::kAddSpace});
  if (use_regex) {
    spec->pre_tokenizer.push_back(
        {.kind = PreTokenizerStep::Kind::kSplit, .pattern = KnownPattern::kGpt2});
  }
  spec->bpe.byte_level = true;
  return absl::OkStatus();
}

// The prepend scheme of a Metaspace pre-tokenizer or decoder; older files have add_prefix_space.
absl::StatusOr<PreTokenizerStep::Prepend> ReadMetaspace(const JsonObject& step) {
  ASSIGN_OR_RETURN(std::string replacement, step.StringOr("replacement", kMetaspace));
  if (replacement != kMetaspace) {
    return NotSupported(step.where(), absl::StrCat("replacement ", Quoted(replacement)), "U+2581");
  }
  ASSIGN_OR_RETURN(bool add_space, step.BoolOr("add_prefix_space", true));
  ASSIGN_OR_RETURN(std::string scheme,
                   step.StringOr("prepend_scheme", add_space ? "always" : "never"));
  if (scheme == "always") return PreTokenizerStep::Prepend::kAlways;
  if (scheme == "first") return PreTokenizerStep::Prepend::kFirst;
  if (scheme == "never") return PreTokenizerStep::Prepend::kNever;
  return NotSupported(step.where(), absl::StrCat("prepend_scheme ", Quoted(scheme)),
                      "always, first, never");
}

absl::Status ReadPreTokenizer(const JsonObject& file, TokenizerSpec* spec) {
  ASSIGN_OR_RETURN(std::vector<JsonObject> steps, Steps(file, "pre_tokenizer", "pretokenizers"));
  for (const JsonObject& step : steps) {
    if (spec->bpe.byte_level) {
      return NotSupported(step.where(), "a step behind ByteLevel", "ByteLevel as the last one");
    }
    ASSIGN_OR_RETURN(std::string type, step.String("type"));
    if (type == "Split") {
      RETURN_IF_ERROR(ReadSplit(step, spec));
    } else if (type == "Digits") {
      ASSIGN_OR_RETURN(bool each, step.BoolOr("individual_digits", false));
      spec->pre_tokenizer.push_back(
          {.kind = PreTokenizerStep::Kind::kSplit,
           .pattern = each ? KnownPattern::kEachDigit : KnownPattern::kRunsOfDigits});
    } else if (type == "ByteLevel") {
      RETURN_IF_ERROR(ReadByteLevel(step, spec));
    } else if (type == "Metaspace") {
      ASSIGN_OR_RETURN(PreTokenizerStep::Prepend prepend, ReadMetaspace(step));
      ASSIGN_OR_RETURN(bool split, step.BoolOr("split", true));
      spec->pre_tokenizer.push_back(
          {.kind = PreTokenizerStep::Kind::kMetaspace, .prepend = prepend, .split = split});
    } else {
      return NotSupported(step.where(), absl::StrCat("pre-tokenizer ", Quoted(type)),
                          "Split by a known pattern, Digits, ByteLevel, Metaspace");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadVocabulary(const JsonObject& model, TokenizerSpec* spec) {
  ASSIGN_OR_RETURN(JsonObject vocab, model.Object("vocab"));
  const std::string where = absl::StrCat(kFile, ": model.vocab");
  if (vocab.json().empty() || vocab.json().size() > static_cast<size_t>(kMaxVocabulary)) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": found ", vocab.json().size(),
                                                   " tokens, wanted 1 to ", kMaxVocabulary));
  }
  for (const auto& [text, value] : vocab.json().items()) {
    if (text.empty() || text.size() > kMaxTokenBytes) {
      return absl::DataLossError(absl::StrCat(where, ": ", Quoted(text), ": found ", text.size(),
                                              " bytes, wanted 1 to ", kMaxTokenBytes));
    }
    if (!value.is_number_integer() || value < 0 || value >= kMaxVocabulary) {
      return absl::DataLossError(absl::StrCat(where, ": ", Quoted(text), ": found ",
                                              value.dump().substr(0, 40), ", wanted an id in [0, ",
                                              kMaxVocabulary - 1, "]"));
    }
    // A byte token that is misspelt would leave its byte without one.
    if (spec->bpe.byte_fallback && absl::StartsWith(text, "<0x") && absl::EndsWith(text, ">")) {
      constexpr absl::string_view kHex = "0123456789ABCDEF";
      if (text.size() != 6 || !absl::StrContains(kHex, text[3]) ||
          !absl::StrContains(kHex, text[4])) {
        return absl::DataLossError(absl::StrCat(where, ": found the byte token ", Quoted(text),
                                                ", wanted <0x00> to <0xFF>"));
      }
    }
    const absl::Status added = spec->vocabulary.Add(text, value.get<int32_t>());
    if (!added.ok()) return At(where, added);
  }
  return absl::OkStatus();
}

// The two halves of a merge, written "a b" or ["a", "b"].
absl::StatusOr<std::pair<absl::string_view, absl::string_view>> Halves(const Json& merge,
                                                                       absl::string_view where) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return std::make_pair(absl::string_view(merge[0].get_ref<const std::string&>()),
                          absl::string_view(merge[1].get_ref<const std::string&>()));
  }
  if (merge.is_string()) {
    const absl::string_view text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != absl::string_view::npos && text.find(' ', space + 1) == absl::string_view::npos) {
      return std::make_pair(text.substr(0, space), text.substr(space + 1));
    }
  }
  return absl::DataLossError(
      absl::StrCat(where, ": found ", Quoted(merge.dump(-1, ' ', true)), ", wanted two tokens"));
}

absl::Status ReadMerges(const JsonObject& model, TokenizerSpec* spec) {
  ASSIGN_OR_RETURN(const Json* merges, model.Array("merges"));
  if (merges->size() > kMaxMerges) {
    return absl::InvalidArgumentError(absl::StrCat(kFile, ": model.merges: found ", merges->size(),
                                                   " merges, wanted at most ", kMaxMerges));
  }
  spec->merges.reserve(merges->size());
  std::string joined;
  for (size_t i = 0; i < merges->size(); ++i) {
    const auto where = [i] { return absl::StrCat(kFile, ": model.merges[", i, "]"); };
    ASSIGN_OR_RETURN(const auto halves, Halves((*merges)[i], where()));
    joined.assign(halves.first.data(), halves.first.size());
    joined.append(halves.second.data(), halves.second.size());
    const BpeMerge merge = {spec->vocabulary.Find(halves.first),
                            spec->vocabulary.Find(halves.second), spec->vocabulary.Find(joined)};
    if (merge.left < 0 || merge.right < 0 || merge.result < 0) {
      const absl::string_view missing = merge.left < 0    ? halves.first
                                        : merge.right < 0 ? halves.second
                                                          : absl::string_view(joined);
      return absl::DataLossError(absl::StrCat(where(), ": ", Quoted(missing),
                                              " is not in the vocabulary, wanted a merge of two "
                                              "of its tokens into a third"));
    }
    spec->merges.push_back(merge);
  }
  return absl::OkStatus();
}

// Settings that BPE can have and that no supported family uses.
absl::Status RefuseUnusedSettings(const JsonObject& model) {
  const Json* dropout = model.Find("dropout");
  if (dropout != nullptr && !dropout->is_null() && *dropout != 0.0) {
    return NotSupported(model.where(), absl::StrCat("dropout ", dropout->dump().substr(0, 40)),
                        "null");
  }
  for (absl::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ASSIGN_OR_RETURN(std::string value, model.StringOr(key, ""));
    if (!value.empty()) {
      return NotSupported(model.where(), absl::StrCat(key, " ", Quoted(value)), "none");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadModel(const JsonObject& file, TokenizerSpec* spec) {
  const Json* found = file.Find("model");
  if (found == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(kFile, ": found no model, wanted one"));
  }
  ASSIGN_OR_RETURN(JsonObject model, JsonObject::Of(*found, absl::StrCat(kFile, ": model")));
  // The first files of this form did not name the type.
  ASSIGN_OR_RETURN(std::string type, model.StringOr("type", "BPE"));
  if (type != "BPE") return NotSupported(kFile, absl::StrCat("model ", Quoted(type)), "\"BPE\"");
  RETURN_IF_ERROR(RefuseUnusedSettings(model));
  ASSIGN_OR_RETURN(spec->bpe.byte_fallback, model.BoolOr("byte_fallback", false));
  ASSIGN_OR_RETURN(spec->bpe.ignore_merges, model.BoolOr("ignore_merges", false));
  ASSIGN_OR_RETURN(spec->bpe.fuse_unk, model.BoolOr("fuse_unk", false));
  if (spec->bpe.byte_level && spec->bpe.byte_fallback) {
    return NotSupported(model.where(), "byte_fallback with a ByteLevel pre-tokenizer",
                        "one of the two");
  }
  RETURN_IF_ERROR(ReadVocabulary(model, spec));
  ASSIGN_OR_RETURN(std::string unk, model.StringOr("unk_token", ""));
  if (!unk.empty()) {
    spec->bpe.unk_id = spec->vocabulary.Find(unk);
    if (spec->bpe.unk_id < 0) {
      return absl::DataLossError(absl::StrCat(model.where(), ": unk_token ", Quoted(unk),
                                              " is not in the vocabulary, wanted one that is"));
    }
  }
  return ReadMerges(model, spec);
}

absl::StatusOr<AddedToken> ReadAddedToken(const JsonObject& row) {
  AddedToken token;
  ASSIGN_OR_RETURN(token.content, row.String("content"));
  if (token.content.empty() || token.content.size() > kMaxAddedTokenBytes) {
    return absl::DataLossError(absl::StrCat(row.where(), ": content: found ", token.content.size(),
                                            " bytes, wanted 1 to ", kMaxAddedTokenBytes));
  }
  ASSIGN_OR_RETURN(int64_t id, row.Int("id", INT64_MIN, INT64_MAX));
  if (id < 0 || id >= kMaxVocabulary) {
    return absl::DataLossError(absl::StrCat(row.where(), ": id: found ", id, ", wanted one in [0, ",
                                            kMaxVocabulary - 1, "]"));
  }
  token.id = static_cast<int32_t>(id);
  ASSIGN_OR_RETURN(token.special, row.BoolOr("special", false));
  ASSIGN_OR_RETURN(token.single_word, row.BoolOr("single_word", false));
  ASSIGN_OR_RETURN(token.lstrip, row.BoolOr("lstrip", false));
  ASSIGN_OR_RETURN(token.rstrip, row.BoolOr("rstrip", false));
  ASSIGN_OR_RETURN(token.normalized, row.BoolOr("normalized", !token.special));
  return token;
}

absl::Status ReadAddedTokens(const JsonObject& file, TokenizerSpec* spec) {
  const Json* found = file.Find("added_tokens");
  if (found == nullptr || found->is_null()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Json* rows, file.Array("added_tokens"));
  if (rows->size() > kMaxAddedTokens) {
    return absl::InvalidArgumentError(absl::StrCat(kFile, ": added_tokens: found ", rows->size(),
                                                   " tokens, wanted at most ", kMaxAddedTokens));
  }
  std::vector<bool> seen;
  for (size_t i = 0; i < rows->size(); ++i) {
    ASSIGN_OR_RETURN(JsonObject row,
                     JsonObject::Of((*rows)[i], absl::StrCat(kFile, ": added_tokens[", i, "]")));
    ASSIGN_OR_RETURN(AddedToken token, ReadAddedToken(row));
    const auto index = static_cast<size_t>(token.id);
    if (seen.size() <= index) seen.resize(index + 1);
    if (seen[index]) {
      return absl::DataLossError(
          absl::StrCat(row.where(), ": id ", token.id, " occurs twice, wanted distinct ids"));
    }
    seen[index] = true;
    // The model's vocabulary may hold the token already, under the same id.
    if (spec->vocabulary.Text(token.id) != token.content) {
      const absl::Status added = spec->vocabulary.Add(token.content, token.id);
      if (!added.ok()) return At(row.where(), added);
    }
    if (token.special) spec->vocabulary.MarkSpecial(token.id);
    if (token.rstrip) spec->vocabulary.MarkTakesSpaceBehind(token.id);
    spec->added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// {"SpecialToken": {"id": "<s>"}} names a row of special_tokens, which holds the ids.
absl::Status ReadTemplate(const JsonObject& step, TokenizerSpec* spec) {
  ASSIGN_OR_RETURN(const Json* pieces, step.Array("single"));
  ASSIGN_OR_RETURN(JsonObject special_tokens, step.Object("special_tokens"));
  if (pieces->size() > kMaxSteps) {
    return absl::InvalidArgumentError(absl::StrCat(step.where(), ": single: found ", pieces->size(),
                                                   " pieces, wanted at most ", kMaxSteps));
  }
  bool text_seen = false;
  for (const Json& value : *pieces) {
    ASSIGN_OR_RETURN(JsonObject piece,
                     JsonObject::Of(value, absl::StrCat(step.where(), ": single")));
    if (piece.Has("Sequence")) {
      if (text_seen) return NotSupported(piece.where(), "a second Sequence", "one");
      text_seen = true;
      continue;
    }
    ASSIGN_OR_RETURN(JsonObject special, piece.Object("SpecialToken"));
    ASSIGN_OR_RETURN(std::string name, special.String("id"));
    ASSIGN_OR_RETURN(JsonObject row, special_tokens.Object(name));
    ASSIGN_OR_RETURN(const Json* ids, row.Array("ids"));
    for (const Json& id : *ids) {
      if (!id.is_number_integer() || id < 0 || id >= spec->vocabulary.size() ||
          !spec->vocabulary.Has(id.get<int32_t>()) || ids->size() > kMaxSteps) {
        return absl::DataLossError(absl::StrCat(row.where(), ": ids: found ",
                                                ids->dump().substr(0, 80), ", wanted at most ",
                                                kMaxSteps, " ids of the vocabulary"));
      }
      (text_seen ? spec->suffix : spec->prefix).push_back(id.get<int32_t>());
    }
  }
  if (!text_seen) {
    return absl::InvalidArgumentError(
        absl::StrCat(step.where(), ": single: found no Sequence, wanted one"));
  }
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const JsonObject& file, TokenizerSpec* spec) {
  ASSIGN_OR_RETURN(std::vector<JsonObject> steps, Steps(file, "post_processor", "processors"));
  bool template_seen = false;
  for (const JsonObject& step : steps) {
    ASSIGN_OR_RETURN(std::string type, step.String("type"));
    if (type == "ByteLevel") continue;  // changes offsets into the text only
    if (type != "TemplateProcessing" || template_seen) {
      return NotSupported(step.where(), absl::StrCat("post-processor ", Quoted(type)),
                          "ByteLevel and one TemplateProcessing");
    }
    template_seen = true;
    RETURN_IF_ERROR(ReadTemplate(step, spec));
  }
  return absl::OkStatus();
}

// One step of a decoder. Fuse only joins strings.
absl::Status ReadDecoderStep(const JsonObject& step, bool* byte_level, TokenizerSpec* spec) {
  constexpr absl::string_view kSupported =
      "ByteLevel, Metaspace, Replace of U+2581 by a space, ByteFallback, Fuse, Strip of one "
      "leading space";
  ASSIGN_OR_RETURN(std::string type, step.String("type"));
  if (type == "ByteLevel") {
    *byte_level = true;
    return absl::OkStatus();
  }
  if (type == "ByteFallback" || type == "Fuse") return absl::OkStatus();
  if (type == "Metaspace") {
    ASSIGN_OR_RETURN(PreTokenizerStep::Prepend prepend, ReadMetaspace(step));
    spec->decode_metaspace = true;
    spec->strip_leading_space = prepend != PreTokenizerStep::Prepend::kNever;
    return absl::OkStatus();
  }
  if (type == "Replace") {
    ASSIGN_OR_RETURN(std::string from, PatternString(step, "String"));
    ASSIGN_OR_RETURN(std::string to, step.String("content"));
    if (from == kMetaspace && to == " ") {
      spec->decode_metaspace = true;
      return absl::OkStatus();
    }
  }
  if (type == "Strip") {
    ASSIGN_OR_RETURN(std::string content, step.String("content"));
    ASSIGN_OR_RETURN(int64_t start, step.Int("start", 0, INT32_MAX));
    ASSIGN_OR_RETURN(int64_t stop, step.Int("stop", 0, INT32_MAX));
    if (content == " " && start <= 1 && stop == 0) {
      spec->strip_leading_space = start == 1;
      return absl::OkStatus();
    }
  }
  return NotSupported(
      step.where(), absl::StrCat("decoder ", Quoted(step.json().dump(-1, ' ', true))), kSupported);
}

absl::Status ReadDecoder(const JsonObject& file, TokenizerSpec* spec) {
  ASSIGN_OR_RETURN(std::vector<JsonObject> steps, Steps(file, "decoder", "decoders"));
  bool byte_level = false;
  for (const JsonObject& step : steps) {
    RETURN_IF_ERROR(ReadDecoderStep(step, &byte_level, spec));
  }
  if (!steps.empty() && byte_level != spec->bpe.byte_level) {
    return absl::InvalidArgumentError(
        absl::StrCat(kFile, ": decoder: found one ", byte_level ? "with" : "without",
                     " ByteLevel, wanted the counterpart of the pre-tokenizer, which is one ",
                     byte_level ? "without" : "with"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(absl::string_view json) {
  if (json.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(kFile, ": found ", json.size(), " bytes, wanted at most ", kMaxFileBytes));
  }
  ASSIGN_OR_RETURN(Json value, ParseJson(json, kFile));
  ASSIGN_OR_RETURN(JsonObject file, JsonObject::Of(value, kFile));
  TokenizerSpec spec;
  RETURN_IF_ERROR(ReadNormalizer(file, &spec));
  RETURN_IF_ERROR(ReadPreTokenizer(file, &spec));
  RETURN_IF_ERROR(ReadModel(file, &spec));
  RETURN_IF_ERROR(ReadAddedTokens(file, &spec));
  RETURN_IF_ERROR(ReadPostProcessor(file, &spec));
  RETURN_IF_ERROR(ReadDecoder(file, &spec));
  return spec;
}

}  // namespace quern
