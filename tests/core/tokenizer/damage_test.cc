// tokenizer.json files that are damaged, hostile, or not supported.

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "core/tokenizer/tokenizer.h"
#include "tests/core/tokenizer/fixtures.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;

struct Damage {
  std::string name;
  std::function<void(Json&)> apply;  // to a sound file
  StatusCode code;
  std::vector<std::string> message;  // all occur in it
  bool pieces = false;               // the sound file is PiecesJson, not ByteLevelJson
};

// Names the case where a test fails.
void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

const Json kMetaspacePre = {{"type", "Metaspace"}, {"replacement", "\u2581"}};

std::vector<Damage> VocabularyDamage() {
  constexpr StatusCode kDamaged = StatusCode::kDataLoss;
  constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
  std::vector<Damage> cases = {
      {"IdTwice",
       [](Json& j) { j["model"]["vocab"]["ab"] = 0; },
       kDamaged,
       {"model.vocab", "id 0 is given to", "\"ab\""}},
      {"IdNegative",
       [](Json& j) { j["model"]["vocab"]["ab"] = -1; },
       kDamaged,
       {"\"ab\": found -1"}},
      {"IdTooLarge",
       [](Json& j) { j["model"]["vocab"]["ab"] = 1 << 20; },
       kDamaged,
       {"found 1048576", "[0, 1048575]"}},
      {"IdBeyond32Bits",
       [](Json& j) { j["model"]["vocab"]["ab"] = int64_t{1} << 32; },
       kDamaged,
       {"found 4294967296"}},
      {"IdBeyond63Bits",
       [](Json& j) { j["model"]["vocab"]["ab"] = UINT64_MAX; },
       kDamaged,
       {"found 18446744073709551615"}},
      {"IdFraction", [](Json& j) { j["model"]["vocab"]["ab"] = 300.0; }, kDamaged, {"found 300.0"}},
      {"IdText", [](Json& j) { j["model"]["vocab"]["ab"] = "300"; }, kDamaged, {"found \"300\""}},
      {"TokenEmpty",
       [](Json& j) { j["model"]["vocab"][""] = 300; },
       kDamaged,
       {"found 0 bytes, wanted 1 to 4096"}},
      {"TokenOfAMegabyte",
       [](Json& j) { j["model"]["vocab"][std::string(1 << 20, 'x')] = 300; },
       kDamaged,
       {"found 1048576 bytes, wanted 1 to 4096"}},
      {"VocabEmpty",
       [](Json& j) { j["model"]["vocab"] = Json::object(); },
       kInvalid,
       {"found 0 tokens"}},
      {"VocabList", [](Json& j) { j["model"]["vocab"] = Json::array(); }, kInvalid, {"vocab"}},
      {"VocabMissing", [](Json& j) { j["model"].erase("vocab"); }, kInvalid, {"vocab"}},
      {"UnkNotInVocab",
       [](Json& j) { j["model"]["unk_token"] = "<unk>"; },
       kDamaged,
       {"unk_token \"<unk>\" is not in the vocabulary"}},
      {"MergeOfUnknownLeft",
       [](Json& j) { j["model"]["merges"].push_back("zz a"); },
       kDamaged,
       {"model.merges[2]: \"zz\" is not in the vocabulary"}},
      {"MergeOfUnknownRight",
       [](Json& j) {
         j["model"]["merges"].push_back({"a", "zz"});
       },
       kDamaged,
       {"model.merges[2]: \"zz\""}},
      {"MergeIntoUnknown",
       [](Json& j) { j["model"]["merges"].push_back("b a"); },
       kDamaged,
       {"model.merges[2]: \"ba\""}},
      {"MergeOfOne",
       [](Json& j) { j["model"]["merges"].push_back("ab"); },
       kDamaged,
       {"model.merges[2]", "wanted two tokens"}},
      {"MergeOfThree",
       [](Json& j) { j["model"]["merges"].push_back("a b c"); },
       kDamaged,
       {"wanted two tokens"}},
      {"MergeListOfThree",
       [](Json& j) {
         j["model"]["merges"].push_back({"a", "b", "c"});
       },
       kDamaged,
       {"wanted two tokens"}},
      {"MergeOfIds",
       [](Json& j) {
         j["model"]["merges"].push_back({97, 98});
       },
       kDamaged,
       {"found \"[97,98]\""}},
      {"MergesMissing", [](Json& j) { j["model"].erase("merges"); }, kInvalid, {"merges"}},
  };
  for (const char* token : {"<0x-1>", "<0xG0>", "<0x1>", "<0x100>", "<0x0a>", "<0x>"}) {
    cases.push_back({absl::StrCat("ByteToken", cases.size()),
                     [token](Json& j) { j["model"]["vocab"][token] = 300; },
                     kDamaged,
                     {absl::StrCat("found the byte token \"", token, "\""), "<0x00> to <0xFF>"},
                     /*pieces=*/true});
  }
  return cases;
}

