#ifndef QUERN_TESTS_CORE_CONSTRAINT_CONSTRAINT_TEST_UTIL_H_
#define QUERN_TESTS_CORE_CONSTRAINT_CONSTRAINT_TEST_UTIL_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/constraint/constraint.h"
#include "core/tokenizer/tokenizer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {

inline constexpr int kConstraintVocabulary = 700;

inline std::shared_ptr<const Tokenizer> ConstraintTokenizer() {
  static const auto tokenizer = [] {
    auto made = Tokenizer::FromJson(TinyTokenizerJson(kConstraintVocabulary));
    EXPECT_OK(made);
    return *std::move(made);
  }();
  return tokenizer;
}

inline absl::StatusOr<std::shared_ptr<const Constraint>> Compile(const ConstraintSpec& spec) {
  static const auto trie =
      std::make_shared<const TokenTrie>(ConstraintTokenizer(), kConstraintVocabulary);
  return Constraint::Compile(spec, trie);
}

inline ConstraintSpec SchemaSpec(std::string schema) {
  return {.kind = ConstraintSpec::Kind::kJsonSchema, .text = std::move(schema)};
}
inline ConstraintSpec RegexSpec(std::string pattern) {
  return {.kind = ConstraintSpec::Kind::kRegex, .text = std::move(pattern)};
}
inline ConstraintSpec ChoiceSpec(std::vector<std::string> choices) {
  return {.kind = ConstraintSpec::Kind::kChoice, .choices = std::move(choices)};
}

inline bool Allows(absl::Span<const uint64_t> mask, int32_t id) {
  return (mask[id / 64] >> (id % 64) & 1) != 0;
}

inline std::vector<int32_t> AllowedIds(ConstraintState& state) {
  std::vector<int32_t> ids;
  const auto mask = state.AllowedTokens();
  EXPECT_OK(mask);
  if (!mask.ok()) return ids;
  for (int32_t id = 0; id < kConstraintVocabulary; ++id) {
    if (Allows(*mask, id)) ids.push_back(id);
  }
  return ids;
}

// Whether `text`, byte by byte, is a text of the constraint.
inline bool Matches(const std::shared_ptr<const Constraint>& constraint, absl::string_view text) {
  ConstraintState state(constraint);
  for (const char c : text) {
    // The tiny tokenizer has a token for each byte.
    int32_t byte_token = -1;
    for (const int32_t id : AllowedIds(state)) {
      if (ConstraintTokenizer()->TokenBytes(id) == absl::string_view(&c, 1)) byte_token = id;
    }
    if (byte_token < 0) return false;
    EXPECT_OK(state.Accept(byte_token));
  }
  return state.may_end();
}

// A text made of random allowed tokens; ends as soon as it may after `min_tokens`, or with some
// chance before.
inline std::string RandomText(const std::shared_ptr<const Constraint>& constraint, uint32_t seed,
                              int min_tokens = 40) {
  std::mt19937 random(seed);
  ConstraintState state(constraint);
  std::string text;
  for (int i = 0; i < 20000 && !state.must_end(); ++i) {
    if (state.may_end() && (i >= min_tokens || random() % 8 == 0)) break;
    std::vector<int32_t> ids = AllowedIds(state);
    EXPECT_FALSE(ids.empty()) << "nothing follows " << text;
    if (ids.empty()) return text;
    // Texts that go on for ever are told to end: brackets and quotes close.
    if (i >= min_tokens) {
      std::vector<int32_t> closing;
      for (const int32_t id : ids) {
        const absl::string_view bytes = ConstraintTokenizer()->TokenBytes(id);
        if (bytes == "\"" || bytes == "}" || bytes == "]") closing.push_back(id);
      }
      if (!closing.empty() && random() % 2 == 0) ids = closing;
    }
    const int32_t id = ids[random() % ids.size()];
    EXPECT_OK(state.Accept(id));
    const absl::string_view bytes = ConstraintTokenizer()->TokenBytes(id);
    text.append(bytes.data(), bytes.size());
  }
  EXPECT_TRUE(state.may_end()) << text;
  return text;
}

}  // namespace quern

#endif  // QUERN_TESTS_CORE_CONSTRAINT_CONSTRAINT_TEST_UTIL_H_
