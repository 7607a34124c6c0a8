// Ids and texts of small tokenizers of every supported form against those of Hugging Face's library
// (tests/oracle/make_tokenizer_vectors.py).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/tokenizer/tokenizer.h"
#include "tests/core/tokenizer/fixtures.h"

namespace quern {
namespace {

struct Case {
  std::string name;
  Json tokenizer;
  Json texts;
  Json row;
};

// Names the case where a test fails.
void PrintTo(const Case& item, std::ostream* out) { *out << item.name; }

std::vector<Case> Cases() {
  const Json file = Json::parse(ReadSourceFile("tests/testdata/tokenizer_vectors.json"));
  std::vector<Case> cases;
  for (const Json& row : file["pipelines"]) {
    Json tokenizer = row["tokenizer"];
    tokenizer["model"] = row["settings"];
    tokenizer["model"]["type"] = "BPE";
    tokenizer["model"].update(file["models"][row["model"].get<std::string>()]);
    cases.push_back({row["name"], tokenizer, file["texts"], row});
  }
  return cases;
}

class TokenizerVectors : public testing::TestWithParam<Case> {};

TEST_P(TokenizerVectors, IdsAreHuggingFaces) {
  const auto tokenizer = MakeTokenizer(GetParam().tokenizer);
  const Json& texts = GetParam().texts;
  ASSERT_GE(texts.size(), 40u);
  for (size_t i = 0; i < texts.size(); ++i) {
    SCOPED_TRACE(texts[i].dump());
    const std::string text = texts[i];
    EXPECT_EQ(Ids(*tokenizer, text), GetParam().row["parsed"][i].get<std::vector<int32_t>>());
    const std::vector<int32_t> ordinary =
        Ids(*tokenizer, text, {.add_special_tokens = false, .parse_special_tokens = false});
    const Json& wanted = GetParam().row["ordinary"][i];
    EXPECT_EQ(ordinary, wanted.is_null() ? Ids(*tokenizer, text, {.add_special_tokens = false})
                                         : wanted.get<std::vector<int32_t>>());
  }
}

TEST_P(TokenizerVectors, TextsAreHuggingFaces) {
  const auto tokenizer = MakeTokenizer(GetParam().tokenizer);
  const Json& texts = GetParam().texts;
  for (size_t i = 0; i < texts.size(); ++i) {
    const Json& decoded = GetParam().row["decoded"][i];
    const auto ids = GetParam().row["parsed"][i].get<std::vector<int32_t>>();
    const std::string wanted = decoded.is_null() ? texts[i] : decoded;
    EXPECT_EQ(tokenizer->Decode(ids), wanted);

    StreamDecoder stream(tokenizer);
    std::string streamed;
    for (int32_t id : ids) streamed += stream.Append(id);
    EXPECT_EQ(streamed + stream.Finish(), wanted);
  }
}

INSTANTIATE_TEST_SUITE_P(Pipelines, TokenizerVectors, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

// Merges as "a b" are merges as ["a", "b"].
TEST(TokenizerVectorsFile, BothSpellingsOfMergesAreEqual) {
  const std::vector<Case> cases = Cases();
  ASSERT_FALSE(cases.empty());
  Json spelt = cases[0].tokenizer;
  for (Json& merge : spelt["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  const auto pairs = MakeTokenizer(cases[0].tokenizer);
  const auto strings = MakeTokenizer(spelt);
  for (const Json& text : cases[0].texts) EXPECT_EQ(Ids(*pairs, text), Ids(*strings, text));
}

}  // namespace
}  // namespace quern