std::vector<Damage> AddedTokenDamage() {
  constexpr StatusCode kDamaged = StatusCode::kDataLoss;
  const auto add = [](int id, const std::string& content) {
    return [=](Json& j) { j["added_tokens"].push_back(AddedTokenJson(id, content)); };
  };
  return {
      {"AddedIdOfAnother",
       add(97, "<x>"),
       kDamaged,
       {"added_tokens[1]", "id 97 is given to \"a\""}},
      {"AddedUnderTwoIds", add(300, "ab"), kDamaged, {"\"ab\" has the ids 256 and 300"}},
      {"AddedIdTwice", add(258, "<|end|>"), kDamaged, {"added_tokens[1]: id 258 occurs twice"}},
      {"AddedIdNegative", add(-1, "<x>"), kDamaged, {"id: found -1"}},
      {"AddedIdTooLarge", add(1 << 20, "<x>"), kDamaged, {"id: found 1048576"}},
      {"AddedEmpty", add(300, ""), kDamaged, {"content: found 0 bytes"}},
      {"AddedLong",
       add(300, std::string(513, 'x')),
       kDamaged,
       {"found 513 bytes, wanted 1 to 512"}},
      {"AddedWithoutId",
       [](Json& j) { j["added_tokens"][0].erase("id"); },
       StatusCode::kInvalidArgument,
       {"added_tokens[0]: id: found nothing"}},
      {"AddedNotAList",
       [](Json& j) { j["added_tokens"] = "<x>"; },
       StatusCode::kInvalidArgument,
       {"added_tokens"}},
      {"TooManyAdded",
       [](Json& j) {
         for (int i = 0; i <= 1 << 16; ++i) {
           j["added_tokens"].push_back(AddedTokenJson(300 + i, absl::StrCat("<", i, ">")));
         }
       },
       StatusCode::kInvalidArgument,
       {"wanted at most 65536"}},
      {"BosNotInVocab",
       [](Json& j) { j["post_processor"]["special_tokens"]["<s>"]["ids"] = {300}; },
       kDamaged,
       {"ids: found [300]"},
       /*pieces=*/true},
      {"BosNegative",
       [](Json& j) { j["post_processor"]["special_tokens"]["<s>"]["ids"] = {-1}; },
       kDamaged,
       {"ids: found [-1]"},
       /*pieces=*/true},
      {"BosTooOften",
       [](Json& j) {
         j["post_processor"]["special_tokens"]["<s>"]["ids"] = std::vector<int>(1000, 1);
       },
       kDamaged,
       {"wanted at most 16 ids"},
       /*pieces=*/true},
      {"BosNotDescribed",
       [](Json& j) { j["post_processor"]["special_tokens"] = Json::object(); },
       StatusCode::kInvalidArgument,
       {"<s>: found nothing"},
       /*pieces=*/true},
      {"TemplateWithoutText",
       [](Json& j) { j["post_processor"]["single"].erase(1); },
       StatusCode::kInvalidArgument,
       {"found no Sequence"},
       /*pieces=*/true},
  };
}

Json SplitBy(const std::string& pattern) {
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"},
             {"pattern", {{"Regex", pattern}}},
             {"behavior", "Isolated"},
             {"invert", false}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
}

std::vector<Damage> NotSupported() {
  constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
  const auto set = [](const std::string& pointer, const Json& value) {
    return [=](Json& j) { j[Json::json_pointer(pointer)] = value; };
  };
  return {
      {"PatternThatBacktracks",
       set("/pre_tokenizer", SplitBy("(a+)+b")),
       kInvalid,
       {"pre_tokenizer[0]", "the pattern \"(a+)+b\"", "known are those of GPT-2, Llama 3, Qwen2"}},
      {"PatternWithLookahead", set("/pre_tokenizer", SplitBy("(?=a)")), kInvalid, {"\"(?=a)\""}},
      {"PatternOf64KiB",
       set("/pre_tokenizer", SplitBy(std::string(1 << 16, '('))),
       kInvalid,
       {"...\" (65536 bytes) is not known"}},
      {"PatternEmpty", set("/pre_tokenizer", SplitBy("")), kInvalid, {"is not known"}},
      {"PatternString",
       [](Json& j) {
         j["pre_tokenizer"] = {
             {"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "Isolated"}};
       },
       kInvalid,
       {"pattern: found no \"Regex\""}},
      {"SplitRemoved",
       [](Json& j) {
         j["pre_tokenizer"] = SplitBy(
             R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)");
         j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed";
       },
       kInvalid,
       {"Split with behavior \"Removed\", not inverted"}},
      {"PreTokenizerOther",
       set("/pre_tokenizer", {{"type", "Whitespace"}}),
       kInvalid,
       {"pre-tokenizer \"Whitespace\" is not supported"}},
      {"StepBehindByteLevel",
       set("/pre_tokenizer", {{"type", "Sequence"},
                              {"pretokenizers", {{{"type", "ByteLevel"}}, {{"type", "Digits"}}}}}),
       kInvalid,
       {"a step behind ByteLevel"}},
      {"MetaspaceOther",
       set("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}}),
       kInvalid,
       {"replacement \"_\""},
       /*pieces=*/true},
      {"MetaspaceScheme",
       set("/pre_tokenizer", {{"type", "Metaspace"}, {"prepend_scheme", "last"}}),
       kInvalid,
       {"prepend_scheme \"last\""},
       /*pieces=*/true},
      {"TooManySteps",
       set("/pre_tokenizer",
           {{"type", "Sequence"}, {"pretokenizers", std::vector<Json>(1000, kMetaspacePre)}}),
       kInvalid,
       {"found 1000 steps"},
       /*pieces=*/true},
      {"NormalizerOther",
       set("/normalizer", {{"type", "Lowercase"}}),
       kInvalid,
       {"normalizer \"Lowercase\" is not supported"}},
      {"NormalizerExpands",
       set("/normalizer", {{"type", "Replace"},
                           {"pattern", {{"String", "a"}}},
                           {"content", std::string(10000, 'a')}}),
       kInvalid,
       {"Replace of \"a\" by \"aaaa"}},
      {"NormalizerRegex",
       set("/normalizer",
           {{"type", "Replace"}, {"pattern", {{"Regex", "(a+)+b"}}}, {"content", ""}}),
       kInvalid,
       {"pattern: found no \"String\""}},
      {"NormalizerPrepends",
       set("/normalizer", {{"type", "Prepend"}, {"prepend", "x"}}),
       kInvalid,
       {"Prepend of \"x\""}},
      {"NestedSequence",
       set("/normalizer",
           {{"type", "Sequence"},
            {"normalizers", {{{"type", "Sequence"}, {"normalizers", Json::array()}}}}}),
       kInvalid,
       {"normalizer \"Sequence\" is not supported"}},
      {"PostProcessorOther",
       set("/post_processor", {{"type", "BertProcessing"}}),
       kInvalid,
       {"post-processor \"BertProcessing\""}},
      {"DecoderOther", set("/decoder", {{"type", "WordPiece"}}), kInvalid, {"WordPiece"}},
      {"DecoderOfTheOtherKind",
       set("/decoder", {{"type", "Metaspace"}}),
       kInvalid,
       {"found one without ByteLevel"}},
      {"DecoderReplacesOther",
       set("/decoder", {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "b"}}),
       kInvalid,
       {"decoder", "Replace"},
       /*pieces=*/true},
      {"DecoderStripsMore",
       set("/decoder/decoders/3/start", 2),
       kInvalid,
       {"Strip"},
       /*pieces=*/true},
      {"ModelOther",
       set("/model/type", "Unigram"),
       kInvalid,
       {"model \"Unigram\" is not supported; supported: \"BPE\""}},
      {"ModelMissing", [](Json& j) { j.erase("model"); }, kInvalid, {"found no model"}},
      {"ModelNull", set("/model", nullptr), kInvalid, {"model: found null"}},
      {"Dropout", set("/model/dropout", 0.1), kInvalid, {"dropout 0.1"}},
      {"SubwordPrefix",
       set("/model/continuing_subword_prefix", "##"),
       kInvalid,
       {"continuing_subword_prefix \"##\""}},
      {"WordSuffix",
       set("/model/end_of_word_suffix", "</w>"),
       kInvalid,
       {"end_of_word_suffix \"</w>\""}},
      {"ByteFallbackOfBytes",
       set("/model/byte_fallback", true),
       kInvalid,
       {"byte_fallback with a ByteLevel pre-tokenizer"}},
      {"FlagAsText", set("/model/ignore_merges", "true"), kInvalid, {"ignore_merges"}},
      {"TypeMissing", set("/pre_tokenizer", Json::object()), kInvalid, {"type: found nothing"}},
  };
}

class TokenizerDamage : public testing::TestWithParam<Damage> {};

TEST_P(TokenizerDamage, IsRefused) {
  Json json = GetParam().pieces ? PiecesJson({{"a", "b"}, {"c", "d"}})
                                : ByteLevelJson({{"a", "b"}, {"c", "d"}}, {"<|end|>"});
  ASSERT_OK(Tokenizer::FromJson(json.dump()));
  GetParam().apply(json);
  const auto result = Tokenizer::FromJson(json.dump());
  for (const std::string& part : GetParam().message) {
    EXPECT_THAT(result,
                StatusIs(GetParam().code, AllOf(HasSubstr("tokenizer.json"), HasSubstr(part))));
  }
  ASSERT_FALSE(result.ok());
  // Hostile text does not come back at length.
  EXPECT_LT(result.status().message().size(), 2000u);
}

const auto kName = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(Vocabulary, TokenizerDamage, testing::ValuesIn(VocabularyDamage()), kName);
INSTANTIATE_TEST_SUITE_P(AddedTokens, TokenizerDamage, testing::ValuesIn(AddedTokenDamage()),
                         kName);
INSTANTIATE_TEST_SUITE_P(NotSupported, TokenizerDamage, testing::ValuesIn(NotSupported()), kName);

// Text that is no sound JSON at all.
TEST(TokenizerText, IsRefused) {
  const std::string sound = ByteLevelJson({}, {}).dump();
  const std::vector<std::string> texts = {
      "",
      "[]",
      "null",
      "\xef\xbb\xbf" + sound,
      sound + "x",
      sound.substr(0, sound.size() / 2),
      R"({"model": {"type": "BPE", "type": "BPE"}})",
      R"({"model": {"vocab": {"\ud800": 1}, "merges": []}})",
      "{\"model\": {\"vocab\": {\"\xff\": 1}, \"merges\": []}}",
      "{\"model\": {\"vocab\": {\"\xc0\x80\": 1}, \"merges\": []}}",
      std::string(1'000'000, '['),
  };
  for (const std::string& text : texts) {
    EXPECT_THAT(Tokenizer::FromJson(text),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("tokenizer.json")))
        << text.substr(0, 80);
  }
  EXPECT_THAT(Tokenizer::FromJson(std::string((64 << 20) + 1, ' ')),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("wanted at most 67108864")));
}

TEST(TokenizerLimits, AreRefusedBeyondAndTakenBelow) {
  // Merges that repeat one pair: the longest list that is taken.
  std::string file = ByteLevelJson({{"a", "b"}}, {}).dump();
  const std::string one = R"([["a","b"]])";
  const auto with_merges = [&](size_t count) {
    std::string list = "[";
    for (size_t i = 0; i < count; ++i) absl::StrAppend(&list, i == 0 ? "" : ",", "\"a b\"");
    std::string text = file;
    text.replace(text.find(one), one.size(), list + "]");
    return text;
  };
  ASSERT_NE(file.find(one), std::string::npos);
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::FromJson(with_merges(1 << 21)));
  EXPECT_EQ(Ids(*tokenizer, "ab"), std::vector<int32_t>{256});
  EXPECT_THAT(Tokenizer::FromJson(with_merges((1 << 21) + 1)),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("found 2097153 merges, wanted at most 2097152")));

  // One token more than there may be ids.
  std::string vocab = R"({"model": {"merges": [], "vocab": {)";
  for (int id = 0; id <= 1 << 20; ++id) {
    absl::StrAppendFormat(&vocab, "%s\"%d\":%d", id == 0 ? "" : ",", id, id);
  }
  EXPECT_THAT(Tokenizer::FromJson(vocab + "}}}"),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("found 1048577 tokens, wanted 1 to 1048576")));
}

// Ids may have gaps: they decode to nothing and name no token.
TEST(TokenizerGaps, AreNoTokens) {
  Json json = ByteLevelJson({}, {});
  json["added_tokens"].push_back(AddedTokenJson(300, "<x>"));
  const auto tokenizer = MakeTokenizer(json);
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_EQ(tokenizer->Decode({280, 'a'}, /*keep_special=*/true), "a");
  EXPECT_FALSE(tokenizer->IsSpecial(280));
}

}  // namespace
}  // namespace quern
